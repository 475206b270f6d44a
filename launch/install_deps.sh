#!/usr/bin/env bash
# Installs the system packages that building and testing Quire needs, on Debian 12 and Ubuntu 24.04. Does nothing,
# and needs no rights, when all of them are there already. Otherwise needs root or sudo.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

packages=(
  g++ make cmake ninja-build pkg-config                 # compiler and build tools
  libhwy-dev libdnnl-dev                                # SIMD with run-time dispatch; matrix products
  libpcre2-dev libsentencepiece-dev libutf8proc-dev nlohmann-json3-dev  # tokenizers and json
  libcli11-dev libgtest-dev                             # command line; tests
  libboost-context-dev                                  # tests: fibers of the emulated GPU
  libopenmpi-dev openmpi-bin                            # ranks as processes
  iproute2 python3-yaml                                 # tests: two hosts on one, examples of launchers
  libgrpc++-dev protobuf-compiler-grpc libprotobuf-dev protobuf-compiler  # the service
  python3 python3-pip ca-certificates                   # fetching the model
)
while [ $# -gt 0 ]; do
  case "$1" in
    --fuzz) packages+=(clang libclang-rt-dev) ;;  # libFuzzer and its runtime
    -h | --help)
      echo "usage: launch/install_deps.sh [--fuzz]    installs what Quire's build needs (--fuzz: clang as well)"
      exit 0 ;;
    *) die "unknown option $1; --help lists them" ;;
  esac
  shift
done

if ! command -v dpkg-query > /dev/null || ! command -v apt-get > /dev/null; then
  die "this script knows Debian 12 and Ubuntu 24.04 only. Install the equivalents of: ${packages[*]}"
fi
missing=()
for package in "${packages[@]}"; do
  state=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2> /dev/null || true)
  if [ "$state" != installed ]; then missing+=("$package"); fi
done
if [ ${#missing[@]} -eq 0 ]; then
  say "All ${#packages[@]} system packages are installed"
  exit 0
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo > /dev/null || die "these packages are missing and need root or sudo to install: ${missing[*]}"
  as_root=(sudo)
fi
apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300)
say "Installing ${#missing[@]} system package(s): ${missing[*]}"
"${apt[@]}" update >&2 || die "apt-get update failed: the package mirror can't be reached, or this user may not use it"
"${apt[@]}" install -y --no-install-recommends "${missing[@]}" >&2 ||
  die "apt-get could not install: ${missing[*]}. Quire is built on Debian 12 and Ubuntu 24.04"

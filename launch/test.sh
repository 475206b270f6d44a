#!/usr/bin/env bash
# Installs what is needed, builds, and runs the tests; closes with ctest's own summary. Safe to run again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'TEXT'
usage: launch/test.sh [--sanitizers] [--slow] [--fuzz] [--no-model] [--no-install]
  runs the labels fast, long, emulator and mpi and, where the model could be fetched, model
  --sanitizers   also builds with ASan+UBSan and with TSan, and runs the labels fast and long under each
  --slow         also runs the label slow, which has the fuzz targets
  --fuzz         also builds the fuzz targets with clang and runs each for a minute
  --no-model     doesn't fetch the model; its tests say that they skip
  --no-install   doesn't look for system packages
TEXT
}
arguments=("$@")
sanitizers=0 slow=0 fuzz=0 model=1 install=1
while [ $# -gt 0 ]; do
  case "$1" in
    --sanitizers) sanitizers=1 ;;
    --slow) slow=1; fuzz=1 ;;
    --fuzz) fuzz=1 ;;
    --no-model) model=0 ;;
    --no-install) install=0 ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; die "unknown option $1" ;;
  esac
  shift
done

# TSan's memory map has no room for addresses as random as newer kernels make them (28 bits are fine).
bits=$(cat /proc/sys/vm/mmap_rnd_bits 2> /dev/null || echo 0)
if [ $sanitizers -eq 1 ] && [ "$bits" -gt 28 ] && [ -z "${QUIRE_FIXED_ADDRESSES:-}" ]; then
  setarch "$(uname -m)" -R true || die "TSan needs vm.mmap_rnd_bits of 28 or less, here it is $bits: lower it with sysctl"
  QUIRE_FIXED_ADDRESSES=1 exec setarch "$(uname -m)" -R launch/test.sh "${arguments[@]}"
fi

if [ $install -eq 1 ]; then
  if [ $fuzz -eq 1 ]; then launch/install_deps.sh --fuzz; else launch/install_deps.sh; fi
fi

# run_tests PRESET LABELS [JOBS]: one test at a time, for many of them use every processor.
run_tests() {
  say "Running the tests labelled $2 of build/$1"
  ctest --test-dir "build/$1" --output-on-failure --no-tests=error -L "$2" -j "${3:-1}" ||
    die "tests failed in build/$1; ctest's list above names them"
}

build_preset release -DQUIRE_WERROR=ON

labels="fast|long|mpi"
if [ $slow -eq 1 ]; then labels="$labels|slow"; fi
skipped=""
if [ $model -eq 1 ] && launch/fetch_model.sh > /dev/null; then
  labels="$labels|model"
elif [ $model -eq 1 ]; then
  skipped="the model could not be fetched (its reason is above)"
else
  skipped="--no-model was given"
fi
if [ -n "$skipped" ]; then say "Not running the tests labelled model: $skipped"; fi

if [ $sanitizers -eq 1 ]; then
  for preset in asan tsan; do
    build_preset "$preset" -DQUIRE_WERROR=ON
    run_tests "$preset" '^(fast|long)$'
  done
fi
if [ $fuzz -eq 1 ]; then
  BUILD_TARGET=fuzzers build_preset fuzz
  run_tests fuzz '^fuzz$'
fi
run_tests release '^emulator$' "$(nproc)"  # a thread each, but for few
run_tests release "^($labels)\$"

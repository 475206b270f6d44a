# shellcheck shell=bash
# Shared by the scripts of this folder (sourced, never run): messages, failures with a sentence, and the build.
# Decides the generator and the number of compile jobs; leaves what to build and to run to the scripts.

QUIRE_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$QUIRE_ROOT"

say() { printf '\n==> %s\n' "$*" >&2; }
die() {
  trap - ERR
  printf '\n%s: error: %s\n' "$(basename "$0")" "$*" >&2
  exit 1
}
set -E
trap 'die "the command \"$BASH_COMMAND\" failed (line $LINENO); the lines above say why"' ERR

# Memory that this process may use, in MiB: what the machine has free, or the container's limit when that is lower.
available_mib() {
  local mib limit
  mib=$(awk '/^MemAvailable:/ {print int($2 / 1024)}' /proc/meminfo)
  if [ -r /sys/fs/cgroup/memory.max ]; then
    limit=$(cat /sys/fs/cgroup/memory.max)
    if [ "$limit" != max ] && [ $((limit / 1048576)) -lt "$mib" ]; then mib=$((limit / 1048576)); fi
  fi
  echo "$mib"
}

# One compile job a processor, and no more than one per 1.5 GiB, so that the compiler is never killed for memory.
build_jobs() {
  local jobs by_memory
  jobs=$(nproc)
  by_memory=$(($(available_mib) / 1536))
  if [ "$by_memory" -lt "$jobs" ]; then jobs=$by_memory; fi
  if [ "$jobs" -lt 1 ]; then jobs=1; fi
  echo "$jobs"
}

# build_preset PRESET [cmake -D options…]: configures and builds build/PRESET (all of it, or the target $BUILD_TARGET).
build_preset() {
  local preset=$1 dir="build/$1" generator=() jobs
  shift
  if [ -f "$dir/CMakeCache.txt" ] && ! grep -qxF "CMAKE_HOME_DIRECTORY:INTERNAL=$QUIRE_ROOT" "$dir/CMakeCache.txt"; then
    say "$dir was configured for another folder: starting it afresh"
    rm -rf "$dir/CMakeCache.txt" "$dir/CMakeFiles"
  fi
  if [ ! -f "$dir/CMakeCache.txt" ] && command -v ninja > /dev/null; then generator=(-G Ninja); fi
  jobs=$(build_jobs)
  say "Configuring the preset $preset in $dir"
  cmake --preset "$preset" "${generator[@]}" "$@" >&2 ||
    die "cmake could not configure the preset $preset; the lines above name what is missing (launch/install_deps.sh installs it all)"
  say "Building it with $jobs job(s); the first time this takes some minutes"
  cmake --build "$dir" --parallel "$jobs" --target "${BUILD_TARGET:-all}" >&2 || die "the build of $dir failed; the first error above says where"
}

model_path() { echo "${QUIRE_CACHE:-$HOME/.cache/quire}/models/SmolLM2-135M-Instruct.gguf"; }

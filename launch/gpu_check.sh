#!/usr/bin/env bash
# Checks Quire on a machine with a GPU that needs nothing of ours, in two halves: `pack`, where it was built, puts the program,
# the tests of label gpu, the libraries they need and two small models into one file; `run`, in that file unpacked on the GPU's
# machine, runs the tests, compute-sanitizer on some of them where it is, and benches, and writes one JSON report.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/gpu_check.sh pack FILE.tar.gz [BUILD]   of build/release, or of BUILD
       ./gpu_check.sh run [REPORT.json]               in the unpacked folder; report.json
TEXT
}
die() {
  printf 'gpu_check.sh: error: %s\n' "$*" >&2
  exit 1
}

# Libraries of the system's loader and of the driver, which must be the GPU machine's own.
theirs='^(ld-linux.*|libc|libm|libdl|librt|libpthread|libresolv|libcuda|libnvidia-.*)\.so'

pack() {
  local file=$1 root build stage library name
  root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
  build=${2:-$root/build/release}
  [ -x "$build/bin/quire" ] || die "$build/bin/quire isn't there; build it first"
  [ -x "$build/bin/gpu_engine_test" ] || die "$build/bin/gpu_engine_test isn't there; build it with the CUDA toolkit (QUIRE_CUDA=ON)"
  stage=$(mktemp -d)
  # shellcheck disable=SC2064
  trap "rm -rf '$stage'" EXIT
  mkdir -p "$stage/bin" "$stage/lib" "$stage/tests/data"
  cp "$build/bin/quire" "$build/bin/gpu_engine_test" "$stage/bin/"
  while read -r library; do
    name=$(basename "$library")
    [[ $name =~ $theirs ]] || cp -L "$library" "$stage/lib/"
  done < <(ldd "$build/bin/quire" "$build/bin/gpu_engine_test" | awk '$2 == "=>" && $3 ~ /^\// {print $3}' | sort -u)
  cp -r "$root/tests/data/stories260K" "$root/tests/data/retriever-2m" "$root/tests/data/gqa-dummy" "$stage/tests/data/"
  cp "$root/launch/gpu_check.sh" "$stage/"
  git -C "$root" rev-parse HEAD > "$stage/commit" 2> /dev/null || echo unknown > "$stage/commit"
  tar -C "$stage" -czf "$file" .
  echo "$file: $(($(stat -c %s "$file") / 1048576)) MiB"
}

# json NAME FILE: `"NAME": the file's JSON`, or null where there is none.
json() {
  printf '"%s": ' "$1"
  if [ -s "$2" ]; then cat "$2"; else printf 'null'; fi
}

run() {
  local report=${1:-report.json} out failed=0
  cd "$(dirname "${BASH_SOURCE[0]}")"
  [ -x bin/gpu_engine_test ] || die "bin/gpu_engine_test isn't there; unpack what 'pack' made and start gpu_check.sh in it"
  out=$(mktemp -d)
  # shellcheck disable=SC2064
  trap "rm -rf '$out'" EXIT
  export LD_LIBRARY_PATH="$PWD/lib:${LD_LIBRARY_PATH:-}:/usr/local/cuda/lib64" QUIRE_TEST_ROOT=$PWD
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader > "$out/gpu" 2> /dev/null ||
    die "nvidia-smi finds no GPU here"
  bin/gpu_engine_test --gtest_output="json:$out/tests.json" >&2 || failed=1
  if command -v compute-sanitizer > /dev/null; then
    for tool in memcheck racecheck; do
      echo "compute-sanitizer $tool" >&2
      if compute-sanitizer --tool "$tool" --error-exitcode 3 bin/gpu_engine_test \
        --gtest_filter='GpuEngine.ASmallBudget*:GpuEngine.AMixedBatch*' > "$out/$tool.txt" 2>&1; then
        echo '"ok"' > "$out/$tool.json"
      else
        failed=1
        echo '"failed"' > "$out/$tool.json"
        tail -n 40 "$out/$tool.txt" >&2
      fi
    done
  fi
  # The shape of Llama 3.1 8B with random weights.
  mkdir "$out/llama"
  cat > "$out/llama/config.json" <<'TEXT'
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
 "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "rms_norm_eps": 1e-5,
 "rope_theta": 500000.0, "max_position_embeddings": 131072, "torch_dtype": "bfloat16", "hidden_act": "silu"}
TEXT
  bench() {  # NAME, then what bench takes
    local name=$1
    shift
    echo "bench $*" >&2
    bin/quire bench "$@" --model "$out/llama" --load-format dummy --device cuda --format json > "$out/$name.json" || failed=1
  }
  bench decode decode --depth 0,4096,32768 --batch 1,16 --attention dense,quest --token-budget 2048
  bench decode_long decode --depth 130000 --batch 1,4 --attention dense,quest --token-budget 2048
  bench prefill prefill --lengths 2048,8192,32768
  {
    printf '{"gpu": "%s", "commit": "%s", "date": "%s", ' "$(head -n 1 "$out/gpu")" "$(cat commit)" "$(date -u +%F)"
    json tests "$out/tests.json"
    for name in memcheck racecheck decode decode_long prefill; do
      printf ', '
      json "$name" "$out/$name.json"
    done
    printf '}\n'
  } > "$report"
  echo "report: $report" >&2
  [ $failed = 0 ] || die "some of it failed; the lines above say what"
}

case "${1:-}" in
  pack) [ $# -ge 2 ] || die "pack takes the file to make"; shift; pack "$@" ;;
  run) shift; run "$@" ;;
  -h | --help) usage ;;
  *) usage >&2; exit 2 ;;
esac

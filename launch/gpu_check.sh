#!/usr/bin/env bash
# Checks Quire on a machine with a GPU that needs nothing of ours, in two halves: `pack`, where it was built, puts the program,
# the tests of label gpu, the libraries they need and two small models into one file; `run`, in that file unpacked on the GPU's
# machine, runs the tests, compute-sanitizer on some of them where it is, and benches, and writes one JSON report.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/gpu_check.sh pack FILE.tar.gz [BUILD]   of build/release, or of BUILD
       ./gpu_check.sh run [REPORT.json]               in the unpacked folder; report.json. Three minutes on an H200;
                                                      QUIRE_SLOW=1 runs the tests' slow grids too
TEXT
}
die() {
  printf 'gpu_check.sh: error: %s\n' "$*" >&2
  exit 1
}

# Libraries of the system's loader and of the driver, which must be the GPU machine's own; and NCCL's, for its size.
theirs='^(ld-linux.*|libc|libm|libdl|librt|libpthread|libresolv|libcuda|libnvidia-.*|libnccl)\.so'

pack() {
  local file=$1 root build stage library name program
  root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
  build=${2:-$root/build/release}
  [ -x "$build/bin/quire" ] || die "$build/bin/quire isn't there; build it first"
  for program in gpu_kernels_test gpu_operations_test gpu_engine_test; do
    [ -x "$build/bin/$program" ] || die "$build/bin/$program isn't there; build it with the CUDA toolkit (QUIRE_CUDA=ON)"
  done
  stage=$(mktemp -d)
  # shellcheck disable=SC2064
  trap "rm -rf '$stage'" EXIT
  mkdir -p "$stage/bin" "$stage/lib" "$stage/tests/data"
  for program in quire gpu_kernels_test gpu_operations_test gpu_engine_test; do strip -o "$stage/bin/$program" "$build/bin/$program"; done
  while read -r library; do
    name=$(basename "$library")
    [[ $name =~ $theirs ]] || cp -L "$library" "$stage/lib/"
  done < <(ldd "$build/bin/quire" "$build/bin/gpu_kernels_test" "$build/bin/gpu_operations_test" "$build/bin/gpu_engine_test" | awk '$2 == "=>" && $3 ~ /^\// {print $3}' | sort -u)
  cp -r "$root/tests/data/stories260K" "$root/tests/data/retriever-2m" "$root/tests/data/gqa-dummy" "$root/tests/data/golden" \
    "$stage/tests/data/"
  cp "$root/launch/gpu_check.sh" "$root/tests/peers/torch_attention.py" "$root/tests/peers/flashinfer_attention.py" "$stage/"
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
  local report out failed=0 name names=() folder
  report=$(realpath -m "${1:-report.json}")
  cd "$(dirname "${BASH_SOURCE[0]}")"
  [ -x bin/gpu_engine_test ] || die "bin/gpu_engine_test isn't there; unpack what 'pack' made and start gpu_check.sh in it"
  out=$(mktemp -d)
  # shellcheck disable=SC2064
  trap "rm -rf '$out'" EXIT
  export LD_LIBRARY_PATH="$PWD/lib:${LD_LIBRARY_PATH:-}:/usr/local/cuda/lib64" QUIRE_TEST_ROOT=$PWD
  # NCCL, which the program is linked to, is too large to be packed: the system's, or that of a Python package.
  if ! ldconfig -p | grep -q 'libnccl\.so\.2'; then
    folder=$(python3 -c 'import nvidia.nccl; print(list(nvidia.nccl.__path__)[0] + "/lib")' 2> /dev/null) ||
      die "NCCL (libnccl.so.2) isn't here; install libnccl2, or build with -DQUIRE_NCCL=OFF and pack that"
    export LD_LIBRARY_PATH="$LD_LIBRARY_PATH:$folder"
  fi
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader > "$out/gpu" 2> /dev/null ||
    die "nvidia-smi finds no GPU here"
  # The report so far; written after every part, so that what was measured is there whatever happens to the rest.
  write_report() {
    {
      printf '{"gpu": "%s", "commit": "%s", "date": "%s"' "$(head -n 1 "$out/gpu")" "$(cat commit)" "$(date -u +%F)"
      for name in "${names[@]}"; do
        printf ', '
        json "$name" "$out/$name.json"
      done
      printf '}\n'
    } > "$report"
  }
  local filter='-Slow*'
  if [ -n "${QUIRE_SLOW:-}" ]; then filter='*'; fi
  for name in gpu_kernels_test gpu_operations_test gpu_engine_test; do
    echo "$name" >&2
    bin/$name --gtest_filter="$filter" > "$out/$name.txt" 2>&1 || failed=1
    tail -n 3 "$out/$name.txt" >&2
    sed -nE 's/^\[ +(PASSED|FAILED|SKIPPED) +\] */\1 /p' "$out/$name.txt" |
      awk 'BEGIN { printf "[" } { printf "%s\"%s\"", between, $0; between = ", " } END { print "]" }' > "$out/$name.json"
    names+=("$name")
  done
  bench() {  # NAME, then what bench takes
    local name=$1
    shift
    echo "bench $*" >&2
    bin/quire bench "$@" --device cuda --machine-seconds 0.5 --format json > "$out/$name.json" 2> "$out/$name.txt" || {
      failed=1
      tail -n 1 "$out/$name.txt" >&2
    }
    names+=("$name")
    write_report
  }
  local kernels=(kernels --head-dim 128 --page-size 16 --dense-layers 0 --repeats 7)
  local alone=(--prefill 16 --rows 1 --hidden 64 --ffn 64)
  bench kernels_32_8 "${kernels[@]}" --q-heads 32 --kv-heads 8 --depth 4096,32768,131072 --batch 1,8,16,64 --attention dense,quest \
    --prefill 2048,8192,32768 --chunk 2048 --rows 1,4,16,512 --hidden 4096 --ffn 14336
  bench kernels_64_8 "${kernels[@]}" "${alone[@]}" --q-heads 64 --kv-heads 8 --depth 4096,32768,131072 --batch 1,16 --attention dense,quest
  bench kernels_32_32 "${kernels[@]}" "${alone[@]}" --q-heads 32 --kv-heads 32 --depth 4096,32768,131072 --batch 1,8 --attention dense,quest
  bench quest_paper "${kernels[@]}" "${alone[@]}" --q-heads 32 --kv-heads 32 --depth 4096,8192,16384,32768 --batch 1 --attention dense,quest \
    --token-budget 512,1024,2048,4096
  # The shape of Llama 3.1 8B with random weights.
  mkdir "$out/llama"
  cat > "$out/llama/config.json" <<'TEXT'
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
 "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "rms_norm_eps": 1e-5,
 "rope_theta": 500000.0, "max_position_embeddings": 131072, "torch_dtype": "bfloat16", "hidden_act": "silu"}
TEXT
  local model=(--model "$out/llama" --load-format dummy)
  bench decode decode "${model[@]}" --depth 0,4096,32768 --batch 1,16 --attention dense,quest --token-budget 2048
  bench decode_long decode "${model[@]}" --depth 130000 --batch 1,4 --attention dense,quest --token-budget 2048 --repeats 2
  bench prefill prefill "${model[@]}" --lengths 2048,8192,32768 --max-num-batched-tokens 2048
  peer() {  # NAME, the modules that it imports, then its script and what that takes
    local name=$1 modules=$2
    shift 2
    python3 -c "import $modules; assert torch.cuda.is_available()" 2> /dev/null || return 0
    echo "$1" >&2
    timeout 600 python3 "$@" > "$out/$name.json" 2> "$out/$name.txt" || tail -n 1 "$out/$name.txt" >&2
    names+=("$name")
    write_report
  }
  peer torch torch torch_attention.py --batch 1,16 --depth 4096,32768,131072 --heads 32:8 --prefill 2048,8192
  peer flashinfer flashinfer,torch flashinfer_attention.py --batch 1,16 --depth 4096,32768,131072 --heads 32:8 --prefill 2048,8192
  if command -v compute-sanitizer > /dev/null; then
    for name in memcheck racecheck; do
      echo "compute-sanitizer $name" >&2
      if timeout 120 compute-sanitizer --tool "$name" --error-exitcode 3 bin/gpu_engine_test \
        --gtest_filter='GpuEngine.ASmallBudget*:GpuEngine.AMixedBatch*' > "$out/$name.txt" 2>&1; then
        echo '"ok"' > "$out/$name.json"
      else
        failed=1
        echo '"failed"' > "$out/$name.json"
        tail -n 40 "$out/$name.txt" >&2
      fi
      names+=("$name")
      write_report
    done
  fi
  echo "report: $report" >&2
  [ $failed = 0 ] || die "some of it failed; the lines above say what"
}

case "${1:-}" in
  pack) [ $# -ge 2 ] || die "pack takes the file to make"; shift; pack "$@" ;;
  run) shift; run "$@" ;;
  -h | --help) usage ;;
  *) usage >&2; exit 2 ;;
esac

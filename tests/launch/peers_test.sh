#!/usr/bin/env bash
# peers_test.sh REPOSITORY: the scripts of tests/peers, which measure on a GPU what isn't installed here: they are valid, are
# packed for the GPU's machine, and FlashInfer's takes its flags before it looks for its packages, and says which is missing.
set -euo pipefail
command -v python3 > /dev/null || { echo "SKIPPED: there is no python3 here"; exit 77; }
fail() { echo "$*"; exit 1; }
peers=$1/tests/peers

for script in "$peers"/*.py; do
  python3 -c 'import ast, sys; ast.parse(open(sys.argv[1]).read(), sys.argv[1])' "$script" || fail "$script is no Python"
  grep -q "tests/peers/$(basename "$script")" "$1/launch/gpu_check.sh" || fail "gpu_check.sh doesn't pack $script"
done

# -S: without the packages that this machine may have. run EXIT_CODE WORDS, then the flags.
run() {
  local expected=$1 words=$2 code=0 said
  shift 2
  said=$(PYTHONPATH='' python3 -B -S "$peers/flashinfer_attention.py" "$@" 2>&1) || code=$?
  [ "$code" = "$expected" ] || fail "flashinfer_attention.py $* ended with $code, not $expected: $said"
  [[ $said == *"$words"* ]] || fail "flashinfer_attention.py $* doesn't say '$words': $said"
}
run 1 "FlashInfer can't be imported here: No module named 'flashinfer'" --batch 1,16 --depth 4096 --heads 32:8,64:8 --prefill 2048
run 0 "--page-size" --help
run 2 "--heads" --heads 32:5
run 2 "--batch" --batch one

#!/usr/bin/env bash
# A Python program with nothing but grpcio and the .proto files streams what `quire generate` prints. Exits 77 (skipped)
# with a reason where Python's package registry can't be reached.
# usage: python_client.sh QUIRE SOURCE_DIR WORK_DIR
set -euo pipefail
quire=$1 source=$2 work=$3
mkdir -p "$work"
skip() { echo "skipped: $*"; exit 77; }
if [ ! -x "$work/venv/bin/python" ]; then
  python3 -m venv "$work/venv" > "$work/venv.log" 2>&1 || skip "python3 -m venv doesn't work here"
fi
if ! "$work/venv/bin/python" -c 'import grpc_tools, grpc' 2> /dev/null; then
  timeout 240 "$work/venv/bin/pip" install -q grpcio grpcio-tools > "$work/pip.log" 2>&1 ||
    skip "grpcio can't be installed from the package registry"
fi
"$work/venv/bin/python" -m grpc_tools.protoc -I "$source/rpc/proto" --python_out="$work" --grpc_python_out="$work" \
  "$source"/rpc/proto/quire/v1/*.proto

model=$source/tests/data/stories260K
"$quire" serve --model "$model" --port 0 --threads 1 --kv-cache-memory-bytes 64M > "$work/serve.out" 2> "$work/serve.err" &
server=$!
trap 'kill $server 2> /dev/null || true' EXIT
for _ in $(seq 200); do
  if grep -q '^ready' "$work/serve.out"; then break; fi
  sleep 0.05
done
address=$(sed -n 's/^listening on //p' "$work/serve.out")
got=$(cd "$work" && "$work/venv/bin/python" "$source/tests/rpc/stream.py" "$address" "Once upon a time" 50)
wanted=$("$quire" generate --model "$model" --prompt "Once upon a time" --max-tokens 50 --threads 1 2> /dev/null)
[ -n "$got" ] && [ "$got" = "$wanted" ] || { echo "got: $got"; echo "wanted: $wanted"; exit 1; }
if (cd "$work" && "$work/venv/bin/python" "$source/tests/rpc/stream.py" "$address" "" 50) 2> "$work/refused"; then
  echo "an empty prompt was not refused"; exit 1
fi
grep -q '^INVALID_ARGUMENT: the prompt' "$work/refused" || { cat "$work/refused"; exit 1; }
kill -TERM $server
wait $server
echo "streamed: $got"

#!/usr/bin/env bash
# Runs README's section "Two groups and a coordinator on one machine" as it is written, and looks at what it prints: the
# client's text must be what `quire generate` writes, although one of the groups was killed meanwhile (failover_test.cc
# kills the one that has the request). Exits 77 (skipped) with a
# reason where its ports are taken or the model has not been fetched.
# usage: readme_two_groups.sh QUIRE SOURCE_DIR
set -euo pipefail
quire=$1 source=$2
skip() { echo "skipped: $*"; exit 77; }
fail() { echo "FAILED: $*"; sed 's/^/    /' "$work/out" "$work/err"; exit 1; }

export M=${QUIRE_CACHE:-$HOME/.cache/quire}/models/SmolLM2-135M-Instruct.gguf
[ -f "$M" ] || skip "SmolLM2 is not in the cache folder; launch/fetch_model.sh fetches it"
for port in 50050 50051 50052; do
  if (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null; then skip "something listens on 127.0.0.1:$port"; fi
done
work=$(mktemp -d)
cleanup() {  # whatever the sequence has left: its processes are a session of their own
  [ -z "${session:-}" ] || kill -9 $(ps -o pid= --sid "$session") 2> /dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT

# The first code block behind the heading.
awk '/^## / {there = ($0 == "## Two groups and a coordinator on one machine")} there && /^```/ {if (inside) exit; inside = 1; next} inside' \
  "$source/README.md" > "$work/sequence.sh"
grep -q "quire coordinator" "$work/sequence.sh" || { echo "README has no such section"; exit 1; }
PATH="$(dirname "$quire"):$PATH" setsid bash -eu "$work/sequence.sh" > "$work/out" 2> "$work/err" < /dev/null & session=$!
wait $session || fail "the sequence ended with exit code $?"

"$quire" generate --model "$M" --batch-invariant --threads 1 --prompt "Once upon a time" --max-tokens 300 > "$work/wanted" 2> /dev/null
[[ "$(cat "$work/out")" == *"$(cat "$work/wanted")"* ]] || fail "the client's text is not what quire generate writes:
$(cat "$work/wanted")"
grep -Eq "^available_groups +1$" "$work/out" || fail "quire client --info doesn't say that one group is left"
echo "the client's text is whole, and one group is left"

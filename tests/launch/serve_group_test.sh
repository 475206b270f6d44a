#!/usr/bin/env bash
# launch/serve_group.sh: a group whose rank is killed is up again, SIGTERM lets running requests finish, a second one ends
# them, and a command that can't work is not tried again.
# usage: serve_group_test.sh QUIRE SOURCE_DIR MPIRUN
set -euo pipefail
export QUIRE=$1 MPIRUN=$3
source=$2
if [ "$(id -u)" = 0 ]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
work=$(mktemp -d)
export QUIRE_SERVE_GROUP_TEST=$work  # finds the ranks
script=
processes() {  # whose environment holds the test's mark and $1
  local file
  for file in /proc/[0-9]*/environ; do
    if { tr '\0' '\n' < "$file"; } 2> /dev/null | grep -xe "QUIRE_SERVE_GROUP_TEST=$work" -e "$1" | sort -u | wc -l | grep -qx 2; then
      file=${file#/proc/}
      echo "${file%/environ}"
    fi
  done
}
cleanup() {
  [ -z "$script" ] || kill -TERM "$script" 2> /dev/null || true
  for pid in $(processes "OMPI_COMM_WORLD_SIZE=2"); do kill -9 "$pid" 2> /dev/null || true; done
  rm -rf "$work"
}
trap cleanup EXIT
fail() {
  echo "FAILED: $*"
  for file in out err; do [ ! -f "$work/$file" ] || sed "s/^/  $file: /" "$work/$file"; done
  exit 1
}
until_true() {  # SECONDS COMMAND …
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ $SECONDS -lt $end ] || return 1
    sleep 0.05
  done
}

start() {
  : > "$work/out"
  : > "$work/err"
  "$source/launch/serve_group.sh" --mca orte_tmpdir_base "$work" --oversubscribe --bind-to none --mca btl self,vader \
    --mca btl_vader_single_copy_mechanism none --mca oob_tcp_if_include lo -n 2 -- --port 0 --threads 1 \
    --dtype float32 --kv-cache-memory-bytes 512M --max-num-seqs 4 "$@" > "$work/out" 2> "$work/err" &
  script=$!
}
times_ready() { [ "$(grep -c '^ready: ' "$work/out")" -ge "$1" ]; }
ask() {
  "$QUIRE" client --address "$(sed -n 's/^listening on //p' "$work/out" | tail -1)" --prompt "The pass key is" --ignore-eos \
    --temperature 0 --max-tokens "$@" --format json
}
ids() { tr -d ' \n' < "$1" | sed 's/.*"token_ids":\[\([^]]*\)\].*/\1/' | tr ',' '\n'; }
ended() { ! kill -0 "$script" 2> /dev/null; }
model=$source/tests/data/retriever-2m

start --model "$model" --shutdown-timeout 300
until_true 60 times_ready 1 || fail "the group did not get ready"
ask 20 > "$work/first" || fail "no answer"
kill -9 "$(processes "OMPI_COMM_WORLD_RANK=1" | head -1)"
until_true 60 times_ready 2 || fail "the group is not started again"
grep -q "the group has failed (exit code" "$work/err" || fail "nothing is said of the failure"
ask 20 > "$work/second" || fail "no answer after the failure"
[ "$(ids "$work/first")" = "$(ids "$work/second")" ] || fail "another answer after the failure"

ask 2000 > "$work/client" & client=$!
busy() { "$QUIRE" client --address "$(sed -n 's/^listening on //p' "$work/out" | tail -1)" --info | grep -Eq "^running +[1-9]"; }
until_true 30 busy || fail "the request does not run"
kill -TERM "$script"
until_true 330 ended || fail "SIGTERM does not end it"
wait "$script" || fail "a drained group gives exit code $?"
wait $client || fail "a running request was not let finish"
[ "$(grep -c '"finish_reason": "length"' "$work/client")" = 1 ] || fail "a running request was cut"
[ -z "$(processes "OMPI_COMM_WORLD_SIZE=2")" ] || fail "ranks are left"

start --model "$model" --shutdown-timeout 600
until_true 60 times_ready 1 || fail "the group did not get ready"
ask 8000 --n 4 --retry 2 > "$work/client" 2>&1 & client=$!
until_true 30 busy || fail "the request does not run"
kill -TERM "$script"
until_true 10 grep -q draining "$work/err" || fail "the first SIGTERM does nothing"
kill -TERM "$script"
until_true 20 ended || fail "a second SIGTERM does not end it"
! wait "$script" || fail "a group that was killed gives exit code 0"
! wait $client || fail "the request of a group that was killed has ended well"
none_left() { [ -z "$(processes "OMPI_COMM_WORLD_SIZE=2")" ]; }
until_true 20 none_left || fail "ranks are left"

start --model "$work/nowhere"
until_true 60 ended || fail "a model that isn't there keeps it going"
! wait "$script" || fail "a model that isn't there gives exit code 0"
grep -q "did not get ready" "$work/err" || fail "it does not say why it ends"
! grep -q "started again" "$work/err" || fail "a command that can't work is tried again"
echo "a failed group is started again, and signals end it as they should"

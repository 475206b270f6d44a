#!/bin/bash
# two_hosts.sh MPIRUN BIN_DIR SOURCE_DIR: one mpirun job over two hosts, which are two network namespaces with names of
# their own, joined by a veth pair. Nothing leaves them. Checks that ranks find each other over the named interface, that
# a rank killed or stopped on the other host and a cable that is cut end the job by name in under 10 s, and that the
# program quire prints the same text as one rank. Exits 77, with a reason, where this isn't permitted.
set -u
mpirun=$1 bin=$2 source=$3

skip() { echo "SKIPPED: $1"; exit 77; }
for tool in ip unshare nsenter; do
  command -v "$tool" >/dev/null || skip "there is no program $tool here (packages iproute2, util-linux)"
done
[ "$(id -u)" = 0 ] || skip "making network namespaces takes root"

unshare --net --uts sleep 300 & a=$!
unshare --net --uts sleep 300 & b=$!
scratch=$(mktemp -d)
# Processes that live in either namespace; none before both are known to be other ones than this script's own.
own=$(readlink /proc/self/ns/net)
spaces=()
inhabitants() {
  local pid space
  [ ${#spaces[@]} = 2 ] || return 0
  for pid in $(ls /proc | grep -x '[0-9]*'); do
    space=$(readlink "/proc/$pid/ns/net" 2>/dev/null) || continue
    [ "$space" != "$own" ] || continue
    if [ "$space" = "${spaces[0]}" ] || [ "$space" = "${spaces[1]}" ]; then echo "$pid"; fi
  done
}
cleanup() {
  kill -9 $(inhabitants) 2>/dev/null  # whatever a failed job left in there
  kill "$a" "$b" 2>/dev/null
  wait 2>/dev/null
  rm -rf "$scratch"
}
trap cleanup EXIT
for pid in $a $b; do
  for _ in $(seq 100); do
    [ "$(readlink /proc/$pid/ns/net)" != "$own" ] && break
    kill -0 "$pid" 2>/dev/null || skip "network namespaces can't be made here"
    sleep 0.02
  done
  [ "$(readlink /proc/$pid/ns/net)" != "$own" ] || skip "network namespaces can't be made here"
done
spaces=("$(readlink /proc/$a/ns/net)" "$(readlink /proc/$b/ns/net)")

in_a() { nsenter --target "$a" --net --uts "$@"; }
in_b() { nsenter --target "$b" --net --uts "$@"; }
cable() {
  in_a ip link add quire0 type veth peer name quire0 netns "$b" &&
    in_a ip addr add 10.231.77.1/24 dev quire0 && in_b ip addr add 10.231.77.2/24 dev quire0 &&
    in_a ip link set quire0 up && in_b ip link set quire0 up && in_a ip link set lo up && in_b ip link set lo up
}
cable 2>"$scratch/ip" || skip "a veth pair can't be made here: $(cat "$scratch/ip")"
in_a hostname quire-a || skip "a namespace's host name can't be set here"
in_b hostname quire-b

# mpirun starts its daemon on the other host by this instead of ssh: AGENT HOST COMMAND …
cat >"$scratch/agent" <<AGENT
#!/bin/sh
[ "\$1" = 10.231.77.2 ] || { echo "no host \$1" >&2; exit 1; }
shift
exec nsenter --target $b --net --uts sh -c "\$*"
AGENT
chmod +x "$scratch/agent"

failures=0
fail() { echo "FAILED: $1"; sed 's/^/    /' "$scratch/out" "$scratch/err"; failures=$((failures + 1)); }
# on_both RANKS PROGRAM …: half of the ranks on each host. Output in $scratch/out and err, code in $code.
on_both() {
  local ranks=$1
  shift
  OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 timeout 40 nsenter --target "$a" --net --uts \
    "$mpirun" --host "10.231.77.1:$((ranks / 2)),10.231.77.2:$((ranks / 2))" --map-by slot --bind-to none \
    --mca plm_rsh_agent "$scratch/agent" --mca oob_tcp_if_include quire0 --mca btl_vader_single_copy_mechanism none \
    -x QUIRE_FAULT -n "$ranks" "$@" >"$scratch/out" 2>"$scratch/err" </dev/null
  code=$?
}
export QUIRE_FAULT=

on_both 4 "$bin/group_member" --interface quire0
[ $code = 0 ] && grep -q "done: 4 ranks on 2 nodes" "$scratch/out" || fail "four ranks on two hosts did not come to their end ($code)"
grep -q "rank 3 (host quire-b" "$scratch/out" || fail "rank 3 is not on the second host"
cat "$scratch/out"

on_both 2 "$bin/group_member" --interface nosuch0
[ $code != 0 ] && grep -q 'no network interface "nosuch0"; it has lo, quire0' "$scratch/err" || fail "a wrong --interface was not refused"

# ended_by_name WHAT: the job that just ran has failed with rank 1 on quire-b named in its first sentence.
ended_by_name() {
  [ $code != 0 ] || fail "$1: the job succeeded"
  [ $code != 124 ] || fail "$1: the job had to be ended"
  grep -q "quire: error: rank [01] (host quire-[ab], pid [0-9]*) $2" "$scratch/err" || fail "$1: nobody was named"
  local seconds=$(($(date +%s) - begin))
  [ $seconds -lt 14 ] || fail "$1: it took $seconds s"
  echo "$1: over in $seconds s, start included"
  grep -m1 "quire: error" "$scratch/err"
}
begin=$(date +%s)
QUIRE_FAULT=rank=1,phase=decode,kind=kill on_both 2 "$bin/group_member" --steps 20 --interface quire0
ended_by_name "killed on the other host" "died in phase decode"
grep -q "rank 1 (host quire-b" "$scratch/err" || fail "killed on the other host: another rank was named"
begin=$(date +%s)
QUIRE_FAULT=rank=1,phase=prefill,kind=stop on_both 2 "$bin/group_member" --steps 20 --interface quire0
ended_by_name "stopped on the other host" "is stopped or its host can't be reached"
grep -q "rank 1 (host quire-b" "$scratch/err" || fail "stopped on the other host: another rank was named"

# The cable is cut while the job runs: each side misses the other, and its ranks end by themselves. mpirun can't tell its
# daemon on the other host any more, and waits for it until the cable is back: that is its own affair.
members() { local pid; for pid in $(inhabitants); do [ "$(readlink "/proc/$pid/exe")" = "$bin/group_member" ] && echo "$pid"; done; }
on_both 2 "$bin/group_member" --steps 100000 --interface quire0 & job=$!
sleep 3
[ "$(members | wc -l)" = 2 ] || fail "the job whose cable is to be cut does not run"
in_b ip link set quire0 down
begin=$(date +%s)
while [ -n "$(members)" ] && [ $(($(date +%s) - begin)) -lt 20 ]; do sleep 0.2; done
seconds=$(($(date +%s) - begin))
echo "cable cut: all ranks had ended after $seconds s"
[ $seconds -lt 10 ] || fail "ranks outlived a cut cable by $seconds s"
in_b ip link set quire0 up
wait $job
grep "quire: error: rank [01] (host quire-[ab], pid [0-9]*) is stopped or its host can't be reached" "$scratch/err" ||
  fail "nobody was named when the cable was cut"

if [ -x "$bin/quire" ]; then
  generate=(generate --model "$source/tests/data/stories260K" --prompt "Once upon a time" --max-tokens 40 --dtype float32)
  "$bin/quire" "${generate[@]}" >"$scratch/alone" 2>/dev/null
  on_both 2 "$bin/quire" "${generate[@]}" --interface quire0
  [ $code = 0 ] && cmp -s "$scratch/out" "$scratch/alone" || fail "quire on two hosts prints another text than one rank"
fi
exit $((failures > 0))

#!/usr/bin/env bash
# Keeps one group of ranks up under mpirun:
#   serve_group.sh [MPIRUN OPTION …] -- [SERVE OPTION …]
#   launch/serve_group.sh -n 2 --bind-to none -- --model DIR --port 0 --coordinator 10.0.0.1:50050
# A group that fails, as one does whole when a rank dies, is started again: after a second, then after 2, 4 … 30 while it
# does not get ready. A first start that never got ready is a mistake in the command: its exit code is the script's.
# SIGTERM and Ctrl-C drain the group, which has --shutdown-timeout seconds for that: mpirun never hears of them, for it
# would kill the ranks a second later, but gets SIGUSR1, which it hands on. (Its own limit, odls_base_sigkill_timeout, stays
# short: mpirun waits for the whole of it when a rank has failed.) A second SIGTERM or Ctrl-C ends the group at once.
# QUIRE and MPIRUN name the programs where they are not on the PATH.
set -uo pipefail
say() { printf 'serve_group: %s\n' "$*" >&2; }
usage() {
  say "usage: serve_group.sh [MPIRUN OPTION …] -- [SERVE OPTION …], as: serve_group.sh -n 2 -- --model DIR"
  exit 2
}

options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  options+=("$1")
  shift
done
[ "${1:-}" = -- ] || usage
shift

ready=$(mktemp) || exit 1
job=
stopping=0
trap 'rm -f "$ready"' EXIT
stop() {
  stopping=$((stopping + 1))
  [ -n "$job" ] || return 0
  if [ "$stopping" = 1 ]; then
    say "draining: SIGUSR1 to the ranks; a second signal ends them at once"
    kill -USR1 "$job" 2> /dev/null
  else
    # Its ranks of this host, or its daemons; the others end with them.
    cat "/proc/$job/task"/*/children 2> /dev/null | xargs -r kill -KILL
  fi
}
trap stop TERM INT

pass_on() {  # what the group prints, line by line, and whether it got ready
  trap '' TERM INT
  local line
  while IFS= read -r line; do
    printf '%s\n' "$line"
    case $line in 'ready: '*) echo yes > "$ready" ;; esac
  done
}

delay=1
first=1
while true; do
  : > "$ready"
  # In a session of its own: Ctrl-C goes to the script alone.
  setsid "${MPIRUN:-mpirun}" "${options[@]}" "${QUIRE:-quire}" serve "$@" \
    < /dev/null > >(pass_on) &
  job=$!
  while kill -0 "$job" 2> /dev/null; do wait "$job"; done  # a signal interrupts the wait
  wait "$job"
  code=$?
  job=
  if [ "$code" = 0 ] || [ "$stopping" -gt 0 ]; then exit "$code"; fi
  if [ -s "$ready" ]; then
    delay=1
  elif [ "$first" = 1 ]; then
    say "error: the group did not get ready (exit code $code); the lines above say why"
    exit "$code"
  fi
  first=0
  say "the group has failed (exit code $code); it is started again in $delay s"
  for ((i = 0; i < 10 * delay && stopping == 0; ++i)); do sleep 0.1; done
  [ "$stopping" = 0 ] || exit "$code"
  delay=$((delay < 16 ? 2 * delay : 30))
done

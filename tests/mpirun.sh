#!/bin/sh
# mpirun.sh MPIRUN RANKS PROGRAM [ARG …]: one MPI job on this host, more ranks than cores allowed; as root only
# when the tests themselves run as root.
set -eu
mpirun=$1
ranks=$2
shift 2
if [ "$(id -u)" = 0 ]; then
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
# Each job has a folder of its own for its session: jobs that begin and end at the same moment make and remove the common
# one under each other's feet. Those of jobs that have ended go.
sessions="${TMPDIR:-/tmp}/quire-mpi-$(id -u)"
for old in "$sessions"-*; do
  if [ -d "$old" ] && ! kill -0 "${old##*-}" 2> /dev/null; then rm -rf "$old"; fi
done
mkdir -p "$sessions-$$"
exec "$mpirun" --mca orte_tmpdir_base "$sessions-$$" --oversubscribe --bind-to none --mca btl self,vader \
  --mca btl_vader_single_copy_mechanism none --mca oob_tcp_if_include lo -n "$ranks" "$@"

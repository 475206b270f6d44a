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
exec "$mpirun" --oversubscribe --bind-to none --mca btl self,vader --mca btl_vader_single_copy_mechanism none \
  --mca oob_tcp_if_include lo -n "$ranks" "$@"

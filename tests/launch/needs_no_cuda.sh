#!/bin/sh
# needs_no_cuda.sh PROGRAM: it was linked with CUDA, but neither a driver nor the toolkit's libraries must be there for it to
# start: the runtime is part of it, and what multiplies on GPUs is loaded when a GPU is used.
command -v readelf >/dev/null || { echo "readelf (binutils) is not installed"; exit 77; }
needed=$(readelf -d "$1" | grep NEEDED) || { echo "$1 names no libraries"; exit 1; }
if echo "$needed" | grep -E 'libcuda|libcudart|libcublas'; then
  echo "$1 needs these to start"
  exit 1
fi
CUDA_VISIBLE_DEVICES= "$1" --help >/dev/null || { echo "$1 --help fails"; exit 1; }

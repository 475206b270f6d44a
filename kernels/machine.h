// What this machine can do, measured: the yardsticks that benches print their figures against.
#pragma once

#include "core/base/context.h"

namespace quire {

struct MachineRates {
  double read_gb_s = 0;    // streaming read of a buffer much larger than the caches, all threads
  double copy_gb_s = 0;    // streaming copy, bytes read + bytes written
  double matmul_gflop_s = 0;  // the best rate of the library's matrix product on large bf16 weights (oneDNN bf16 where
                              // the machine has AVX-512 or AMX; else f32 FMA products of oneDNN)
  const char* matmul_name = "";
};

// Takes about `seconds` in all. bytes: size of the buffers (0: 1 GiB or a quarter of free memory).
MachineRates MeasureMachine(const Context& ctx, double seconds = 2.0, size_t bytes = 0);

}  // namespace quire

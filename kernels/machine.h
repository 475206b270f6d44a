// What this machine can do, measured: the yardsticks that benches print their figures against.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/base/buffer.h"
#include "core/base/context.h"
#include "core/base/status.h"

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

class DeviceSession;
// The same of a GPU: copies inside its memory, whose rate also stands for reading, and bf16 products. Errors are the device's.
Result<MachineRates> MeasureGpu(DeviceSession& session, double seconds = 2.0, size_t bytes = 0);

// The streaming read alone, pass by pass, to be run between what is measured: on a machine that others use too, medians of
// passes and of work that took turns compare, where the best pass and a median don't. A pass also leaves nothing of the
// work before it in the caches.
class ReadProbe {
 public:
  // RESOURCE_EXHAUSTED without memory for the buffer (256 MiB and more).
  static Result<ReadProbe> Create(const Context& ctx);
  // One pass over the next part of the buffer.
  void Run(const Context& ctx);
  // Median of the passes so far; 0 before the first.
  double MedianGbS() const;

 private:
  ReadProbe() = default;
  Buffer buffer_;
  int64_t tasks_ = 0, window_ = 0, at_ = 0;  // in units of a task's bytes
  std::vector<double> seconds_;              // of the passes
};

}  // namespace quire

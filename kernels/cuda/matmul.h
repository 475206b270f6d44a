// Matrix products on the GPU behind kernels/linear.h: by cuBLASLt (cublaslt_matmul.cc), and in the emulator's tests by a plain
// product of the host. Pointers are device memory. Inputs are of one type, sums and results f32.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/base/device.h"
#include "core/base/dtype.h"
#include "core/base/status.h"

namespace quire::cuda {

// out[m][rows] = x[m][cols] · w[rows][cols]ᵀ + bias [rows]; accumulate: added to what out holds. m, rows, cols ≥ 1.
// Addresses are multiples of 16 bytes.
struct MatmulParams {
  DType dtype = DType::kBF16;  // of x and w
  const void* x = nullptr;     // row stride x_stride elements
  int64_t x_stride = 0;
  const void* w = nullptr;  // dense
  const float* bias = nullptr;  // nullable
  float* out = nullptr;         // row stride out_stride
  int64_t out_stride = 0;
  int64_t m = 0, rows = 0, cols = 0;
  bool accumulate = false;
  // One algorithm for every m, without split sums: a row's bits depend on the row and the weight alone.
  bool batch_invariant = false;
};

class Matmul {
 public:
  virtual ~Matmul() = default;
  // Enqueued on the stream. Not thread safe; calls go to one stream.
  virtual Status Run(Stream stream, const MatmulParams& params) = 0;
  virtual size_t workspace_bytes() const = 0;  // of device memory, held all the time
};

// For one GPU, which is the calling thread's. FAILED_PRECONDITION where the library isn't found.
Result<std::unique_ptr<Matmul>> MakeMatmul(Device device);

}  // namespace quire::cuda

// The small row-wise operations of a decoder layer on the GPU: kernels/elementwise.h with rows of any floating type and f32
// inside. Pointers are device memory. A row's bits depend on that row alone: rows are cut among threads by width only.
#pragma once

#include <cstdint>

#include "core/base/device.h"
#include "core/base/dtype.h"
#include "core/base/status.h"

namespace quire::cuda {

// residual[r] += x[r] where residual is given; out[r] = v / sqrt(mean(v²) + eps) * weight, with v the new residual or x.
struct RmsNormParams {
  const void* x = nullptr;        // [rows][width] of dtype, row stride x_stride
  int64_t x_stride = 0;
  float* residual = nullptr;      // [rows][width], dense, nullable
  const float* weight = nullptr;  // [width]
  void* out = nullptr;            // [rows][width] of dtype, row stride out_stride; may be x
  int64_t out_stride = 0;
  float eps = 1e-5f;
  int64_t rows = 0;
  int64_t width = 0;
};
Status RmsNorm(Stream stream, DType dtype, const RmsNormParams& params);

}  // namespace quire::cuda

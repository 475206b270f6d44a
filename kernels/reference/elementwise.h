// The row-wise operations of kernels/elementwise.h written out in double. Slow; for tests.
#pragma once

#include "kernels/elementwise.h"

namespace quire::reference {

void RmsNorm(const float* x, const float* weight, float eps, int64_t rows, int64_t width, float* out);
void SiluMul(const float* gate_up, int64_t rows, int64_t width, float* out);
void GeluTanhMul(const float* gate_up, int64_t rows, int64_t width, float* out);
void HeadRmsNorm(float* x, int64_t x_stride, const float* weight, float eps, int64_t rows, int heads, int head_dim);
// Straight from positions and inv_freq [rotary_dim / 2]: no table.
void Rope(const RopeParams& params, const float* inv_freq);

}  // namespace quire::reference

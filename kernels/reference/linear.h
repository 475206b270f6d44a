// Linear written out: one dot product in double per output. Slow; for tests.
#pragma once

#include "kernels/linear.h"

namespace quire::reference {

// As quire::Linear, without a context.
void Linear(const float* x, int64_t x_stride, int64_t m, const Weight& weight, const float* bias, float* out,
            int64_t out_stride, bool accumulate = false);

}  // namespace quire::reference

// Seeded random weights for any list of tensors: what `--load-format dummy` measures speed with. Nothing is stored: an
// element is a pure function of (seed, tensor name, row, column), so slices of any rank agree with each other.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/io/weight_source.h"

namespace quire {

// Matrices are normal with standard deviation 1 / sqrt(cols), which keeps activations near 1 in any depth;
// vectors whose name contains "norm" are 1, other vectors (biases) normal with 0.02. Values are rounded to the
// tensor's type, which must be F32, BF16 or F16. The normal is a sum of four 16-bit uniforms: |x| < 3.5 deviations.
std::unique_ptr<WeightSource> MakeDummyWeights(std::vector<TensorInfo> tensors, uint64_t seed);

}  // namespace quire

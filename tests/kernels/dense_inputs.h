// Seeded inputs and comparisons shared by the tests of the dense kernels.
#pragma once

#include <cstring>
#include <random>
#include <vector>

#include "core/base/tensor.h"
#include "kernels/linear.h"

namespace quire {

inline std::vector<float> RandomFloats(size_t n, uint32_t seed, float scale = 1.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(n);
  for (float& v : values) v = normal(generator);
  return values;
}

// [rows][cols], normal with a deviation of 1 / sqrt(cols).
inline Tensor RandomTensor(DType dtype, int64_t rows, int64_t cols, uint32_t seed) {
  Tensor tensor = Tensor::Create(dtype, {rows, cols}).value();
  const std::vector<float> values =
      RandomFloats(static_cast<size_t>(rows * cols), seed, 1.0f / std::sqrt(static_cast<float>(cols)));
  VisitFloatDType(dtype, [&](auto t) {
    auto* to = tensor.data<decltype(t)>();
    for (size_t i = 0; i < values.size(); ++i) to[i] = FromFloat<decltype(t)>(values[i]);
  });
  return tensor;
}

inline Weight RandomWeight(DType dtype, int64_t rows, int64_t cols, uint32_t seed) {
  return Weight::Own(RandomTensor(dtype, rows, cols, seed)).value();
}

inline bool SameBits(const float* a, const float* b, size_t n) { return std::memcmp(a, b, n * sizeof(float)) == 0; }

}  // namespace quire

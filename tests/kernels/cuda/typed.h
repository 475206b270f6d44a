// Device-like buffers for the kernels' tests: floats stored in a dtype, in an allocation of the exact size.
#pragma once

#include <cstddef>
#include <cstring>
#include <random>
#include <vector>

#include "core/base/dtype.h"

namespace quire::testing {

inline constexpr DType kFloatDTypes[] = {DType::kF32, DType::kBF16, DType::kF16};

class Typed {
 public:
  Typed(DType dtype, const std::vector<float>& values)
      : dtype_(dtype), bytes_(values.size() * static_cast<size_t>(ElementSize(dtype))) {
    for (size_t i = 0; i < values.size(); ++i) Set(i, values[i]);
  }
  void* data() { return bytes_.data(); }
  const void* data() const { return bytes_.data(); }
  DType dtype() const { return dtype_; }
  size_t size() const { return bytes_.size() / static_cast<size_t>(ElementSize(dtype_)); }
  float At(size_t i) const {
    return VisitFloatDType(dtype_, [&](auto t) {
      std::memcpy(&t, bytes_.data() + i * sizeof(t), sizeof(t));
      return ToFloat(t);
    });
  }
  void Set(size_t i, float x) {
    VisitFloatDType(dtype_, [&](auto t) {
      t = FromFloat<decltype(t)>(x);
      std::memcpy(bytes_.data() + i * sizeof(t), &t, sizeof(t));
    });
  }
  std::vector<float> Floats() const {
    std::vector<float> values(size());
    for (size_t i = 0; i < values.size(); ++i) values[i] = At(i);
    return values;
  }
  const std::vector<std::byte>& bytes() const { return bytes_; }
  // The largest relative error of storing a normal number.
  static double HalfUlp(DType dtype) {
    return dtype == DType::kF32 ? 0x1p-24 : dtype == DType::kBF16 ? 0x1p-8 : 0x1p-11;
  }
  // … and the largest absolute one of storing a small number.
  static double Least(DType dtype) { return dtype == DType::kF16 ? 0x1p-25 : 1e-37; }

 private:
  DType dtype_;
  std::vector<std::byte> bytes_;
};

inline std::vector<float> SeededFloats(size_t n, uint64_t seed, float scale = 1.0f) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> x(n);
  for (float& v : x) v = normal(random);
  return x;
}

}  // namespace quire::testing

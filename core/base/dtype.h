// Element types and the two 16-bit float formats, with scalar conversions that round to
// nearest even. Vector conversions live in kernels/cpu.
#pragma once

#include <bit>
#include <cstdint>
#include <string_view>

#include "core/base/status.h"

namespace quire {

enum class DType : uint8_t { kF32, kBF16, kF16, kI8, kI32, kU8 };

// Bytes of one element.
constexpr int ElementSize(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32: return 4;
    case DType::kBF16:
    case DType::kF16: return 2;
    case DType::kI8:
    case DType::kU8: return 1;
  }
  return 0;
}

// "float32", "bfloat16", … as vLLM and Hugging Face spell them.
std::string_view DTypeName(DType dtype);
// Accepts float32|fp32|f32, bfloat16|bf16, float16|fp16|f16|half; INVALID_ARGUMENT otherwise.
Result<DType> ParseFloatDType(std::string_view name);

// Storage of a bfloat16: the upper half of a float32.
struct BF16 {
  uint16_t bits = 0;
};
// Storage of an IEEE binary16.
struct F16 {
  uint16_t bits = 0;
};

inline float ToFloat(float x) { return x; }
inline float ToFloat(BF16 x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }
inline float ToFloat(F16 x) {
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  if (magnitude >= 0x0400u) return std::bit_cast<float>(sign | ((magnitude << 13) + 0x38000000u));
  // Subnormal: exact as a float product.
  const float value = static_cast<float>(magnitude) * 0x1p-24f;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
}

inline BF16 ToBF16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};  // quiet NaN
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
F16 ToF16(float x);

template <typename T>
T FromFloat(float x);
template <>
inline float FromFloat<float>(float x) { return x; }
template <>
inline BF16 FromFloat<BF16>(float x) { return ToBF16(x); }
template <>
inline F16 FromFloat<F16>(float x) { return ToF16(x); }

// The C++ type that stores a floating DType.
template <DType kDType>
struct StorageOf;
template <>
struct StorageOf<DType::kF32> { using Type = float; };
template <>
struct StorageOf<DType::kBF16> { using Type = BF16; };
template <>
struct StorageOf<DType::kF16> { using Type = F16; };

namespace internal {
[[noreturn]] void BadFloatDType(DType dtype);
}

// Calls f(T{}) with T = float, BF16 or F16 for a floating dtype; CHECK-fails on any other.
// The one place where a run-time dtype becomes a type; use it at launcher level only.
template <typename F>
decltype(auto) VisitFloatDType(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kF32: return f(float{});
    case DType::kBF16: return f(BF16{});
    case DType::kF16: return f(F16{});
    default: internal::BadFloatDType(dtype);
  }
}

}  // namespace quire

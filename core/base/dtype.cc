#include "core/base/dtype.h"

#include <string>

#include "core/base/check.h"

namespace quire {

std::string_view DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kF32: return "float32";
    case DType::kBF16: return "bfloat16";
    case DType::kF16: return "float16";
    case DType::kI8: return "int8";
    case DType::kI32: return "int32";
    case DType::kU8: return "uint8";
  }
  return "unknown";
}

Result<DType> ParseFloatDType(std::string_view name) {
  if (name == "float32" || name == "fp32" || name == "f32" || name == "float") return DType::kF32;
  if (name == "bfloat16" || name == "bf16") return DType::kBF16;
  if (name == "float16" || name == "fp16" || name == "f16" || name == "half") return DType::kF16;
  return InvalidArgument("unknown dtype '" + std::string(name) + "'; use float32, bfloat16 or float16");
}

F16 ToF16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // rounds to infinity
  if (magnitude < 0x38800000u) {
    // Subnormal or zero: adding 0.5 lets the float unit round at binary16's last place, 2^-24.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u);
  return {static_cast<uint16_t>(sign | (rounded >> 13))};
}

namespace internal {
void BadFloatDType(DType dtype) {
  CheckFailed(__FILE__, __LINE__, "not a floating dtype: " + std::string(DTypeName(dtype)));
}
}  // namespace internal

}  // namespace quire

// Small arithmetic that the attention kernels share. Device code, but for DivisionMagic.
#pragma once

#include "kernels/cuda/simt.h"

namespace quire::cuda {

inline constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
QUIRE_DEVICE float MinusInfinity() { return simt::BitsFloat(0xff800000u); }
QUIRE_DEVICE float QuietNan() { return simt::BitsFloat(0x7fc00000u); }

// For DivideByMagic: ceil(2^32 / divisor), 0 for 1.
constexpr uint32_t DivisionMagic(int divisor) {
  return divisor == 1 ? 0 : static_cast<uint32_t>(((int64_t{1} << 32) + divisor - 1) / divisor);
}
// x / divisor; exact while 0 ≤ x and x * divisor < 2^32.
QUIRE_DEVICE int DivideByMagic(int x, uint32_t magic) {
  return magic == 0 ? x : static_cast<int>((uint64_t{static_cast<uint32_t>(x)} * magic) >> 32);
}

}  // namespace quire::cuda

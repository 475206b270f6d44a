#include "core/io/dequant.h"

#include <bit>
#include <cstring>

#include "core/base/check.h"

namespace quire {

namespace {

// Bytes as plain integers, so that the loops below vectorise.
using Bytes = const uint8_t*;

template <typename T>
T Load(const void* p) {
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}

float Half(Bytes p) { return ToFloat(F16{Load<uint16_t>(p)}); }

// The five formats of 32 elements: scale d [, minimum m] [, fifth bits], then nibbles: byte j holds elements j (low)
// and j + 16 (high).
void BlockQ8_0(Bytes b, float* y) {
  const float d = Half(b);
  for (int j = 0; j < 32; ++j) y[j] = d * static_cast<float>(static_cast<int8_t>(b[2 + j]));
}

void BlockQ4_0(Bytes b, float* y) {
  const float d = Half(b);
  const Bytes q = b + 2;
  for (int j = 0; j < 16; ++j) {
    y[j] = d * static_cast<float>((q[j] & 15) - 8);
    y[j + 16] = d * static_cast<float>((q[j] >> 4) - 8);
  }
}

void BlockQ4_1(Bytes b, float* y) {
  const float d = Half(b), m = Half(b + 2);
  const Bytes q = b + 4;
  for (int j = 0; j < 16; ++j) {
    y[j] = d * static_cast<float>(q[j] & 15) + m;
    y[j + 16] = d * static_cast<float>(q[j] >> 4) + m;
  }
}

void BlockQ5_0(Bytes b, float* y) {
  const float d = Half(b);
  const uint32_t high = Load<uint32_t>(b + 2);
  const Bytes q = b + 6;
  for (int j = 0; j < 16; ++j) {
    const uint32_t low = (q[j] & 15u) | (((high >> j) & 1u) << 4);
    const uint32_t up = (q[j] >> 4) | (((high >> (j + 16)) & 1u) << 4);
    y[j] = d * static_cast<float>(static_cast<int>(low) - 16);
    y[j + 16] = d * static_cast<float>(static_cast<int>(up) - 16);
  }
}

void BlockQ5_1(Bytes b, float* y) {
  const float d = Half(b), m = Half(b + 2);
  const uint32_t high = Load<uint32_t>(b + 4);
  const Bytes q = b + 8;
  for (int j = 0; j < 16; ++j) {
    const uint32_t low = (q[j] & 15u) | (((high >> j) & 1u) << 4);
    const uint32_t up = (q[j] >> 4) | (((high >> (j + 16)) & 1u) << 4);
    y[j] = d * static_cast<float>(static_cast<int>(low)) + m;
    y[j + 16] = d * static_cast<float>(static_cast<int>(up)) + m;
  }
}

// The eight (scale, minimum) pairs of Q4_K and Q5_K, six bits each in 12 bytes: the first four are the low six bits of
// bytes 0–3 and 4–7; the others have their low nibbles in bytes 8–11 and their top two bits in bytes 0–7.
void SixBitScale(Bytes s, int i, float* scale, float* minimum) {
  if (i < 4) {
    *scale = static_cast<float>(s[i] & 63);
    *minimum = static_cast<float>(s[i + 4] & 63);
  } else {
    *scale = static_cast<float>((s[i + 4] & 15) | ((s[i - 4] >> 6) << 4));
    *minimum = static_cast<float>((s[i + 4] >> 4) | ((s[i] >> 6) << 4));
  }
}

// 256 elements in four runs of 64; a run's 32 bytes hold its first 32 elements (low nibbles) and its last 32 (high).
void BlockQ4_K(Bytes b, float* y) {
  const float d = Half(b), dmin = Half(b + 2);
  const Bytes scales = b + 4, q = b + 16;
  for (int run = 0; run < 4; ++run) {
    for (int part = 0; part < 2; ++part) {
      float scale, minimum;
      SixBitScale(scales, 2 * run + part, &scale, &minimum);
      const float ds = d * scale, dm = dmin * minimum;
      for (int j = 0; j < 32; ++j) {
        y[run * 64 + part * 32 + j] = ds * static_cast<float>((q[run * 32 + j] >> (4 * part)) & 15) - dm;
      }
    }
  }
}

// As Q4_K, with bit 2 * run + part of fifth[j] as the fifth bit of element j of that part.
void BlockQ5_K(Bytes b, float* y) {
  const float d = Half(b), dmin = Half(b + 2);
  const Bytes scales = b + 4, fifth = b + 16, q = b + 48;
  for (int run = 0; run < 4; ++run) {
    for (int part = 0; part < 2; ++part) {
      float scale, minimum;
      SixBitScale(scales, 2 * run + part, &scale, &minimum);
      const float ds = d * scale, dm = dmin * minimum;
      const int bit = 2 * run + part;
      for (int j = 0; j < 32; ++j) {
        const int value = ((q[run * 32 + j] >> (4 * part)) & 15) | (((fifth[j] >> bit) & 1) << 4);
        y[run * 64 + part * 32 + j] = ds * static_cast<float>(value) - dm;
      }
    }
  }
}

// 256 elements in two halves of four runs of 32; a run's low nibbles lie in 32 of the half's 64 low bytes, its upper
// two bits in bit pair `run` of the half's 32 high bytes; a signed scale for every 16 elements.
void BlockQ6_K(Bytes b, float* y) {
  const Bytes low = b, high = b + 128, scales = b + 192;
  const float d = Half(b + 208);
  for (int half = 0; half < 2; ++half) {
    for (int run = 0; run < 4; ++run) {
      const Bytes l = low + half * 64 + (run & 1) * 32;
      const Bytes h = high + half * 32;
      const int low_shift = 4 * (run >> 1), high_shift = 2 * run;
      for (int sixteen = 0; sixteen < 2; ++sixteen) {
        const float ds = d * static_cast<float>(static_cast<int8_t>(scales[half * 8 + run * 2 + sixteen]));
        float* out = y + half * 128 + run * 32 + sixteen * 16;
        for (int j = 0; j < 16; ++j) {
          const int value =
              ((l[sixteen * 16 + j] >> low_shift) & 15) | (((h[sixteen * 16 + j] >> high_shift) & 3) << 4);
          out[j] = ds * static_cast<float>(value - 32);
        }
      }
    }
  }
}

template <void (*kBlock)(Bytes, float*)>
void Blocks(StorageType type, const std::byte* src, int64_t blocks, float* dst) {
  const int bytes = BlockBytes(type), elements = BlockElements(type);
  const Bytes b = reinterpret_cast<Bytes>(src);
  for (int64_t i = 0; i < blocks; ++i) kBlock(b + i * bytes, dst + i * elements);
}

// The conversions below are those of dtype.h with selects for branches, which compilers vectorise.
uint16_t RoundToBF16(uint32_t bits) {
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x40u;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

uint16_t RoundToF16(uint32_t bits) {
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Adding 0.5 rounds a subnormal at binary16's last place.
  const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;
  half = magnitude > 0x7f800000u ? 0x7e00u : half;
  return static_cast<uint16_t>(half | ((bits >> 16) & 0x8000u));
}

uint32_t WidenF16(uint32_t half) {
  const uint32_t magnitude = half & 0x7fffu;
  const uint32_t normal = (magnitude << 13) + 0x38000000u;
  const uint32_t subnormal = std::bit_cast<uint32_t>(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
  uint32_t bits = magnitude < 0x0400u ? subnormal : normal;
  bits = magnitude >= 0x7c00u ? (0x7f800000u | ((magnitude & 0x3ffu) << 13)) : bits;
  return bits | ((half & 0x8000u) << 16);
}

}  // namespace

void DequantizeBlocks(StorageType type, const std::byte* src, int64_t blocks, float* dst) {
  switch (type) {
    case StorageType::kQ8_0: return Blocks<BlockQ8_0>(type, src, blocks, dst);
    case StorageType::kQ4_0: return Blocks<BlockQ4_0>(type, src, blocks, dst);
    case StorageType::kQ4_1: return Blocks<BlockQ4_1>(type, src, blocks, dst);
    case StorageType::kQ5_0: return Blocks<BlockQ5_0>(type, src, blocks, dst);
    case StorageType::kQ5_1: return Blocks<BlockQ5_1>(type, src, blocks, dst);
    case StorageType::kQ4_K: return Blocks<BlockQ4_K>(type, src, blocks, dst);
    case StorageType::kQ5_K: return Blocks<BlockQ5_K>(type, src, blocks, dst);
    case StorageType::kQ6_K: return Blocks<BlockQ6_K>(type, src, blocks, dst);
    case StorageType::kF32:
    case StorageType::kF16:
    case StorageType::kBF16: break;
  }
  CHECK(false && "a float type has no blocks to dequantise");
}

void ConvertFromFloat(const float* src, int64_t n, DType dtype, void* dst) {
  uint16_t* out = static_cast<uint16_t*>(dst);
  switch (dtype) {
    case DType::kF32: std::memcpy(dst, src, static_cast<size_t>(n) * 4); return;
    case DType::kBF16:
      for (int64_t i = 0; i < n; ++i) out[i] = RoundToBF16(std::bit_cast<uint32_t>(src[i]));
      return;
    case DType::kF16:
      for (int64_t i = 0; i < n; ++i) out[i] = RoundToF16(std::bit_cast<uint32_t>(src[i]));
      return;
    default: break;
  }
  CHECK(false && "weights are read as F32, BF16 or F16");
}

void ConvertToFloat(StorageType type, const std::byte* src, int64_t n, float* dst) {
  switch (type) {
    case StorageType::kF32: std::memcpy(dst, src, static_cast<size_t>(n) * 4); return;
    case StorageType::kBF16:
      for (int64_t i = 0; i < n; ++i) dst[i] = std::bit_cast<float>(uint32_t{Load<uint16_t>(src + 2 * i)} << 16);
      return;
    case StorageType::kF16:
      for (int64_t i = 0; i < n; ++i) dst[i] = std::bit_cast<float>(WidenF16(Load<uint16_t>(src + 2 * i)));
      return;
    default: break;
  }
  CHECK(false && "quantised blocks go through DequantizeBlocks");
}

}  // namespace quire

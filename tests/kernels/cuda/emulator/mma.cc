#include "tests/kernels/cuda/emulator/mma.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace quire::emulator {
namespace {

template <typename T>
float Half(uint32_t word, int which) {
  return ToFloat(T{static_cast<uint16_t>(word >> (16 * which))});
}

// Register r of lane l holds elements 2t, 2t + 1 (t = l % 4) of row g = l / 4 (+ 8 for odd r) and columns + 8 for r ≥ 2.
template <typename T>
const char* Multiply(Exchange* const (&lanes)[32]) {
  float a[16][16], b[16][8];
  for (int l = 0; l < 32; ++l) {
    const int g = l / 4, t = l % 4;
    for (int half = 0; half < 2; ++half) {
      for (int r = 0; r < 4; ++r) a[g + 8 * (r % 2)][2 * t + half + 8 * (r / 2)] = Half<T>(lanes[l]->in[r], half);
      for (int r = 0; r < 2; ++r) b[2 * t + half + 8 * r][g] = Half<T>(lanes[l]->in[4 + r], half);
    }
  }
  for (int l = 0; l < 32; ++l) {
    const int g = l / 4, t = l % 4;
    for (int i = 0; i < 4; ++i) {
      const int row = g + 8 * (i / 2), column = 2 * t + i % 2;
      double sum = std::bit_cast<float>(lanes[l]->in[6 + i]);
      for (int k = 0; k < 16; ++k) sum += double{a[row][k]} * b[k][column];
      lanes[l]->out[i] = std::bit_cast<uint32_t>(static_cast<float>(sum));
    }
  }
  return nullptr;
}

const void* Address(const uint32_t (&words)[12]) {
  uint64_t bits = 0;
  std::memcpy(&bits, words, sizeof(bits));
  return reinterpret_cast<const void*>(bits);
}

void PutAddress(const void* p, uint32_t* words) {
  const uint64_t bits = reinterpret_cast<uint64_t>(p);
  std::memcpy(words, &bits, sizeof(bits));
}

// Tells each lane the addresses of its elements; the lanes read them themselves, so that races are seen.
template <bool kTranspose>
const char* ShareRows(Exchange* const (&lanes)[32]) {
  const int matrices = std::min(static_cast<int>(lanes[0]->in[2]), 4);
  for (int l = 0; l < 32; ++l) {
    for (int j = 0; j < matrices; ++j) {
      for (int half = 0; half < 2; ++half) {
        const int row = kTranspose ? 2 * (l % 4) + half : l / 4;
        const int column = kTranspose ? l / 4 : 2 * (l % 4) + half;
        const auto* at = static_cast<const uint16_t*>(Address(lanes[8 * j + row]->in)) + column;
        PutAddress(at, lanes[l]->out + 4 * j + 2 * half);
      }
    }
  }
  return nullptr;
}

}  // namespace

void WarpMma(DType dtype, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const Where& where) {
  Exchange e;
  std::memcpy(e.in, a, sizeof(a));
  std::memcpy(e.in + 4, b, sizeof(b));
  std::memcpy(e.in + 6, d, sizeof(d));
  WarpArrive(simt::kFullMask, {"mma", dtype == DType::kBF16 ? Multiply<BF16> : Multiply<F16>}, &e, where);
  std::memcpy(d, e.out, sizeof(d));
}

void WarpLoadMatrices(int matrices, bool transpose, uint32_t* regs, const void* row, const Where& where) {
  if (Place().thread % 32 < 8 * matrices) {
    CheckShared(row, 16, where);
    CheckAligned(row, 16, where);
  }
  Exchange e;
  PutAddress(row, e.in);
  e.in[2] = static_cast<uint32_t>(matrices);
  WarpArrive(simt::kFullMask, {"ldmatrix", transpose ? ShareRows<true> : ShareRows<false>}, &e, where);
  for (int j = 0; j < matrices; ++j) {
    uint32_t word = 0;
    for (int half = 0; half < 2; ++half) {
      uint64_t bits = 0;
      std::memcpy(&bits, e.out + 4 * j + 2 * half, sizeof(bits));
      word |= uint32_t{*reinterpret_cast<const uint16_t*>(bits)} << (16 * half);
    }
    regs[j] = word;
  }
}

}  // namespace quire::emulator

// The two loops behind Linear, compiled once per instruction set (Highway's run-time dispatch).
//
// One summation order serves both: output (i, r) is a vector of L accumulators, lane l taking k = l, l + L, l + 2L, …
// by fused multiply-add in ascending k (the last step padded with zeros), and the lanes are then added in one fixed
// tree. So the bits of an output depend on its row of x, its row of W and L, whichever loop, tile shape or thread made
// them. Accumulators run along k and not along the output rows, so that row-major weights need no transposition.
#pragma once

#include <cstdint>

#include "core/base/dtype.h"

namespace quire::cpu {

// A block of y = x·Wᵀ: x rows [m_begin, m_end) by weight rows [row_begin, row_end).
struct LinearBlock {
  const void* weight = nullptr;  // [rows][cols] of dtype
  DType dtype = DType::kF32;     // F32, BF16 or F16
  int64_t cols = 0;
  const float* x = nullptr;      // [m][cols], row stride x_stride
  int64_t x_stride = 0;
  const float* bias = nullptr;   // [rows], may be null
  float* out = nullptr;          // [m][rows], row stride out_stride
  int64_t out_stride = 0;
  bool accumulate = false;
  int64_t m_begin = 0, m_end = 0, row_begin = 0, row_end = 0;
};

// Reads each weight once from where it lies, for few rows of x: bound by memory up to some 4–8 rows.
void LinearDirect(const LinearBlock& block);

// Expands panels of weights to f32 in scratch and uses them for all rows of the block.
void LinearPanels(const LinearBlock& block, float* scratch);
// Floats of scratch that LinearPanels needs for a block of m rows of x.
int64_t LinearPanelsScratch(int64_t m, int64_t cols);

// to = from, rounded to nearest even. [n]
void NarrowToBf16(const float* from, int64_t n, BF16* to);
// out = y + bias (nullable), added to out when accumulate. [n]
void StoreProduct(const float* y, const float* bias, int64_t n, bool accumulate, float* out);

// Weight rows that one panel holds at most.
inline constexpr int64_t kPanelRows = 48;

}  // namespace quire::cpu

// Page metadata in 8 bits on the GPU: the codes that kernels/metadata_codes.h says, with its arithmetic, which is exact but for
// one division: the same bits as on the CPU. Device code.
#pragma once

#include "kernels/cuda/simt.h"
#include "kernels/metadata_codes.h"
#include "kernels/page_table.h"

namespace quire::cuda {

// Codes of channels [c0, c0 + kCodeChannels), as far as there are, of one (whole group, KV head) from its meta and over. A
// warp, a lane a channel.
template <typename T>
QUIRE_DEVICE void EncodeChannels(const T* meta, const T* over, const PageFormat& f, int c0, uint8_t* codes) {
  static_assert(kCodeChannels == simt::kWarpSize && kPagesPerGroup == 16);
  const int c = c0 + simt::Lane();
  const bool there = c < f.k_dim;
  bool finite = true;
  simt::U32x4 below = {}, above = {};
  if (there) {
    const float lo = simt::ToFloat(over[f.OverOffset(0, c)]), hi = simt::ToFloat(over[f.OverOffset(1, c)]);
    const double step = CodeStep(lo, hi);
    finite = step - step == 0;  // so lo and hi are finite, too
    const double steps = step > 0 ? 1 / step : 0;
    for (int column = 0; column < kPagesPerGroup && finite; ++column) {
      const double min = simt::ToFloat(meta[f.MetaOffset(0, c, column)]), max = simt::ToFloat(meta[f.MetaOffset(1, c, column)]);
      finite = min >= lo && max <= hi;
      if (!finite) break;
      int low = static_cast<int>((min - lo) * steps);
      low = low < 255 ? low : 255;
      while (low > 0 && lo + step * low > min) --low;
      const double most = (max - lo) * steps;
      int high = static_cast<int>(most);
      high += high < most ? 1 : 0;
      while (high < 255 && lo + step * high < max) ++high;
      high = high < 255 ? high : 255;
      simt::Word(below, column / 4) |= static_cast<uint32_t>(low) << 8 * (column % 4);
      simt::Word(above, column / 4) |= static_cast<uint32_t>(high) << 8 * (column % 4);
    }
  }
  if (!simt::All(simt::kFullMask, finite) && simt::Lane() == 0) {
    below.x |= 255;
    above.x &= ~255u;
  }
  if (!there) return;
  simt::Store(codes + f.MetaOffset(0, c, 0), below);
  simt::Store(codes + f.MetaOffset(1, c, 0), above);
}

// Of all channels; the whole block.
template <typename T>
QUIRE_DEVICE void EncodeHead(const T* meta, const T* over, const PageFormat& f, uint8_t* codes) {
  const int warps = simt::BlockThreads() / simt::kWarpSize;
  for (int c0 = simt::Warp() * kCodeChannels; c0 < f.k_dim; c0 += warps * kCodeChannels) EncodeChannels(meta, over, f, c0, codes);
}

}  // namespace quire::cuda

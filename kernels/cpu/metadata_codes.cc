#include "kernels/metadata_codes.h"

#include <algorithm>
#include <cmath>

#include "core/base/check.h"

namespace quire {
namespace {

template <typename T>
void Encode(const T* meta, const T* over, const PageFormat& f, int c0, int c1, uint8_t* codes) {
  bool finite = true;
  for (int c = c0; c < c1; ++c) {
    const float lo = ToFloat(over[f.OverOffset(0, c)]), hi = ToFloat(over[f.OverOffset(1, c)]);
    const double step = CodeStep(lo, hi);
    finite = finite && std::isfinite(lo) && std::isfinite(hi) && std::isfinite(step);
    const double steps = step > 0 ? 1 / step : 0;
    for (int column = 0; column < kPagesPerGroup && finite; ++column) {
      const double min = ToFloat(meta[f.MetaOffset(0, c, column)]), max = ToFloat(meta[f.MetaOffset(1, c, column)]);
      finite = finite && min >= lo && max <= hi;  // no NaN
      if (!finite) break;
      int below = std::min(255, static_cast<int>((min - lo) * steps));
      while (below > 0 && lo + step * below > min) --below;
      int above = static_cast<int>(std::ceil((max - lo) * steps));
      while (above < 255 && lo + step * above < max) ++above;
      codes[f.MetaOffset(0, c, column)] = static_cast<uint8_t>(below);
      codes[f.MetaOffset(1, c, column)] = static_cast<uint8_t>(std::min(255, above));
    }
  }
  if (finite) return;
  codes[f.MetaOffset(0, c0, 0)] = 255;
  codes[f.MetaOffset(1, c0, 0)] = 0;
}

}  // namespace

void EncodeMetadata(const LayerPages& pages, const PageFormat& f, int64_t group, int head, int c0, int c1) {
  CHECK(pages.codes != nullptr && pages.meta != nullptr && pages.over != nullptr);
  VisitFloatDType(f.dtype, [&]<typename T>(T) {
    Encode(static_cast<const T*>(pages.meta) + group * f.meta_group_stride + head * f.meta_head_stride,
           static_cast<const T*>(pages.over) + group * f.over_group_stride + head * f.over_head_stride, f, c0, c1,
           pages.codes + group * f.meta_group_stride + head * f.meta_head_stride);
  });
}

void EncodeMetadata(const LayerPages& pages, const PageFormat& f, int64_t group) {
  for (int head = 0; head < f.kv_heads; ++head) {
    for (int c = 0; c < f.k_dim; c += kCodeChannels) {
      EncodeMetadata(pages, f, group, head, c, std::min(f.k_dim, c + kCodeChannels));
    }
  }
}

bool HasCodes(const uint8_t* codes, const PageFormat& f) {
  for (int c = 0; c < f.k_dim; c += kCodeChannels) {
    if (codes[f.MetaOffset(0, c, 0)] > codes[f.MetaOffset(1, c, 0)]) return false;
  }
  return true;
}

}  // namespace quire

// Page metadata in 8 bits (LayerPages::codes): half of what 16-bit metadata takes to read. Kept for metadata groups whose 16
// pages are all full, beside the metadata itself, which a growing group widens at every token.
//
// By channel the codes lie between the group's own min and max (LayerPages::over) lo and hi, rounded outward:
//   lo + step · code(min) ≤ min of the page,   max of the page ≤ lo + step · code(max),   step = CodeStep(lo, hi)
// so that a bound made of them is still a bound, and higher by no more than |q| · step a channel. A block of channels that
// has an infinity or a NaN has no codes: there the first channel's code of min is above that of max in column 0.
#pragma once

#include <cstdint>

#include "kernels/page_table.h"

namespace quire {

inline constexpr int kCodeChannels = 32;  // of a block

// A little more than a 255th of the range, for what rounding takes.
constexpr float CodeStep(float lo, float hi) { return (hi - lo) * (1.000001f / 255); }

// Codes of channels [c0, c1), a block, of one (whole group, KV head), from its meta and over.
void EncodeMetadata(const LayerPages& pages, const PageFormat& format, int64_t group, int head, int c0, int c1);
// Of all heads and channels.
void EncodeMetadata(const LayerPages& pages, const PageFormat& format, int64_t group);

// Whether all channels of a (group, KV head) have codes. codes: of these.
bool HasCodes(const uint8_t* codes, const PageFormat& format);

}  // namespace quire

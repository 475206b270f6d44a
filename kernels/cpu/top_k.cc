#include "kernels/cpu/top_k.h"

#include <bit>
#include <cstring>

namespace quire {
namespace {

// Unsigned integers in the order of the floats; 0 for NaN, which lies below −inf's 0x007fffff.
inline uint32_t OrderedKey(float score) {
  const uint32_t bits = std::bit_cast<uint32_t>(score + 0.0f);  // −0 becomes +0
  if (score != score) return 0;
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

}  // namespace

int TopPages(const float* scores, int n, int k, int32_t first, int32_t* out) {
  int count = 0;
  if (k <= 0 || n <= 0) return 0;
  if (k >= n) {
    for (int i = 0; i < n; ++i) {
      out[count] = first + i;
      count += OrderedKey(scores[i]) != 0;
    }
    return count;
  }
  // The k-th largest key, 11 bits at a time from the top.
  constexpr int kBits[3] = {11, 11, 10};
  uint32_t threshold = 0, known = 0;  // bits found, and where they are
  int wanted = k;                     // keys still to be found among those that match the known bits
  int shift = 32;
  for (const int bits : kBits) {
    shift -= bits;
    uint32_t histogram[2048];
    std::memset(histogram, 0, sizeof(uint32_t) << bits);
    const uint32_t digit_mask = (1u << bits) - 1;
    for (int i = 0; i < n; ++i) {
      const uint32_t key = OrderedKey(scores[i]);
      histogram[(key >> shift) & digit_mask] += (key & known) == threshold;
    }
    uint32_t digit = digit_mask;
    while (static_cast<int>(histogram[digit]) < wanted) wanted -= static_cast<int>(histogram[digit--]);
    threshold |= digit << shift;
    known |= digit_mask << shift;
    if (static_cast<int>(histogram[digit]) == wanted) break;  // all keys with this prefix are in: no ties to break
  }
  // Keys above the threshold's prefix, and of those that match it the first `wanted`.
  for (int i = 0; i < n && count < k; ++i) {
    const uint32_t key = OrderedKey(scores[i]);
    const uint32_t prefix = key & known;
    const bool tie = prefix == threshold && wanted > 0;
    const bool take = (prefix > threshold || tie) && key != 0;
    wanted -= tie;
    out[count] = first + i;
    count += take;
  }
  return count;
}

}  // namespace quire

// The k-th largest score is found bit by bit in the order of the floats: a candidate stays where at least k scores reach it, so
// each bit is one pass of comparisons over vectors. It ends as soon as exactly k reach it, which is long before the last
// bit where scores differ.
#include "kernels/cpu/top_k.h"

#include <bit>
#include <limits>

#include "kernels/cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/top_k.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace quire {
namespace HWY_NAMESPACE {
namespace {

using Floats = hn::ScalableTag<float>;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(Floats()));

// Scores ≥ limit; a NaN never is.
int CountFrom(const float* HWY_RESTRICT scores, int n, float limit) {
  const Floats d;
  const hn::RebindToSigned<Floats> di;
  const auto at_least = hn::Set(d, limit);
  auto sum = hn::Zero(di), other = hn::Zero(di);  // minus the count
  int i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    sum = hn::Add(sum, hn::VecFromMask(di, hn::RebindMask(di, hn::Ge(hn::LoadU(d, scores + i), at_least))));
    other = hn::Add(other, hn::VecFromMask(di, hn::RebindMask(di, hn::Ge(hn::LoadU(d, scores + i + kLanes), at_least))));
  }
  int count = -hn::GetLane(hn::SumOfLanes(di, hn::Add(sum, other)));
  for (; i < n; ++i) count += scores[i] >= limit;
  return count;
}

// The float at a place in their order, −inf for places below it.
float FloatAt(uint32_t key) {
  constexpr uint32_t kSign = 0x80000000u, kMinusInf = 0x007fffffu;
  if (key <= kMinusInf) return -std::numeric_limits<float>::infinity();
  return std::bit_cast<float>(key & kSign ? key ^ kSign : ~key);
}

// first + i of the scores ≥ limit to out, of those that equal it only the first `ties`. Returns how many.
int Take(const float* HWY_RESTRICT scores, int n, float limit, int ties, int32_t first, int32_t* HWY_RESTRICT out) {
  const Floats d;
  const auto at_least = hn::Set(d, limit);
  int count = 0;
  const auto take = [&](int i) {
    if (scores[i] == limit && ties-- <= 0) return;
    out[count++] = first + i;
  };
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    uint8_t bytes[8] = {};
    hn::StoreMaskBits(d, hn::Ge(hn::LoadU(d, scores + i), at_least), bytes);
    uint64_t bits = 0;
    for (int b = 0; b < (kLanes + 7) / 8; ++b) bits |= uint64_t{bytes[b]} << (8 * b);
    for (; bits != 0; bits &= bits - 1) take(i + std::countr_zero(bits));
  }
  for (; i < n; ++i) {
    if (scores[i] >= limit) take(i);
  }
  return count;
}

int TopPagesTarget(const float* scores, int n, int k, int32_t first, int32_t* out) {
  if (k <= 0 || n <= 0) return 0;
  uint32_t key = 0;
  int reach = CountFrom(scores, n, FloatAt(key));  // scores ≥ FloatAt(key)
  for (uint32_t bit = 0x80000000u; bit != 0 && reach > k; bit >>= 1) {
    const int count = CountFrom(scores, n, FloatAt(key | bit));
    if (count < k) continue;
    key |= bit;
    reach = count;
  }
  const float limit = FloatAt(key);
  int ties = reach;
  if (reach > k) {  // more than k reach the k-th score: some equal it
    int equal = 0;
    for (int i = 0; i < n; ++i) equal += scores[i] == limit;
    ties = equal - (reach - k);
  }
  return Take(scores, n, limit, ties, first, out);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace quire
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quire {

HWY_EXPORT(TopPagesTarget);

int TopPages(const float* scores, int n, int k, int32_t first, int32_t* out) {
  return HWY_DYNAMIC_DISPATCH(TopPagesTarget)(scores, n, k, first, out);
}

}  // namespace quire
#endif

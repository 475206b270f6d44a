// Per-target pieces that the page scores share: vectors of the 16 pages of a metadata group, and how the scores of a
// query group's heads become one. A NaN of any head makes the page's score NaN.
#if defined(QUIRE_KERNELS_CPU_PAGE_SCORES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef QUIRE_KERNELS_CPU_PAGE_SCORES_INL_H_
#undef QUIRE_KERNELS_CPU_PAGE_SCORES_INL_H_
#else
#define QUIRE_KERNELS_CPU_PAGE_SCORES_INL_H_
#endif

#include <algorithm>
#include <limits>
#include <type_traits>

#include "hwy/highway.h"
#include "kernels/cpu/quest_scores.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/page_table.h"

HWY_BEFORE_NAMESPACE();
namespace quire {
namespace HWY_NAMESPACE {

using Pages = hn::CappedTag<float, kPagesPerGroup>;

// Combines sum[head][vector of pages] into out [16], after what earlier heads left there unless first.
template <int kHeads, int kVectors>
HWY_INLINE void CombineHeads(GroupReduce reduce, const VecF<Pages> (&sum)[kHeads][kVectors], bool first,
                             float* HWY_RESTRICT out) {
  const Pages d;
  constexpr int kLanes = kPagesPerGroup / kVectors;
  for (int v = 0; v < kVectors; ++v) {
    auto total = sum[0][v];
    if (!first) {
      const auto before = hn::LoadU(d, out + v * kLanes);
      total = reduce == GroupReduce::kMax ? hn::Max(before, total) : hn::Add(before, total);
    }
    for (int h = 1; h < kHeads; ++h) {
      total = reduce == GroupReduce::kMax ? hn::Max(total, sum[h][v]) : hn::Add(total, sum[h][v]);
    }
    // Whichever operand the machine's max prefers.
    if (reduce == GroupReduce::kMax) {
      auto check = first ? hn::Zero(d) : hn::LoadU(d, out + v * kLanes);
      for (int h = 0; h < kHeads; ++h) check = hn::IfThenElse(hn::IsNaN(sum[h][v]), sum[h][v], check);
      total = hn::IfThenElse(hn::IsNaN(check), check, total);
    }
    hn::StoreU(total, d, out + v * kLanes);
  }
}

// Calls f(constant of 4, 3, 2 or 1, first head) until all heads had their turn, fours first.
template <class F>
HWY_INLINE void ForHeadsByFour(int heads, F&& f) {
  int h = 0;
  for (; h + 4 <= heads; h += 4) f(std::integral_constant<int, 4>(), h);
  switch (heads - h) {
    case 3: f(std::integral_constant<int, 3>(), h); break;
    case 2: f(std::integral_constant<int, 2>(), h); break;
    case 1: f(std::integral_constant<int, 1>(), h); break;
    default: break;
  }
}

// The mean of what CombineHeads has summed up.
HWY_INLINE void FinishMean(GroupReduce reduce, int heads, float* out) {
  if (reduce != GroupReduce::kMean) return;
  const float share = 1.0f / static_cast<float>(heads);
  for (int i = 0; i < kPagesPerGroup; ++i) out[i] *= share;
}

// Calls f(group, a group further on to prefetch, its 16 scores) for each of p.groups metadata groups; the scores of those
// that aren't there become NaN.
template <typename T, class Params, class F>
HWY_INLINE void ForMetaGroups(const Params& p, F&& f) {
  constexpr int kAhead = 2;
  const auto* base = static_cast<const T*>(p.meta);
  for (int g = 0; g < p.groups; ++g) {
    float* out = p.scores + int64_t{g} * kPagesPerGroup;
    if (p.group_ids[g] < 0) {
      std::fill(out, out + kPagesPerGroup, std::numeric_limits<float>::quiet_NaN());
      continue;
    }
    const T* group = base + p.group_ids[g] * p.group_stride;
    const int ahead = g + kAhead;
    f(group, ahead < p.groups && p.group_ids[ahead] >= 0 ? base + p.group_ids[ahead] * p.group_stride : group, out);
  }
}

// The scores of p.groups metadata groups: score(constant of 4, 3, 2 or 1, first head, group, group to prefetch, out [16])
// for each block of heads, then the mean.
template <typename T, class Params, class F>
HWY_INLINE void ScoreMetaGroups(const Params& p, F&& score) {
  ForMetaGroups<T>(p, [&](const T* group, const T* next, float* out) {
    ForHeadsByFour(p.heads, [&](auto heads, int h) { score(heads, h, group, next, out); });
    FinishMean(p.reduce, p.heads, out);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace quire
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard

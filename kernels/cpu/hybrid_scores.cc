// A run is 16 pages of one channel: a vector of pages, 32 bytes in 16 bits. Runs are scattered over a group's block,
// which the machine's own prefetching can't follow, so the next group's are asked for while this one's are summed.
#include "kernels/cpu/hybrid_scores.h"

#include <algorithm>
#include <limits>

#include "kernels/cpu/simd.h"
#include "kernels/page_table.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/hybrid_scores.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/page_scores-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace quire {
namespace HWY_NAMESPACE {
namespace {

template <int kHeads, typename T>
HWY_INLINE void ScoreGroup(const HybridScoreParams& p, const float* q, const T* group, const T* next, bool first,
                           float* HWY_RESTRICT out) {
  const Pages d;
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(Pages()));
  constexpr int kVectors = kPagesPerGroup / kLanes;
  VecF<Pages> sum[kHeads][kVectors];
  for (int h = 0; h < kHeads; ++h) {
    for (int v = 0; v < kVectors; ++v) sum[h][v] = hn::Zero(d);
  }
  for (int i = 0; i < p.num_runs; ++i) {
    const int64_t offset = int64_t{p.runs[i]} * kPagesPerGroup;
    Prefetch(next + offset);
    VecF<Pages> x[kVectors];
    for (int v = 0; v < kVectors; ++v) x[v] = LoadElements(d, group + offset + v * kLanes);
    for (int h = 0; h < kHeads; ++h) {
      const auto qi = hn::Set(d, q[h * p.q_stride + i]);
      for (int v = 0; v < kVectors; ++v) sum[h][v] = hn::MulAdd(qi, x[v], sum[h][v]);
    }
  }
  CombineHeads<kHeads>(p.reduce, sum, first, out);
}

template <typename T>
void Score(const HybridScoreParams& p) {
  if (p.num_runs == 0) {
    std::fill(p.scores, p.scores + int64_t{p.groups} * kPagesPerGroup, std::numeric_limits<float>::quiet_NaN());
    return;
  }
  ScoreMetaGroups<T>(p, [&](auto heads, int h, const T* group, const T* next, float* out) {
    ScoreGroup<decltype(heads)::value>(p, p.q + h * p.q_stride, group, next, h == 0, out);
  });
}

void HybridScoresTarget(const HybridScoreParams& p) {
  VisitFloatDType(p.dtype, [&](auto t) { Score<decltype(t)>(p); });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace quire
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quire {

HWY_EXPORT(HybridScoresTarget);

void HybridScores(const HybridScoreParams& params) { HWY_DYNAMIC_DISPATCH(HybridScoresTarget)(params); }

}  // namespace quire
#endif

// A group's metadata is [2][k_dim][16 pages]: a vector of pages per channel, so no horizontal sum is needed. With
// q⁺ = max(q, 0), q⁻ = min(q, 0) the bound is Σ q⁺·max + q⁻·min; one of the two products is 0, so the rounding is that of a
// single product. Each metadata vector is loaded and widened once for up to four heads.
#include "kernels/cpu/quest_scores.h"

#include "kernels/cpu/simd.h"
#include "kernels/page_table.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/quest_scores.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/page_scores-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace quire {
namespace HWY_NAMESPACE {
namespace {

// Combines the scores of kHeads heads of one group of 16 pages into out, after what earlier heads left there.
template <int kHeads, typename T>
HWY_INLINE void ScoreGroup(const QuestScoreParams& p, const float* q, const T* group, const T* next, bool first,
                           float* HWY_RESTRICT out) {
  const Pages d;
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(Pages()));
  constexpr int kVectors = kPagesPerGroup / kLanes;
  const int dim = p.k_dim;
  VecF<Pages> sum[kHeads][kVectors];
  for (int h = 0; h < kHeads; ++h) {
    for (int v = 0; v < kVectors; ++v) sum[h][v] = hn::Zero(d);
  }
  const T* min = group;
  const T* max = group + int64_t{dim} * kPagesPerGroup;
  const int64_t max_offset = int64_t{dim} * kPagesPerGroup;
  for (int c = 0; c < dim; ++c) {
    Prefetch(next + int64_t{c} * kPagesPerGroup);
    Prefetch(next + max_offset + int64_t{c} * kPagesPerGroup);
    VecF<Pages> lo[kVectors], hi[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      lo[v] = LoadElements(d, min + int64_t{c} * kPagesPerGroup + v * kLanes);
      hi[v] = LoadElements(d, max + int64_t{c} * kPagesPerGroup + v * kLanes);
    }
    for (int h = 0; h < kHeads; ++h) {
      const auto qc = hn::Set(d, q[int64_t{h} * dim + c]);
      const auto negative = hn::Lt(qc, hn::Zero(d));  // a NaN goes on as q⁺: what max makes of it differs by machine
      const auto plus = hn::IfThenZeroElse(negative, qc);
      const auto minus = hn::IfThenElseZero(negative, qc);
      for (int v = 0; v < kVectors; ++v) {
        sum[h][v] = hn::MulAdd(minus, lo[v], hn::MulAdd(plus, hi[v], sum[h][v]));
      }
    }
  }
  CombineHeads<kHeads>(p.reduce, sum, first, out);
}

template <typename T>
void Score(const QuestScoreParams& p) {
  ScoreMetaGroups<T>(p, [&](auto heads, int h, const T* group, const T* next, float* out) {
    ScoreGroup<decltype(heads)::value>(p, p.q + int64_t{h} * p.k_dim, group, next, h == 0, out);
  });
}

void QuestScoresTarget(const QuestScoreParams& p) {
  VisitFloatDType(p.dtype, [&](auto t) { Score<decltype(t)>(p); });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace quire
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quire {

HWY_EXPORT(QuestScoresTarget);

void QuestScores(const QuestScoreParams& params) { HWY_DYNAMIC_DISPATCH(QuestScoresTarget)(params); }

}  // namespace quire
#endif

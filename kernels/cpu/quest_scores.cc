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

constexpr int kChannels = 256;  // whose queries are split at a time

// q [heads][dim] of kHeads heads, channels [begin, end), to split [channel − begin][head][2]: q⁺, q⁻.
template <int kHeads>
HWY_INLINE void SplitQueries(const float* HWY_RESTRICT q, int dim, int begin, int end, float* HWY_RESTRICT split) {
  for (int c = begin; c < end; ++c) {
    for (int h = 0; h < kHeads; ++h, split += 2) {
      const float x = q[int64_t{h} * dim + c];
      const bool negative = x < 0;  // a NaN goes on as q⁺: what max makes of it differs by machine
      split[0] = negative ? 0.0f : x;
      split[1] = negative ? x : 0.0f;
    }
  }
}

// Combines the scores of kHeads heads, from `head` on, into those of all groups, after what earlier heads left there.
template <int kHeads, typename T>
HWY_INLINE void ScoreGroups(const QuestScoreParams& p, int head) {
  const Pages d;
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(Pages()));
  constexpr int kVectors = kPagesPerGroup / kLanes;
  const int dim = p.k_dim;
  const int64_t max_offset = int64_t{dim} * kPagesPerGroup;
  const float* q = p.q + int64_t{head} * dim;
  HWY_ALIGN float split[kChannels * kHeads * 2];
  if (dim <= kChannels) SplitQueries<kHeads>(q, dim, 0, dim, split);
  ForMetaGroups<T>(p, [&](const T* group, const T* next, float* out) HWY_ATTR {
    VecF<Pages> sum[kHeads][kVectors];
    for (int h = 0; h < kHeads; ++h) {
      for (int v = 0; v < kVectors; ++v) sum[h][v] = hn::Zero(d);
    }
    for (int begin = 0; begin < dim; begin += kChannels) {
      const int end = HWY_MIN(dim, begin + kChannels);
      if (dim > kChannels) SplitQueries<kHeads>(q, dim, begin, end, split);
      const float* factors = split;
      for (int c = begin; c < end; ++c, factors += 2 * kHeads) {
        const int64_t at = int64_t{c} * kPagesPerGroup;
        Prefetch(next + at);
        Prefetch(next + max_offset + at);
        VecF<Pages> lo[kVectors], hi[kVectors];
        for (int v = 0; v < kVectors; ++v) {
          lo[v] = LoadElements(d, group + at + v * kLanes);
          hi[v] = LoadElements(d, group + max_offset + at + v * kLanes);
        }
        for (int h = 0; h < kHeads; ++h) {
          const auto plus = hn::Set(d, factors[2 * h]), minus = hn::Set(d, factors[2 * h + 1]);
          for (int v = 0; v < kVectors; ++v) {
            sum[h][v] = hn::MulAdd(minus, lo[v], hn::MulAdd(plus, hi[v], sum[h][v]));
          }
        }
      }
    }
    CombineHeads<kHeads>(p.reduce, sum, head == 0, out);
  });
}

template <typename T>
void Score(const QuestScoreParams& p) {
  ForHeadsByFour(p.heads, [&](auto heads, int h) { ScoreGroups<decltype(heads)::value, T>(p, h); });
  for (int g = 0; g < p.groups; ++g) FinishMean(p.reduce, p.heads, p.scores + int64_t{g} * kPagesPerGroup);
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

// A run is 16 pages of one channel: a vector of pages, 32 bytes in 16 bits. Runs are scattered over a group's block,
// which the machine's own prefetching can't follow, so the next group's are asked for while this one's are summed.
#include "kernels/cpu/hybrid_scores.h"

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
  const auto* base = static_cast<const T*>(p.meta);
  for (int g = 0; g < p.groups; ++g) {
    float* out = p.scores + int64_t{g} * kPagesPerGroup;
    if (p.group_ids[g] < 0 || p.num_runs == 0) {
      for (int i = 0; i < kPagesPerGroup; ++i) out[i] = std::numeric_limits<float>::quiet_NaN();
      continue;
    }
    const T* group = base + p.group_ids[g] * p.group_stride;
    const T* next = g + 1 < p.groups && p.group_ids[g + 1] >= 0 ? base + p.group_ids[g + 1] * p.group_stride : group;
    ForHeadsByFour(p.heads, [&](auto heads, int h) {
      ScoreGroup<decltype(heads)::value>(p, p.q + h * p.q_stride, group, next, h == 0, out);
    });
    FinishMean(p.reduce, p.heads, out);
  }
}

void HybridScoresTarget(const HybridScoreParams& p) {
  switch (p.dtype) {
    case DType::kF32: return Score<float>(p);
    case DType::kBF16: return Score<BF16>(p);
    default: return Score<F16>(p);
  }
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

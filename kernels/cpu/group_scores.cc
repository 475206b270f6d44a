// Here channels lie side by side, so a vector holds channels, and the sum over them ends in 16 partial sums (channel
// mod 16) whatever the machine's width; these are added pairwise. Channels past a multiple of 16 go through a padded
// copy.
#include "kernels/cpu/group_scores.h"

#include <algorithm>
#include <limits>

#include "kernels/cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/group_scores.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace quire {
namespace HWY_NAMESPACE {
namespace {

constexpr int kBlock = 16;
using Channels = hn::CappedTag<float, kBlock>;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(Channels()));
constexpr int kVectors = kBlock / kLanes;

// sum [kVectors] += the block's terms of the bound.
template <typename T>
HWY_INLINE void AddBlock(const float* q, const T* min, const T* max, VecF<Channels> (&sum)[kVectors]) {
  const Channels d;
  for (int v = 0; v < kVectors; ++v) {
    const auto qc = hn::LoadU(d, q + v * kLanes);
    const auto lo = LoadElements(d, min + v * kLanes);
    const auto hi = LoadElements(d, max + v * kLanes);
    const auto negative = hn::Lt(qc, hn::Zero(d));  // a NaN goes on as q⁺, as in quest's scores of pages
    const auto plus = hn::IfThenZeroElse(negative, qc), minus = hn::IfThenElseZero(negative, qc);
    sum[v] = hn::MulAdd(minus, lo, hn::MulAdd(plus, hi, sum[v]));
  }
}

template <typename T>
HWY_INLINE float Bound(const float* q, int dim, const T* over) {
  const Channels d;
  VecF<Channels> sum[kVectors];
  for (int v = 0; v < kVectors; ++v) sum[v] = hn::Zero(d);
  int c = 0;
  for (; c + kBlock <= dim; c += kBlock) AddBlock(q + c, over + c, over + dim + c, sum);
  if (c < dim) {
    float tail_q[kBlock] = {};
    T tail_min[kBlock] = {}, tail_max[kBlock] = {};
    std::copy(q + c, q + dim, tail_q);
    std::copy(over + c, over + dim, tail_min);
    std::copy(over + dim + c, over + 2 * dim, tail_max);
    AddBlock(tail_q, tail_min, tail_max, sum);
  }
  float part[kBlock];
  for (int v = 0; v < kVectors; ++v) hn::StoreU(sum[v], d, part + v * kLanes);
  for (int half = kBlock / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) part[i] += part[i + half];
  }
  return part[0];
}

template <typename T>
void Score(const GroupScoreParams& p) {
  const auto* base = static_cast<const T*>(p.over);
  for (int g = 0; g < p.groups; ++g) {
    if (p.group_ids[g] < 0) {
      p.scores[g] = std::numeric_limits<float>::quiet_NaN();
      continue;
    }
    const T* over = base + p.group_ids[g] * p.group_stride;
    if (g + 4 < p.groups && p.group_ids[g + 4] >= 0) {
      const auto* ahead = reinterpret_cast<const char*>(base + p.group_ids[g + 4] * p.group_stride);
      for (size_t byte = 0; byte < 2 * sizeof(T) * static_cast<size_t>(p.k_dim); byte += 64) Prefetch(ahead + byte);
    }
    float total = Bound(p.q, p.k_dim, over);
    for (int h = 1; h < p.heads; ++h) {
      const float next = Bound(p.q + int64_t{h} * p.k_dim, p.k_dim, over);
      if (p.reduce != GroupReduce::kMax) {
        total += next;
      } else if (!(next <= total) && total == total) {  // a NaN stays
        total = next;
      }
    }
    p.scores[g] = p.reduce == GroupReduce::kMean ? total / static_cast<float>(p.heads) : total;
  }
}

void GroupScoresTarget(const GroupScoreParams& p) {
  VisitFloatDType(p.dtype, [&](auto t) { Score<decltype(t)>(p); });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace quire
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quire {

HWY_EXPORT(GroupScoresTarget);

void GroupScores(const GroupScoreParams& params) { HWY_DYNAMIC_DISPATCH(GroupScoresTarget)(params); }

}  // namespace quire
#endif

// Of a channel's bound q · (lo + step · code) the first part is the same for all pages of a group: it is summed up once a
// group, over vectors of channels in 16 partial sums whatever the machine's width. What is left is q · step times a code,
// over vectors of pages as in quest_scores.cc.
#include "kernels/cpu/code_scores.h"

#include <algorithm>
#include <limits>

#include "kernels/cpu/simd.h"
#include "kernels/metadata_codes.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/code_scores.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/page_scores-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace quire {
namespace HWY_NAMESPACE {
namespace {

constexpr int kChannels = 256;  // at a time
constexpr int kLanes = static_cast<int>(hn::MaxLanes(Pages()));
constexpr int kVectors = kPagesPerGroup / kLanes;

HWY_INLINE VecF<Pages> LoadCodes(const uint8_t* p) {
  const Pages d;
  const hn::RebindToSigned<Pages> di;
  const hn::RebindToUnsigned<Pages> du;
  const hn::Rebind<uint8_t, Pages> d8;
  return hn::ConvertTo(d, hn::BitCast(di, hn::PromoteTo(du, hn::LoadU(d8, p))));
}

// lo and step of channels [begin, end), the rest of the last 16 zero.
template <typename T>
HWY_INLINE void Ranges(const T* over, int dim, int begin, int end, float* HWY_RESTRICT lo, float* HWY_RESTRICT step) {
  for (int c = begin; c < end; ++c) {
    lo[c - begin] = ToFloat(over[c]);
    step[c - begin] = CodeStep(lo[c - begin], ToFloat(over[dim + c]));
  }
  for (int i = end - begin; i % kPagesPerGroup != 0; ++i) lo[i] = step[i] = 0;
}

// q · lo over the n channels (padded by zeros to 16).
HWY_INLINE float Dot(const float* q, const float* lo, int n) {
  const Pages d;
  VecF<Pages> sum[kVectors];
  for (int v = 0; v < kVectors; ++v) sum[v] = hn::Zero(d);
  int c = 0;
  for (; c + kPagesPerGroup <= n; c += kPagesPerGroup) {
    for (int v = 0; v < kVectors; ++v) {
      sum[v] = hn::MulAdd(hn::LoadU(d, q + c + v * kLanes), hn::LoadU(d, lo + c + v * kLanes), sum[v]);
    }
  }
  float part[kPagesPerGroup];
  for (int v = 0; v < kVectors; ++v) hn::StoreU(sum[v], d, part + v * kLanes);
  for (int half = kPagesPerGroup / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) part[i] += part[i + half];
  }
  for (; c < n; ++c) part[0] += q[c] * lo[c];
  return part[0];
}

// q [heads][dim] of kHeads heads, channels [begin, end), to split [channel − begin][head][2]: q⁺, q⁻. (A NaN goes on as q⁺.)
template <int kHeads>
HWY_INLINE void SplitQueries(const float* q, int dim, int begin, int end, float* HWY_RESTRICT split) {
  for (int c = begin; c < end; ++c) {
    for (int h = 0; h < kHeads; ++h, split += 2) {
      const float x = q[int64_t{h} * dim + c];
      split[0] = x < 0 ? 0.0f : x;
      split[1] = x < 0 ? x : 0.0f;
    }
  }
}

inline const uint8_t* CodesOf(const CodeScoreParams& p, int g) {
  return p.exact.group_ids[g] < 0 ? nullptr : p.codes + p.exact.group_ids[g] * p.exact.group_stride;
}

// Combines the scores of kHeads heads, from `head` on, into those of all groups that have codes, after what earlier heads
// left there.
template <int kHeads, typename T>
HWY_INLINE void ScoreGroups(const CodeScoreParams& p, int head) {
  const Pages d;
  const int dim = p.exact.k_dim;
  const int64_t max_offset = int64_t{dim} * kPagesPerGroup;
  const float* q = p.exact.q + int64_t{head} * dim;
  float split[kChannels * kHeads * 2];
  if (dim <= kChannels) SplitQueries<kHeads>(q, dim, 0, dim, split);
  for (int g = 0; g < p.exact.groups; ++g) {
    const uint8_t* codes = CodesOf(p, g);
    if (codes == nullptr || !HasCodes(codes, p.format)) continue;
    constexpr int kAhead = 2;
    const uint8_t* next = g + kAhead < p.exact.groups ? CodesOf(p, g + kAhead) : nullptr;
    if (next == nullptr) next = codes;
    const T* over = static_cast<const T*>(p.over) + p.exact.group_ids[g] * p.format.over_group_stride;
    float lo[kChannels], step[kChannels], factors[kChannels * kHeads * 2], base[kHeads] = {};
    VecF<Pages> sum[kHeads][kVectors];
    for (int h = 0; h < kHeads; ++h) {
      for (int v = 0; v < kVectors; ++v) sum[h][v] = hn::Zero(d);
    }
    for (int begin = 0; begin < dim; begin += kChannels) {
      const int end = HWY_MIN(dim, begin + kChannels);
      if (dim > kChannels) SplitQueries<kHeads>(q, dim, begin, end, split);
      Ranges(over, dim, begin, end, lo, step);
      for (int h = 0; h < kHeads; ++h) base[h] += Dot(q + int64_t{h} * dim + begin, lo, end - begin);
      for (int c = 0; c < end - begin; ++c) {
        for (int i = 0; i < 2 * kHeads; ++i) factors[c * 2 * kHeads + i] = split[c * 2 * kHeads + i] * step[c];
      }
      const float* f = factors;
      for (int c = begin; c < end; ++c, f += 2 * kHeads) {
        const int64_t at = int64_t{c} * kPagesPerGroup;
        if (c % 2 == 0) Prefetch(next + 2 * at);
        VecF<Pages> min[kVectors], max[kVectors];
        for (int v = 0; v < kVectors; ++v) {
          min[v] = LoadCodes(codes + at + v * kLanes);
          max[v] = LoadCodes(codes + max_offset + at + v * kLanes);
        }
        for (int h = 0; h < kHeads; ++h) {
          const auto plus = hn::Set(d, f[2 * h]), minus = hn::Set(d, f[2 * h + 1]);
          for (int v = 0; v < kVectors; ++v) {
            sum[h][v] = hn::MulAdd(minus, min[v], hn::MulAdd(plus, max[v], sum[h][v]));
          }
        }
      }
    }
    for (int h = 0; h < kHeads; ++h) {
      for (int v = 0; v < kVectors; ++v) sum[h][v] = hn::Add(sum[h][v], hn::Set(d, base[h]));
    }
    CombineHeads<kHeads>(p.exact.reduce, sum, head == 0, p.exact.scores + int64_t{g} * kPagesPerGroup);
  }
}

template <typename T>
void Score(const CodeScoreParams& p) {
  const QuestScoreParams& e = p.exact;
  ForHeadsByFour(e.heads, [&](auto heads, int h) { ScoreGroups<decltype(heads)::value, T>(p, h); });
  for (int g = 0; g < e.groups; ++g) {
    float* out = e.scores + int64_t{g} * kPagesPerGroup;
    const uint8_t* codes = CodesOf(p, g);
    if (codes == nullptr) {
      std::fill(out, out + kPagesPerGroup, std::numeric_limits<float>::quiet_NaN());
    } else if (HasCodes(codes, p.format)) {
      FinishMean(e.reduce, e.heads, out);
    } else {
      QuestScoreParams one = e;
      one.group_ids = e.group_ids + g;
      one.groups = 1;
      one.scores = out;
      QuestScores(one);
    }
  }
}

void CodeScoresTarget(const CodeScoreParams& p) {
  VisitFloatDType(p.exact.dtype, [&](auto t) { Score<decltype(t)>(p); });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace quire
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quire {

HWY_EXPORT(CodeScoresTarget);

void CodeScores(const CodeScoreParams& params) { HWY_DYNAMIC_DISPATCH(CodeScoresTarget)(params); }

}  // namespace quire
#endif

// A word of K is the same few channels of one token, and a page has a word's tokens side by side: the chosen words are
// runs of page_size · 4 bytes (a line each at page size 16), and a vector holds tokens. Runs are scattered over a page,
// which the machine's own prefetching can't follow, so pages further on are asked for while this one is summed.
#include "kernels/cpu/sparq_scores.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/sparq_scores.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/attention_decode_loops-inl.h"
#include "kernels/cpu/page_scores-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace quire {
namespace HWY_NAMESPACE {
namespace {

constexpr float kMinusInf = -std::numeric_limits<float>::infinity();
constexpr int kBlock = 16;  // slots
constexpr int kAhead = 2;   // pages: what is asked for while a page is summed
using Slots = hn::CappedTag<float, kBlock>;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(Slots()));
constexpr int kVectors = kBlock / kLanes;

// scores[h][0 … kRun vectors) of the slots from `slot` on. q: from the first of the kHeads heads.
template <int kHeads, int kRun, typename T, class D>
HWY_INLINE void ScoreSlots(D d, const SparqScoreParams& p, const float* q, const T* page, const T* ahead, int slot,
                           float (*HWY_RESTRICT scores)[kBlock], int at) {
  constexpr int kWord = decode::kWord<T>;
  constexpr int kStep = static_cast<int>(hn::MaxLanes(D()));
  VecF<D> sum[kHeads][kRun];
  for (int h = 0; h < kHeads; ++h) {
    for (int v = 0; v < kRun; ++v) sum[h][v] = hn::Zero(d);
  }
  for (int i = 0; i < p.num_words; ++i) {
    const int64_t offset = (int64_t{p.words[i]} * p.page_size + slot) * kWord;
    Prefetch(ahead + offset);
    decode::AddWords<kHeads, kRun>(d, page + offset, q + int64_t{i} * p.heads * kWord, sum);
  }
  for (int h = 0; h < kHeads; ++h) {
    for (int v = 0; v < kRun; ++v) hn::StoreU(sum[h][v], d, scores[h] + at + v * kStep);
  }
}

// Takes a block of scores into a running maximum and sum.
HWY_INLINE void AddToSoftmax(const float* HWY_RESTRICT scores, float& max, float& sum) {
  const Slots d;
  VecF<Slots> x[kVectors];
  for (int v = 0; v < kVectors; ++v) x[v] = hn::LoadU(d, scores + v * kLanes);
  auto largest = x[0];
  for (int v = 1; v < kVectors; ++v) largest = hn::Max(largest, x[v]);
  const float now = std::max(max, hn::GetLane(hn::MaxOfLanes(d, largest)));
  float part[kBlock];
  for (int v = 0; v < kVectors; ++v) {
    hn::StoreU(ExpNonPositive(d, hn::Sub(x[v], hn::Set(d, now))), d, part + v * kLanes);
  }
  for (int half = kBlock / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) part[i] += part[i + half];
  }
  // Whatever a NaN made of the maximum, it is in the sum, and stays there.
  sum = part[0] + (sum == 0.0f ? 0.0f : sum * ExpNonPositive(max - now));
  max = now;
}

template <int kHeads, typename T>
HWY_INLINE void ScorePage(const SparqScoreParams& p, const float* q, const T* page, const T* ahead, int slots,
                          float* max, float* sum) {
  float scores[kHeads][kBlock];
  float running[kHeads], total[kHeads];
  for (int h = 0; h < kHeads; ++h) running[h] = kMinusInf, total[h] = 0;
  for (int slot = 0; slot < slots; slot += kBlock) {
    if (slot + kBlock <= p.page_size) {
      ScoreSlots<kHeads, kVectors>(Slots(), p, q, page, ahead, slot, scores, 0);
    } else {
      for (int i = 0; slot + i < slots; ++i) {
        ScoreSlots<kHeads, 1>(OneLane(), p, q, page, ahead, slot + i, scores, i);
      }
    }
    for (int h = 0; h < kHeads; ++h) {
      std::fill(scores[h] + std::min(kBlock, slots - slot), scores[h] + kBlock, kMinusInf);
      AddToSoftmax(scores[h], running[h], total[h]);
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    max[h * p.head_stride] = running[h];
    sum[h * p.head_stride] = total[h];
  }
}

template <typename T>
void Score(const SparqScoreParams& p) {
  constexpr int kWord = decode::kWord<T>;
  const auto* base = static_cast<const T*>(p.k);
  for (int i = 0; i < p.pages; ++i) {
    if (p.page_ids[i] < 0 || p.num_words == 0) {
      for (int h = 0; h < p.heads; ++h) {
        p.max[h * p.head_stride + i] = kMinusInf;
        p.sum[h * p.head_stride + i] = p.num_words == 0 ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
      }
      continue;
    }
    const T* page = base + p.page_ids[i] * p.page_stride;
    const T* ahead =
        i + kAhead < p.pages && p.page_ids[i + kAhead] >= 0 ? base + p.page_ids[i + kAhead] * p.page_stride : page;
    const int slots = i + 1 < p.pages ? p.page_size : p.last_slots;
    ForHeadsByFour(p.heads, [&](auto heads, int h) {
      ScorePage<decltype(heads)::value>(p, p.q + h * kWord, page, ahead, slots, p.max + h * p.head_stride + i,
                                        p.sum + h * p.head_stride + i);
    });
  }
}

void SparqScoresTarget(const SparqScoreParams& p) {
  VisitFloatDType(p.dtype, [&](auto t) { Score<decltype(t)>(p); });
}

// sum [page] becomes the page's weight against the head's maximum.
template <class D>
HWY_INLINE void Weigh(D d, const float* max, float largest, float* sum) {
  const auto weight = ExpNonPositive(d, hn::Sub(hn::LoadU(d, max), hn::Set(d, largest)));
  hn::StoreU(hn::Mul(hn::LoadU(d, sum), weight), d, sum);
}

void SparqMergeTarget(const float* max, float* sum, int heads, int pages, int64_t head_stride, float* scores) {
  const Slots d;
  std::fill_n(scores, pages, 0.0f);
  for (int h = 0; h < heads; ++h, max += head_stride, sum += head_stride) {
    float largest = kMinusInf;
    for (int i = 0; i < pages; ++i) {
      if (sum[i] == sum[i]) largest = std::max(largest, max[i]);
    }
    // Finite where sum is a number; a page that weighs nothing stays 0, one that is NaN stays NaN.
    if (largest == kMinusInf) largest = 0;
    int i = 0;
    for (; i + kLanes <= pages; i += kLanes) Weigh(d, max + i, largest, sum + i);
    for (; i < pages; ++i) Weigh(OneLane(), max + i, largest, sum + i);
    double total = 0;
    for (i = 0; i < pages; ++i) {
      if (sum[i] == sum[i]) total += sum[i];
    }
    const float share = total > 0 ? static_cast<float>(1 / total) : 0.0f;
    for (i = 0; i < pages; ++i) scores[i] += sum[i] * share;
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace quire
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quire {

HWY_EXPORT(SparqScoresTarget);
HWY_EXPORT(SparqMergeTarget);

void SparqScores(const SparqScoreParams& params) { HWY_DYNAMIC_DISPATCH(SparqScoresTarget)(params); }

void SparqMerge(const float* max, float* sum, int heads, int pages, int64_t head_stride, float* scores) {
  HWY_DYNAMIC_DISPATCH(SparqMergeTarget)(max, sum, heads, pages, head_stride, scores);
}

}  // namespace quire
#endif

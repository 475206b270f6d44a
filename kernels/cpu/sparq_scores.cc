// A word of K is the same few channels of one token, and a page has a word's tokens side by side: the chosen words are
// runs of page_size · 4 bytes (a line each at page size 16), and a vector holds tokens. Runs are scattered over a page,
// which the machine's own prefetching can't follow, so pages further on are asked for while this one is summed. What a
// line costs that way is what bounds all this.
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
constexpr int kBlock = 16;   // slots
constexpr int kStripe = 64;  // slots whose scores are kept until their maximum is known
constexpr int64_t kAheadBytes = 4 << 10;  // of runs: between what is asked for and what is summed
using Slots = hn::CappedTag<float, kBlock>;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(Slots()));
constexpr int kVectors = kBlock / kLanes;
// Blocks that are summed side by side where a page has them; a single vector's sums would wait for one another.
constexpr int kSideBySide = kVectors == 1 ? 2 : 1;

// scores[h][0 … kRun vectors) of the slots from `slot` on. q: from the first of the kHeads heads.
template <int kHeads, int kRun, typename T, class D>
HWY_INLINE void ScoreSlots(D d, const SparqScoreParams& p, const float* q, const T* page, const T* ahead, int slot,
                           float (*HWY_RESTRICT scores)[kStripe], int at) {
  constexpr int kWord = decode::kWord<T>;
  constexpr int kStep = static_cast<int>(hn::MaxLanes(D()));
  VecF<D> sum[1][kHeads][kRun];
  for (int h = 0; h < kHeads; ++h) {
    for (int v = 0; v < kRun; ++v) sum[0][h][v] = hn::Zero(d);
  }
  for (int i = 0; i < p.num_words; ++i) {
    const int64_t offset = (int64_t{p.words[i]} * p.page_size + slot) * kWord;
    for (int v = 0; v < kRun; v += kBlock / kStep) Prefetch(ahead + offset + int64_t{v} * kStep * kWord);
    decode::AddWords<kHeads, kRun>(d, page + offset, q + int64_t{i} * p.heads * kWord, sum);
  }
  for (int h = 0; h < kHeads; ++h) {
    for (int v = 0; v < kRun; ++v) hn::StoreU(sum[0][h][v], d, scores[h] + at + v * kStep);
  }
}

// The sum of a vector's lanes, halves onto each other: with SumBlock the same bits for every width.
template <class D>
HWY_INLINE float SumHalves(D, VecF<D> x) {
#if HWY_TARGET != HWY_SCALAR
  if constexpr (hn::MaxLanes(D()) > 1) {
    const hn::Half<D> half;
    return SumHalves(half, hn::Add(hn::LowerHalf(half, x), hn::UpperHalf(half, x)));
  }
#endif
  return hn::GetLane(x);
}

HWY_INLINE float SumBlock(VecF<Slots> (&x)[kVectors]) {
  for (int half = kVectors / 2; half > 0; half /= 2) {
    for (int v = 0; v < half; ++v) x[v] = hn::Add(x[v], x[v + half]);
  }
  return SumHalves(Slots(), x[0]);
}

// Takes `blocks` blocks of scores into a running maximum and sum: lanes are summed over the blocks first. Nothing of it
// goes through memory, for there are as many sums as pages times heads.
HWY_INLINE void AddToSoftmax(const float* HWY_RESTRICT scores, int blocks, float& max, float& sum) {
  const Slots d;
  auto largest = hn::Set(d, max);
  for (int i = 0; i < blocks * kVectors; ++i) largest = hn::Max(largest, hn::LoadU(d, scores + i * kLanes));
  const auto now = hn::MaxOfLanes(d, largest);
  VecF<Slots> part[kVectors];
  for (int v = 0; v < kVectors; ++v) part[v] = hn::Zero(d);
  for (int i = 0; i < blocks; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      const auto x = hn::LoadU(d, scores + i * kBlock + v * kLanes);
      part[v] = hn::Add(part[v], ExpNonPositive(d, hn::Sub(x, now)));
    }
  }
  // Whatever a NaN made of the maximum, it is in the sum, and stays there.
  const float next = hn::GetLane(now);
  sum = SumBlock(part) + (sum == 0.0f ? 0.0f : sum * ExpNonPositive(max - next));
  max = next;
}

// One page. keep: where its scores go too, [kHeads] rows of `slots` floats, scores_stride apart; nullable.
template <int kHeads, typename T>
HWY_INLINE void ScorePage(const SparqScoreParams& p, const float* q, const T* page, const T* ahead, int slots,
                          float* max, float* sum, float* keep) {
  float scores[kHeads][kStripe];
  float running[kHeads], total[kHeads];
  for (int h = 0; h < kHeads; ++h) running[h] = kMinusInf, total[h] = 0;
  for (int begin = 0; begin < slots; begin += kStripe) {
    const int end = std::min(slots, begin + kStripe), blocks = (end - begin + kBlock - 1) / kBlock;
    int slot = begin;
    for (; slot + kSideBySide * kBlock <= std::min(p.page_size, begin + kStripe) && slot < end;
         slot += kSideBySide * kBlock) {
      ScoreSlots<kHeads, kSideBySide * kVectors>(Slots(), p, q, page, ahead, slot, scores, slot - begin);
    }
    for (; slot + kBlock <= p.page_size && slot < end; slot += kBlock) {
      ScoreSlots<kHeads, kVectors>(Slots(), p, q, page, ahead, slot, scores, slot - begin);
    }
    for (; slot < end; ++slot) ScoreSlots<kHeads, 1>(OneLane(), p, q, page, ahead, slot, scores, slot - begin);
    for (int h = 0; h < kHeads; ++h) {
      if (keep != nullptr) std::copy_n(scores[h], end - begin, keep + h * p.scores_stride + begin);
      if ((end - begin) % kBlock != 0) std::fill(scores[h] + end - begin, scores[h] + blocks * kBlock, kMinusInf);
      AddToSoftmax(scores[h], blocks, running[h], total[h]);
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    max[h * p.head_stride] = running[h];
    sum[h * p.head_stride] = total[h];
  }
}

template <typename T>
void Score(const SparqScoreParams& p) {
  const auto* base = static_cast<const T*>(p.k);
  const int64_t page_bytes = std::max<int64_t>(1, int64_t{p.num_words} * p.page_size * 4);
  const int further = static_cast<int>(std::max<int64_t>(1, kAheadBytes / page_bytes));  // pages
  for (int i = 0; i < p.pages; ++i) {
    if (p.page_ids[i] < 0 || p.num_words == 0) {
      for (int h = 0; h < p.heads; ++h) {
        p.max[h * p.head_stride + i] = kMinusInf;
        p.sum[h * p.head_stride + i] = p.num_words == 0 ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
        if (p.scores != nullptr) {
          std::fill_n(p.scores + h * p.scores_stride + int64_t{i} * p.page_size, p.page_size, kMinusInf);
        }
      }
      continue;
    }
    const T* page = base + p.page_ids[i] * p.page_stride;
    const int then = i + further;
    const T* ahead = then < p.pages && p.page_ids[then] >= 0 ? base + p.page_ids[then] * p.page_stride : page;
    const int slots = i + 1 < p.pages ? p.page_size : p.last_slots;
    ForHeadsByFour(p.heads, [&](auto heads, int h) {
      float *max = p.max + h * p.head_stride + i, *sum = p.sum + h * p.head_stride + i;
      float* keep = p.scores == nullptr ? nullptr : p.scores + h * p.scores_stride + int64_t{i} * p.page_size;
      ScorePage<decltype(heads)::value>(p, p.q + h * decode::kWord<T>, page, ahead, slots, max, sum, keep);
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

void SparqMergeTarget(const float* max, float* sum, int heads, int pages, int64_t head_stride, float* scores,
                      SparqSoftmax* softmax) {
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
    for (i = 0; i < pages; ++i) {
      sum[i] *= share;
      scores[i] += sum[i];
    }
    if (softmax != nullptr) softmax[h] = {largest, share};
  }
}

void SparqWeighTarget(float* scores, int heads, int64_t count, int64_t stride, const SparqSoftmax* softmax,
                      float* weights) {
  const Slots d;
  for (int h = 0; h < heads; ++h) {
    float* x = scores + h * stride;
    const float largest = softmax[h].max, share = softmax[h].share;
    const auto weigh = [&](auto tag, int64_t i) {
      const auto e = ExpNonPositive(tag, hn::Sub(hn::LoadU(tag, x + i), hn::Set(tag, largest)));
      const auto w = hn::Mul(e, hn::Set(tag, share));
      hn::StoreU(w, tag, x + i);
      hn::StoreU(h == 0 ? w : hn::Add(hn::LoadU(tag, weights + i), w), tag, weights + i);
    };
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) weigh(d, i);
    for (; i < count; ++i) weigh(OneLane(), i);
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
HWY_EXPORT(SparqWeighTarget);

void SparqScores(const SparqScoreParams& params) { HWY_DYNAMIC_DISPATCH(SparqScoresTarget)(params); }

void SparqMerge(const float* max, float* sum, int heads, int pages, int64_t head_stride, float* scores,
                SparqSoftmax* softmax) {
  HWY_DYNAMIC_DISPATCH(SparqMergeTarget)(max, sum, heads, pages, head_stride, scores, softmax);
}

void SparqWeigh(float* scores, int heads, int64_t count, int64_t stride, const SparqSoftmax* softmax, float* weights) {
  HWY_DYNAMIC_DISPATCH(SparqWeighTarget)(scores, heads, count, stride, softmax, weights);
}

}  // namespace quire
#endif

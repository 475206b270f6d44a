// The inner loops of decode attention for one Highway target: q·k of one page and its weighted sum of V, for up to four
// heads at a time, and what of memory is asked for meanwhile. Queries and weights are laid out as the loops read them,
// [word][head][element of the word]; a word vector of K or V is loaded and widened once for all heads of a call. Which
// page, which heads and which blocks come next is attention_decode-inl.h's business.
#if defined(QUIRE_KERNELS_CPU_ATTENTION_DECODE_LOOPS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef QUIRE_KERNELS_CPU_ATTENTION_DECODE_LOOPS_INL_H_
#undef QUIRE_KERNELS_CPU_ATTENTION_DECODE_LOOPS_INL_H_
#else
#define QUIRE_KERNELS_CPU_ATTENTION_DECODE_LOOPS_INL_H_
#endif

#include <cstring>
#include <type_traits>

#include "hwy/highway.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace quire {
namespace HWY_NAMESPACE {
namespace decode {

using FullF = hn::ScalableTag<float>;

// Vector registers: 32 of them, or 16.
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128 || HWY_TARGET == HWY_SSE2
inline constexpr bool kManyRegisters = false;
#else
inline constexpr bool kManyRegisters = true;
#endif

// Words per 32 bits of T.
template <typename T>
inline constexpr int kWord = 4 / static_cast<int>(sizeof(T));

// Loads kVectors adjacent word vectors into e[v][0 … kWord).
template <int kVectors, typename T, class D>
HWY_INLINE void LoadWordVectors(D d, const T* p, VecF<D> (&e)[kVectors][kWord<T>]) {
  constexpr int kStep = static_cast<int>(hn::MaxLanes(D())) * kWord<T>;
  for (int v = 0; v < kVectors; ++v) {
    if constexpr (kWord<T> == 1) {
      LoadWords(d, p + v * kStep, e[v][0]);
    } else {
      LoadWords(d, p + v * kStep, e[v][0], e[v][1]);
    }
  }
}

// Walks the block that is asked for while another one is worked on, as many bytes a step as are worked on.
struct AheadWalk {
  const char* at;

  template <int kBytes>
  HWY_INLINE void Ask() {
    if constexpr (kBytes >= 64) {  // narrower steps are odd shapes' and go without
      for (int line = 0; line < kBytes; line += 64) Prefetch(at + line);
      at += kBytes;
    }
  }
};

// sum[h][v] += factor of head h · word vector v, for each element of a word. factors: [kHeads][w]. kCareful: a factor
// of 0 takes nothing, even from an inf or a NaN. sum: one for all elements of a word, or one for each.
template <int kHeads, int kVectors, bool kCareful = false, int kSums, typename T, class D>
HWY_INLINE void AddWords(D d, const T* p, const float* factors, VecF<D> (&sum)[kSums][kHeads][kVectors]) {
  VecF<D> e[kVectors][kWord<T>];
  LoadWordVectors<kVectors>(d, p, e);
  for (int w = 0; w < kWord<T>; ++w) {
    for (int h = 0; h < kHeads; ++h) {
      const float factor = factors[h * kWord<T> + w];
      if (kCareful && factor == 0.0f) continue;
      const auto f = hn::Set(d, factor);
      for (int v = 0; v < kVectors; ++v) sum[w % kSums][h][v] = hn::MulAdd(f, e[v][w], sum[w % kSums][h][v]);
    }
  }
}

// q·k of kHeads heads with kVectors vectors of slots, from slot `slot` of a page. k: the page's [k_dim / w][slot][w].
// q: [k_dim / w][kStride heads][w], from the first of the kHeads heads. scores[h * score_stride + slot …].
template <int kHeads, int kVectors, int kStride, typename T, class D>
HWY_INLINE void ScoreSlots(D d, const T* HWY_RESTRICT k, AheadWalk& ahead, int page_size, int k_dim, int slot,
                           const float* HWY_RESTRICT q, float scale, float* HWY_RESTRICT scores, int64_t score_stride) {
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(D()));
  constexpr int kStep = 4 * kVectors * kLanes;  // bytes of a step
  // A single vector's sums would wait for one another: there the elements of a word have sums of their own.
  constexpr int kSums = kVectors == 1 ? kWord<T> : 1;
  VecF<D> sum[kSums][kHeads][kVectors];
  for (int w = 0; w < kSums; ++w) {
    for (int h = 0; h < kHeads; ++h) {
      for (int v = 0; v < kVectors; ++v) sum[w][h][v] = hn::Zero(d);
    }
  }
  k += int64_t{slot} * kWord<T>;
  const int64_t stride = int64_t{page_size} * kWord<T>;
  constexpr int kQuery = kWord<T> * kStride;
  const int words = k_dim / kWord<T>;
  int i = 0;
  for (; i + 4 <= words; i += 4, k += 4 * stride, q += 4 * kQuery) {
    ahead.template Ask<kStep>();
    AddWords<kHeads, kVectors>(d, k, q, sum);
    ahead.template Ask<kStep>();
    AddWords<kHeads, kVectors>(d, k + stride, q + kQuery, sum);
    ahead.template Ask<kStep>();
    AddWords<kHeads, kVectors>(d, k + 2 * stride, q + 2 * kQuery, sum);
    ahead.template Ask<kStep>();
    AddWords<kHeads, kVectors>(d, k + 3 * stride, q + 3 * kQuery, sum);
  }
  for (; i < words; ++i, k += stride, q += kQuery) {
    ahead.template Ask<kStep>();
    AddWords<kHeads, kVectors>(d, k, q, sum);
  }
  for (int h = 0; h < kHeads; ++h) {
    for (int v = 0; v < kVectors; ++v) {
      auto total = sum[0][h][v];
      if constexpr (kSums == 2) total = hn::Add(total, sum[1][h][v]);
      hn::StoreU(hn::Mul(total, hn::Set(d, scale)), d, scores + h * score_stride + slot + v * kLanes);
    }
  }
}

template <int kHeads, typename T>
HWY_NOINLINE void ScorePage(const T* k, const void* next, int page_size, int k_dim, const float* q, float scale,
                            float* scores, int64_t score_stride) {
  const FullF d;
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(FullF()));
  AheadWalk ahead{static_cast<const char*>(next)};
  int slot = 0;
  for (; slot + 2 * kLanes <= page_size; slot += 2 * kLanes) {
    ScoreSlots<kHeads, 2, kHeads>(d, k, ahead, page_size, k_dim, slot, q, scale, scores, score_stride);
  }
  for (; slot + kLanes <= page_size; slot += kLanes) {
    ScoreSlots<kHeads, 1, kHeads>(d, k, ahead, page_size, k_dim, slot, q, scale, scores, score_stride);
  }
  for (; slot < page_size; ++slot) {  // odd page sizes: one head and one slot at a time, to keep the code small
    for (int h = 0; h < kHeads; ++h) {
      ScoreSlots<1, 1, kHeads>(OneLane(), k, ahead, page_size, k_dim, slot, q + h * kWord<T>, scale,
                               scores + h * score_stride, score_stride);
    }
  }
}

// acc[h][channel …] += Σ over the pages' slots of weight · v, kVectors vectors of channels. v: [count] pages'
// [slots / w][v_dim][w]; ahead: [count] blocks to ask for meanwhile. weights: [count][slots / w][kStride heads][w], from the
// first of the kHeads heads. kCareful: slots of weight 0 are left out even if V holds an inf or a NaN there (slots past
// the length, masked slots).
template <bool kCareful, int kHeads, int kVectors, int kStride, typename T, class D>
HWY_INLINE void AccumulateChannels(D d, const T* const* pages, const T* const* ahead, int count, int page_size,
                                   int v_dim, int channel, const float* HWY_RESTRICT weights,
                                   float* HWY_RESTRICT acc) {
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(D()));
  constexpr int kStep = 4 * kVectors * kLanes;  // bytes
  VecF<D> sum[1][kHeads][kVectors];
  for (int h = 0; h < kHeads; ++h) {
    for (int i = 0; i < kVectors; ++i) sum[0][h][i] = hn::LoadU(d, acc + int64_t{h} * v_dim + channel + i * kLanes);
  }
  const int64_t stride = int64_t{v_dim} * kWord<T>;
  constexpr int kWeights = kWord<T> * kStride;
  const int words = (page_size + kWord<T> - 1) / kWord<T>;
  for (int page = 0; page < count; ++page) {
    const T* HWY_RESTRICT v = pages[page] + int64_t{channel} * kWord<T>;
    AheadWalk walk{reinterpret_cast<const char*>(ahead[page]) + int64_t{channel} * 4 * words};
    int i = 0;
    for (; i + 4 <= words; i += 4, v += 4 * stride, weights += 4 * kWeights) {
      walk.template Ask<kStep>();
      AddWords<kHeads, kVectors, kCareful>(d, v, weights, sum);
      walk.template Ask<kStep>();
      AddWords<kHeads, kVectors, kCareful>(d, v + stride, weights + kWeights, sum);
      walk.template Ask<kStep>();
      AddWords<kHeads, kVectors, kCareful>(d, v + 2 * stride, weights + 2 * kWeights, sum);
      walk.template Ask<kStep>();
      AddWords<kHeads, kVectors, kCareful>(d, v + 3 * stride, weights + 3 * kWeights, sum);
    }
    for (; i < words; ++i, v += stride, weights += kWeights) {
      walk.template Ask<kStep>();
      AddWords<kHeads, kVectors, kCareful>(d, v, weights, sum);
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    for (int i = 0; i < kVectors; ++i) hn::StoreU(sum[0][h][i], d, acc + int64_t{h} * v_dim + channel + i * kLanes);
  }
}

template <bool kCareful, int kHeads, typename T>
HWY_NOINLINE void AccumulatePages(const T* const* v, const T* const* ahead, int count, int page_size, int v_dim,
                                  const float* weights, float* acc) {
  const FullF d;
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(FullF()));
  int c = 0;
  if constexpr (kManyRegisters) {  // a weight is broadcast once for twice as many channels
    for (; c + 4 * kLanes <= v_dim; c += 4 * kLanes) {
      AccumulateChannels<kCareful, kHeads, 4, kHeads>(d, v, ahead, count, page_size, v_dim, c, weights, acc);
    }
  }
  for (; c + 2 * kLanes <= v_dim; c += 2 * kLanes) {
    AccumulateChannels<kCareful, kHeads, 2, kHeads>(d, v, ahead, count, page_size, v_dim, c, weights, acc);
  }
  for (; c + kLanes <= v_dim; c += kLanes) {
    AccumulateChannels<kCareful, kHeads, 1, kHeads>(d, v, ahead, count, page_size, v_dim, c, weights, acc);
  }
  for (; c < v_dim; ++c) {
    for (int h = 0; h < kHeads; ++h) {
      AccumulateChannels<kCareful, 1, 1, kHeads>(OneLane(), v, ahead, count, page_size, v_dim, c,
                                                 weights + h * kWord<T>, acc + int64_t{h} * v_dim);
    }
  }
}

// out: [n / w][kHeads][w] of the rows in + h * stride, n elements each (a multiple of w).
template <int kHeads, int kWordSize>
HWY_INLINE void Interleave(const float* HWY_RESTRICT in, int64_t stride, int n, float* HWY_RESTRICT out) {
  using Word = std::conditional_t<kWordSize == 2, uint64_t, uint32_t>;
  const hn::ScalableTag<Word> d;
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(hn::ScalableTag<Word>()));
  const int words = n / kWordSize;
  const auto row = [&](int h) { return reinterpret_cast<const Word*>(in + h * stride); };
  auto* to = reinterpret_cast<Word*>(out);
  int i = 0;
  if constexpr (kHeads == 4) {
    for (; i + kLanes <= words; i += kLanes) {
      hn::StoreInterleaved4(hn::LoadU(d, row(0) + i), hn::LoadU(d, row(1) + i), hn::LoadU(d, row(2) + i),
                            hn::LoadU(d, row(3) + i), d, to + i * kHeads);
    }
  }
  for (; i < words; ++i) {
    for (int h = 0; h < kHeads; ++h) std::memcpy(to + i * kHeads + h, in + h * stride + i * kWordSize, sizeof(Word));
  }
}

// Covers `heads` heads by calls of f.Run<n>(first head), n 1 … 4.
template <class F>
HWY_INLINE void ForHeadBlocks(int heads, const F& f) {
  int h = 0;
  for (; h + 4 <= heads; h += 4) f.template Run<4>(h);
  switch (heads - h) {
    case 3: f.template Run<3>(h); break;
    case 2: f.template Run<2>(h); break;
    case 1: f.template Run<1>(h); break;
    default: break;
  }
}

template <typename T>
struct ScoreBlocks {
  const T* k;
  const void* ahead;
  int page_size, k_dim;
  const float* q;
  float scale;
  float* scores;
  int64_t stride;
  template <int kHeads>
  HWY_INLINE void Run(int h) const {
    ScorePage<kHeads>(k, ahead, page_size, k_dim, q + int64_t{h} * k_dim, scale, scores + h * stride, stride);
  }
};

// Heads of a block keep their place: block h … h + n of in is at h * out_stride of out.
template <int kWordSize>
struct InterleaveBlocks {
  const float* in;
  int64_t stride;
  int n;
  float* out;
  int64_t out_stride;
  template <int kHeads>
  HWY_INLINE void Run(int h) const {
    Interleave<kHeads, kWordSize>(in + h * stride, stride, n, out + h * out_stride);
  }
};

template <bool kCareful, typename T>
struct AccumulateBlocks {
  const T* const* v;
  const T* const* ahead;
  int count, page_size, v_dim;
  const float* weights;  // of the chunk: block h … h + n of heads at h * stride
  int64_t stride;
  int first_slot;  // of the first page, in the chunk
  float* acc;
  template <int kHeads>
  HWY_INLINE void Run(int h) const {
    AccumulatePages<kCareful, kHeads>(v, ahead, count, page_size, v_dim,
                                      weights + h * stride + int64_t{first_slot} * kHeads, acc + int64_t{h} * v_dim);
  }
};

}  // namespace decode
}  // namespace HWY_NAMESPACE
}  // namespace quire
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard

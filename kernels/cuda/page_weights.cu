// Two kernels. In the first a block has some pages of a (row, KV head) at a time: a thread takes a slot and its words of K, lanes
// side by side over slots, as a word's slots lie; scores stay in shared memory, from which a thread that takes a page and a
// head has its maximum and the sum of exp(score − maximum). The second has a list a block: the heads' softmaxes over their
// pages, and the pages' sums over the heads.
#include "kernels/cuda/page_weights.h"

#include <algorithm>

#include "kernels/cuda/attention_math.cuh"
#include "kernels/cuda/page_scores.h"
#include "kernels/cuda/simt.h"
#include "kernels/cuda/top_channels.cuh"

namespace quire::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kChunkSlots = 256;  // of a block at once, unless a page has more
constexpr int kMostStrip = 1024;  // of one page at once
constexpr int kBlocksOfAProcessor = 8;

// Where the parts of a block's shared memory begin, in bytes.
struct SumsLayout {
  size_t q;        // floats [words][w][heads] of the heads that are had at once
  size_t top;      // TopSumsBytes(all words), where some count
  size_t scores;   // floats [heads][chunk_pages · strip_slots]
  size_t ids;      // ints [chunk_pages] of the pages; −1: gone
  size_t slots;    // ints [chunk_pages] that hold tokens
  size_t words;    // ints [words], where some count
  size_t factors;  // floats [heads]
  size_t bytes;

  static constexpr SumsLayout Create(const PageFormat& f, int words, int heads, int chunk_pages, int strip_slots) {
    SumsLayout l = {};
    const auto take = [&](size_t numbers) {
      const size_t at = l.bytes;
      l.bytes += (sizeof(float) * numbers + 15) / 16 * 16;
      return at;
    };
    const auto all = static_cast<size_t>(f.k_dim / f.word), taken = words == 0 ? all : static_cast<size_t>(words);
    const auto pages = static_cast<size_t>(chunk_pages), at_once = static_cast<size_t>(heads);
    l.q = take(taken * static_cast<size_t>(f.word) * at_once);
    l.top = take(words == 0 ? 0 : TopSumsBytes(f.k_dim / f.word) / sizeof(float));
    l.scores = take(at_once * pages * static_cast<size_t>(strip_slots));
    l.ids = take(pages);
    l.slots = take(pages);
    l.words = take(words == 0 ? 0 : taken);
    l.factors = take(at_once);
    return l;
  }
};

// T: cache; kHeads: of the query group at once.
template <typename T, int kHeads>
struct PageSumsKernel {
  struct Params {
    PageWeightsParams p;
    PageWeightsConfig c;
    SumsLayout layout;
    uint32_t strip_magic;  // DivisionMagic(strip_slots)
  };
  static constexpr const char* kName = "page_sums";
  static constexpr int kMaxThreads = kThreads;
  static constexpr int kMinBlocks = 4;
  static constexpr int kWord = 4 / static_cast<int>(sizeof(T));

  template <typename N>
  QUIRE_DEVICE static N* At(size_t offset) {
    return reinterpret_cast<N*>(simt::SharedBytes() + offset);
  }
  QUIRE_DEVICE static float Size(float x) { return x < 0 ? -x : x; }

  // The words with the largest Σ|q|; returns how many.
  QUIRE_DEVICE static int ChooseWords(const Params& a, const float* q, int heads) {
    const int k_dim = a.p.table.format.k_dim;
    int* words = At<int>(a.layout.words);
    return TopSums(
        k_dim / kWord, a.p.words,
        [&](int word) {
          float size = 0;
          for (int h = 0; h < heads; ++h) {
            for (int i = 0; i < kWord; ++i) size += Size(q[int64_t{h} * k_dim + word * kWord + i]);
          }
          return size;
        },
        [&](int word, int place) { words[place] = word; }, At<uint32_t>(a.layout.top));
  }

  // Queries of up to kHeads heads times their factors, into shared memory. All threads; begins and ends with a barrier.
  QUIRE_DEVICE static void LoadQueries(const Params& a, const float* q, int heads, int count) {
    const int k_dim = a.p.table.format.k_dim;
    const int* words = At<int>(a.layout.words);
    float *factors = At<float>(a.layout.factors), *to = At<float>(a.layout.q);
    simt::SyncThreads();
    for (int h = simt::Warp(); h < kHeads; h += kThreads / simt::kWarpSize) {
      float factor = a.p.scale;
      if (a.p.words > 0 && h < heads) {
        const float* head = q + int64_t{h} * k_dim;
        float all = 0, there = 0;
        for (int c = simt::Lane(); c < k_dim; c += simt::kWarpSize) all += Size(head[c]);
        for (int i = simt::Lane(); i < count * kWord; i += simt::kWarpSize) there += Size(head[words[i / kWord] * kWord + i % kWord]);
        all = simt::WarpSum(all);
        there = simt::WarpSum(there);
        // Queries of zeros score 0 everywhere.
        factor = there == 0 ? 0.0f : 1.0f / simt::Sqrt(static_cast<float>(k_dim) * there / all);
      }
      if (simt::Lane() == 0) factors[h] = factor;
    }
    simt::SyncThreads();
    for (int i = simt::ThreadIndex(); i < count * kWord * kHeads; i += kThreads) {
      const int h = i % kHeads, channel = i / kHeads;  // of those that count
      const int word = a.p.words > 0 ? words[channel / kWord] : channel / kWord;
      to[i] = h < heads ? q[int64_t{h} * k_dim + word * kWord + channel % kWord] * factors[h] : 0.0f;
    }
    simt::SyncThreads();
  }

  // Of the slots [strip, strip + strip_slots) of n pages, for kHeads heads; those without a token are left out. keep: where the
  // first page's scores of the first of `heads` heads are kept; null: nowhere.
  QUIRE_DEVICE static void Scores(const Params& a, const T* base, int n, int strip, int count, int heads, float* keep) {
    const PageFormat& f = a.p.table.format;
    const int *ids = At<int>(a.layout.ids), *slots = At<int>(a.layout.slots), *words = At<int>(a.layout.words);
    const float* q = At<float>(a.layout.q);
    float* scores = At<float>(a.layout.scores);
    const int chunk_slots = a.c.chunk_pages * a.c.strip_slots;
    const int64_t step = int64_t{f.page_size} * kWord;
    const bool some = a.p.words > 0;
    for (int i = simt::ThreadIndex(); i < n * a.c.strip_slots; i += kThreads) {
      const int e = DivideByMagic(i, a.strip_magic), slot = strip + i - e * a.c.strip_slots;
      if (ids[e] < 0 || slot >= slots[e]) continue;
      const T* k = base + ids[e] * f.k_page_stride + slot * kWord;
      float sum[kHeads];
#pragma unroll
      for (int h = 0; h < kHeads; ++h) sum[h] = 0;
#pragma unroll 8
      for (int w = 0; w < count; ++w) {
        const uint32_t word = simt::LoadReadOnly<uint32_t>(k + (some ? words[w] : w) * step);
        const float* at = q + w * kWord * kHeads;
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
          if constexpr (kWord == 1) {
            sum[h] = simt::Fma(at[h], simt::BitsFloat(word), sum[h]);
          } else {
            sum[h] = simt::Fma(at[kHeads + h], simt::HighFloat<T>(word), simt::Fma(at[h], simt::LowFloat<T>(word), sum[h]));
          }
        }
      }
#pragma unroll
      for (int h = 0; h < kHeads; ++h) scores[h * chunk_slots + i] = sum[h];
      if (keep == nullptr) continue;
      float* at = keep + int64_t{e} * f.page_size + slot;
      const int64_t stride = int64_t{a.p.max_pages} * f.page_size;
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        if (h < heads) at[h * stride] = sum[h];
      }
    }
  }

  // The strip's part of each page's maximum and sum; the strips before it have left theirs.
  QUIRE_DEVICE static void Sums(const Params& a, int n, int strip, int heads, int count, int64_t at) {
    const int *ids = At<int>(a.layout.ids), *slots = At<int>(a.layout.slots);
    const int chunk_slots = a.c.chunk_pages * a.c.strip_slots;
    for (int item = simt::ThreadIndex(); item < n * kHeads; item += kThreads) {
      const int e = item / kHeads, h = item % kHeads;
      if (h >= heads) continue;
      const float* scores = At<float>(a.layout.scores) + h * chunk_slots + e * a.c.strip_slots;
      float& max_out = a.p.max[at + int64_t{h} * a.p.max_pages + e];
      float& sum_out = a.p.sum[at + int64_t{h} * a.p.max_pages + e];
      const float before = strip == 0 ? MinusInfinity() : max_out;
      float max = before, sum = strip == 0 ? 0.0f : sum_out;
      const int left = ids[e] < 0 ? 0 : slots[e] - strip;
      const int tokens = left < a.c.strip_slots ? left : a.c.strip_slots;
      // A NaN score isn't the maximum; it is in the sum, and stays there.
      for (int i = 0; i < tokens; ++i) max = scores[i] > max ? scores[i] : max;
      if (sum != 0) sum *= simt::Exp(before - max);
      for (int i = 0; i < tokens; ++i) sum += simt::Exp(scores[i] - max);
      max_out = max;
      sum_out = count == 0 ? QuietNan() : sum;
    }
  }

  QUIRE_DEVICE static void Run(const Params& a) {
    const PageWeightsParams& p = a.p;
    const PageFormat& f = p.table.format;
    const int kv_head = simt::BlockX(), row = simt::BlockZ(), seq = p.row_seq[row];
    if (seq < 0) return;
    const int64_t list = int64_t{row} * f.kv_heads + kv_head;
    const int length = p.row_len[row];
    const int pages = p.lists != nullptr ? p.counts[list] : (length + f.page_size - 1) / f.page_size;
    const int per_block = a.c.chunk_pages * a.c.chunks_per_block;
    const int begin = simt::BlockY() * per_block, end = begin + per_block < pages ? begin + per_block : pages;
    if (begin >= end) return;
    const int heads = p.q_heads / f.kv_heads;
    const float* q = p.q + row * p.q_stride + int64_t{kv_head} * heads * f.k_dim;
    const T* base = static_cast<const T*>(p.pages.k) + kv_head * f.k_head_stride;
    const int32_t* page_ids = p.table.page_ids + p.table.page_begin[seq];
    int *ids = At<int>(a.layout.ids), *slots = At<int>(a.layout.slots);
    const int count = p.words > 0 ? ChooseWords(a, q, heads) : f.k_dim / kWord;
    for (int first = 0; first < heads; first += kHeads) {
      LoadQueries(a, q + int64_t{first} * f.k_dim, heads - first, count);
      for (int chunk = begin; chunk < end; chunk += a.c.chunk_pages) {
        const int n = end - chunk < a.c.chunk_pages ? end - chunk : a.c.chunk_pages;
        for (int e = simt::ThreadIndex(); e < n; e += kThreads) {
          const int page = p.lists != nullptr ? p.lists[list * p.max_pages + chunk + e] : chunk + e;
          const int tokens = length - page * f.page_size;
          ids[e] = page_ids[page];
          slots[e] = tokens < f.page_size ? tokens : f.page_size;
        }
        simt::SyncThreads();
        for (int strip = 0; strip < f.page_size; strip += a.c.strip_slots) {
          const int64_t at = (list * heads + first) * p.max_pages + chunk;
          Scores(a, base, n, strip, count, heads - first,
                 p.token_scores == nullptr ? nullptr : p.token_scores + at * f.page_size);
          simt::SyncThreads();
          Sums(a, n, strip, heads - first, count, at);
          simt::SyncThreads();
        }
      }
    }
  }
};

struct MergePageSumsKernel {
  using Params = PageWeightsParams;
  static constexpr const char* kName = "merge_page_sums";
  static constexpr int kMaxThreads = 256;
  static constexpr int kMinBlocks = 2;
  struct Layout {
    float max[kMaxThreads / simt::kWarpSize], sum[kMaxThreads / simt::kWarpSize];
  };

  QUIRE_DEVICE static void Run(const Params& p) {
    auto& s = simt::Shared<Layout>();
    const PageFormat& f = p.table.format;
    const int row = simt::BlockY();
    if (p.row_seq[row] < 0) return;
    const int64_t list = int64_t{row} * f.kv_heads + simt::BlockX();
    const int pages = p.lists != nullptr ? p.counts[list] : (p.row_len[row] + f.page_size - 1) / f.page_size;
    const int heads = p.q_heads / f.kv_heads;
    float* weights = p.weights + list * p.max_pages;
    for (int h = 0; h < heads; ++h) {
      const float* max = p.max + (list * heads + h) * p.max_pages;
      float* sum = p.sum + (list * heads + h) * p.max_pages;
      float largest = MinusInfinity();
      for (int i = simt::ThreadIndex(); i < pages; i += kMaxThreads) {
        if (sum[i] == sum[i] && max[i] > largest) largest = max[i];
      }
      largest = simt::WarpMax(largest);
      if (simt::Lane() == 0) s.max[simt::Warp()] = largest;
      simt::SyncThreads();
      for (int w = 0; w < kMaxThreads / simt::kWarpSize; ++w) largest = s.max[w] > largest ? s.max[w] : largest;
      // Finite where a sum is a number; a page that weighs nothing stays 0, one that is NaN stays NaN.
      if (largest == MinusInfinity()) largest = 0;
      float total = 0;
      for (int i = simt::ThreadIndex(); i < pages; i += kMaxThreads) {
        const float weight = sum[i] * simt::Exp(max[i] - largest);
        sum[i] = weight;
        if (weight == weight) total += weight;
      }
      total = simt::BlockSum(total, s.sum);
      const float share = total > 0 ? 1.0f / total : 0.0f;
      for (int i = simt::ThreadIndex(); i < pages; i += kMaxThreads) {
        const float weight = sum[i] * share;
        sum[i] = weight;
        weights[i] = h == 0 ? weight : weights[i] + weight;
      }
      if (p.softmax != nullptr && simt::ThreadIndex() == 0) {
        p.softmax[2 * (list * heads + h)] = largest;
        p.softmax[2 * (list * heads + h) + 1] = share;
      }
    }
  }
};

}  // namespace

PageWeightsConfig PageWeightsConfig::For(const PageFormat& f, int rows, int q_heads, int words, int max_pages) {
  constexpr int kProcessors = 132;
  PageWeightsConfig c;
  c.heads_at_once = HeadsAtOnce(q_heads / f.kv_heads);
  c.chunk_pages = std::max(1, kChunkSlots / f.page_size);
  c.strip_slots = std::min(f.page_size, kMostStrip);
  const int chunks = std::max(1, (max_pages + c.chunk_pages - 1) / c.chunk_pages);
  const int64_t lists = std::max<int64_t>(1, int64_t{rows} * f.kv_heads);
  const auto parts = static_cast<int>(std::clamp<int64_t>(kBlocksOfAProcessor * kProcessors / lists, 1, chunks));
  c.chunks_per_block = (chunks + parts - 1) / parts;
  c.parts = (chunks + c.chunks_per_block - 1) / c.chunks_per_block;
  c.shared_bytes = SumsLayout::Create(f, words, c.heads_at_once, c.chunk_pages, c.strip_slots).bytes;
  return c;
}

std::string PageWeightsConfig::ToString() const {
  return std::to_string(heads_at_once) + " heads, chunks of " + std::to_string(chunk_pages) + " pages and " +
         std::to_string(strip_slots) + " slots a page, " + std::to_string(parts) + " parts of " +
         std::to_string(chunks_per_block) + " chunks, " + std::to_string(shared_bytes) + " B shared";
}

Status PageWeights(Stream stream, const PageWeightsParams& p) {
  const PageFormat& f = p.table.format;
  if (p.q_heads % f.kv_heads != 0) {
    return Internal("page weights: " + std::to_string(p.q_heads) + " query heads on " + std::to_string(f.kv_heads) + " KV heads");
  }
  const PageWeightsConfig c = PageWeightsConfig::For(f, p.rows, p.q_heads, p.words, p.max_pages);
  const SumsLayout layout = SumsLayout::Create(f, p.words, c.heads_at_once, c.chunk_pages, c.strip_slots);
  simt::LaunchShape shape;
  shape.grid_x = f.kv_heads;
  shape.grid_y = c.parts;
  shape.grid_z = p.rows;
  shape.threads = kThreads;
  shape.shared_bytes = c.shared_bytes;
  RETURN_IF_ERROR(VisitFloatDType(f.dtype, [&](auto t) {
    return VisitHeads(c.heads_at_once, [&](auto n) {
      return simt::Launch<PageSumsKernel<decltype(t), decltype(n)::value>>(shape, stream,
                                                                           {p, c, layout, DivisionMagic(c.strip_slots)});
    });
  }));
  shape = {};
  shape.grid_x = f.kv_heads;
  shape.grid_y = p.rows;
  shape.threads = MergePageSumsKernel::kMaxThreads;
  shape.shared_bytes = sizeof(MergePageSumsKernel::Layout);
  return simt::Launch<MergePageSumsKernel>(shape, stream, p);
}

}  // namespace quire::cuda

// Tokens are chosen in three launches: a thread a token sums its weights over the heads; the top-k of pages, with a token a page;
// and a block a list puts the tokens into lists of pages, each page by the thread of its first token. The correction is one
// launch, a block a list: a warp a head for alpha, a thread a channel for the mean.
#include "kernels/cuda/sparq.h"

#include "kernels/cuda/attention_math.cuh"
#include "kernels/cuda/radix_select.cuh"
#include "kernels/cuda/simt.h"
#include "kernels/cuda/top_pages.h"

namespace quire::cuda {
namespace {

// A token's weight in the softmax of one head. (list, head): of the query group's [rows][kv_heads][heads].
QUIRE_DEVICE float TokenWeight(const SparqRows& p, int64_t head, int token) {
  const float score = p.token_scores[head * p.max_pages * p.table.format.page_size + token];
  return simt::Exp(score - p.softmax[2 * head]) * p.softmax[2 * head + 1];
}

struct TokenWeightsKernel {
  using Params = TopTokensParams;
  static constexpr const char* kName = "token_weights";
  static constexpr int kMaxThreads = 256;
  static constexpr int kMinBlocks = 4;

  QUIRE_DEVICE static void Run(const Params& params) {
    const SparqRows& p = params.rows;
    const PageFormat& f = p.table.format;
    const int row = simt::BlockZ(), seq = p.row_seq[row];
    const int token = simt::BlockX() * kMaxThreads + simt::ThreadIndex();
    if (seq < 0 || token >= p.row_len[row]) return;
    const int heads = p.q_heads / f.kv_heads;
    const int64_t list = int64_t{row} * f.kv_heads + simt::BlockY();
    float weight = 0;
    for (int h = 0; h < heads; ++h) weight += TokenWeight(p, list * heads + h, token);
    if (p.table.page_ids[p.table.page_begin[seq] + token / f.page_size] < 0) weight = QuietNan();
    params.weights[list * p.max_pages * f.page_size + token] = weight;
  }
};

struct PagesOfTokensKernel {
  using Params = TopTokensParams;
  static constexpr const char* kName = "pages_of_tokens";
  static constexpr int kMaxThreads = 256;
  static constexpr int kMinBlocks = 2;

  QUIRE_DEVICE static void Run(const Params& params) {
    const SparqRows& p = params.rows;
    const SelectionView& s = params.selection;
    const int page_size = p.table.format.page_size, row = simt::BlockY(), seq = p.row_seq[row];
    const int64_t list = int64_t{row} * p.table.format.kv_heads + simt::BlockX();
    const int n = seq < 0 ? 0 : params.counts[list];
    const int32_t* tokens = params.tokens + list * params.max_tokens;
    const int32_t* ids = seq < 0 ? nullptr : p.table.page_ids + p.table.page_begin[seq];
    OrderedCompaction compaction(0);
    for (int base = 0; base < n; base += kMaxThreads) {
      const int i = base + simt::ThreadIndex();
      const int page = i < n ? tokens[i] / page_size : 0;
      const bool first = i < n && ids[page] >= 0 && (i == 0 || tokens[i - 1] / page_size != page);
      const int place = compaction.Place(first, false, simt::Shared<CompactionShared>());
      if (place < 0) continue;
      s.pages[list * s.max_pages + place] = page;
      uint64_t* mask = s.slot_mask + (list * s.max_pages + place) * s.mask_words;
      int next = i;
      for (int word = 0; word < s.mask_words; ++word) {
        uint64_t bits = 0;
        const int end = page * page_size + (word + 1) * 64;
        for (; next < n && tokens[next] < end && tokens[next] / page_size == page; ++next) {
          bits |= uint64_t{1} << ((tokens[next] - page * page_size) % 64);
        }
        mask[word] = bits;
      }
    }
    if (simt::ThreadIndex() == 0) s.counts[list] = compaction.count();
  }
};

template <typename T>
struct SparqCorrectKernel {
  using Params = SparqCorrectionParams;
  static constexpr const char* kName = "sparq_correct";
  static constexpr int kMaxThreads = 128;
  static constexpr int kMinBlocks = 4;
  static constexpr float kKnown = 1;  // the mark of a page whose sum is made; new entries are 0

  // The part of a head's softmax that the list holds; a warp.
  QUIRE_DEVICE static float Alpha(const Params& a, int64_t list, int64_t head) {
    const SparqRows& p = a.rows;
    const SelectionView& s = a.selection;
    const int page_size = p.table.format.page_size, n = s.counts[list];
    const int32_t* pages = s.pages + list * s.max_pages;
    float sum = 0;
    const auto add = [&](float weight) {
      if (weight == weight) sum += weight;
    };
    if (p.token_scores == nullptr) {
      for (int i = simt::Lane(); i < n; i += simt::kWarpSize) add(p.shares[head * p.max_pages + pages[i]]);
    } else {
      for (int e = simt::Lane(); e < n * page_size; e += simt::kWarpSize) {
        const int i = e / page_size, slot = e % page_size;
        const uint64_t word = s.slot_mask[(list * s.max_pages + i) * s.mask_words + slot / 64];
        if ((word >> (slot % 64) & 1) != 0) add(TokenWeight(p, head, pages[i] * page_size + slot));
      }
    }
    sum = simt::WarpSum(sum);
    return sum < 1 ? sum : 1.0f;
  }

  // Channel c of the first `slots` tokens of a page.
  QUIRE_DEVICE static float SumOfPage(const Params& a, int32_t id, int head, int slots, int c) {
    const PageFormat& f = a.rows.table.format;
    const T* v = static_cast<const T*>(a.rows.pages.v) + id * f.v_page_stride + head * f.v_head_stride;
    float sum = 0;
#pragma unroll 8
    for (int slot = 0; slot < slots; ++slot) sum += simt::ToFloat(v[f.VOffset(slot, c)]);
    return sum;
  }

  QUIRE_DEVICE static void Run(const Params& a) {
    const SparqRows& p = a.rows;
    const PageFormat& f = p.table.format;
    const int head = simt::BlockX(), row = simt::BlockY(), seq = p.row_seq[row];
    if (seq < 0) return;
    const int64_t list = int64_t{row} * f.kv_heads + head;
    const int group = p.q_heads / f.kv_heads, wanted = a.heads > 0 ? a.heads : p.q_heads;
    for (int h = simt::Warp(); h < group; h += kMaxThreads / simt::kWarpSize) {
      const int q_head = head * group + h - a.first_head;
      if (q_head < 0 || q_head >= wanted) continue;
      const float alpha = Alpha(a, list, list * group + h);
      if (simt::Lane() == 0) a.selection.alpha[int64_t{row} * wanted + q_head] = alpha;
    }

    const int length = p.row_len[row], full = length / f.page_size, rest = length - full * f.page_size;
    const int32_t* ids = p.table.page_ids + p.table.page_begin[seq];
    const PageHistory& history = a.history[row];
    float* sums = history.Head(head);  // [page][v_dim and a mark]
    const int64_t width = f.v_dim + 1;
    int known = full;
    while (known > 0 && sums[(known - 1) * width + f.v_dim] != kKnown) --known;
    simt::SyncThreads();  // all have looked before a mark is made
    for (int c = simt::ThreadIndex(); c < f.v_dim; c += kMaxThreads) {
      float sum = known == 0 ? 0.0f : sums[(known - 1) * width + c];
      for (int page = known; page < full; ++page) {
        if (ids[page] >= 0) sum += SumOfPage(a, ids[page], head, f.page_size, c);
        sums[page * width + c] = sum;
      }
      if (rest > 0 && ids[full] >= 0) sum += SumOfPage(a, ids[full], head, rest, c);
      a.selection.v_mean[list * f.v_dim + c] = sum / static_cast<float>(length);
    }
    for (int page = known + simt::ThreadIndex(); page < full; page += kMaxThreads) sums[page * width + f.v_dim] = kKnown;
  }
};

}  // namespace

Status TopTokens(Stream stream, const TopTokensParams& p) {
  const PageFormat& f = p.rows.table.format;
  const int most = p.rows.max_pages * f.page_size;
  simt::LaunchShape shape;
  shape.grid_x = (most + TokenWeightsKernel::kMaxThreads - 1) / TokenWeightsKernel::kMaxThreads;
  shape.grid_y = f.kv_heads;
  shape.grid_z = p.rows.rows;
  shape.threads = TokenWeightsKernel::kMaxThreads;
  RETURN_IF_ERROR(simt::Launch<TokenWeightsKernel>(shape, stream, p));
  SelectionView tokens;
  tokens.pages = p.tokens;
  tokens.counts = p.counts;
  tokens.max_pages = p.max_tokens;
  RETURN_IF_ERROR(TopPages(stream,
                           {.scores = p.weights,
                            .score_stride = most,
                            .rows = p.rows.rows,
                            .kv_heads = f.kv_heads,
                            .page_size = 1,
                            .budget = p.budget,
                            .row_seq = p.rows.row_seq,
                            .row_len = p.rows.row_len,
                            .selection = tokens},
                           most));
  shape = {};
  shape.grid_x = f.kv_heads;
  shape.grid_y = p.rows.rows;
  shape.threads = PagesOfTokensKernel::kMaxThreads;
  shape.shared_bytes = sizeof(CompactionShared);
  return simt::Launch<PagesOfTokensKernel>(shape, stream, p);
}

Status SparqCorrect(Stream stream, const SparqCorrectionParams& p) {
  simt::LaunchShape shape;
  shape.grid_x = p.rows.table.format.kv_heads;
  shape.grid_y = p.rows.rows;
  shape.threads = SparqCorrectKernel<float>::kMaxThreads;
  return VisitFloatDType(p.rows.table.format.dtype,
                         [&](auto t) { return simt::Launch<SparqCorrectKernel<decltype(t)>>(shape, stream, p); });
}

}  // namespace quire::cuda

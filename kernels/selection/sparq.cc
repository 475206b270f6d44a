// SparQ (Ribar et al., arXiv 2312.04985), whole pages: the r channels with the largest Σ|q| over a KV head's query
// group give an approximate softmax over all tokens, ŝ = softmax(q[r]·K[:, r]ᵀ / τ) with τ = √(d·‖q[r]‖₁/‖q‖₁) for each
// query head, and the pages with the largest Σ ŝ over their tokens and the group are read. Pages' K is read where it
// lies: channels go in words of 4 bytes, a word of all a page's tokens is one run, so no second copy of K is kept (its
// authors keep two).
//
// The authors' correction by the mean of V, (1 − α)·v̄, which they leave out for models with grouped heads, is left out
// here for all.
//
// Reads per step and KV head: r elements of each token's K, in runs of page_size · 4 bytes, then the budget's K and V.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/cpu/sparq_scores.h"
#include "kernels/cpu/top_k.h"
#include "kernels/selection/page_policy.h"
#include "kernels/selection/policies.h"

namespace quire {
namespace {

constexpr int kPagesPerTask = 64;

class SparqPolicy : public PagePolicy {
 public:
  SparqPolicy(const PageOptions& options, int page_size, int64_t channels)
      : PagePolicy(options, page_size), channels_(channels) {}

  std::string_view name() const override { return "sparq"; }
  PageDataNeeds Declare() const override { return {}; }

  size_t SelectWorkspace(const SelectParams& p) const override { return Memory(*this, p, nullptr).bytes; }

  int64_t SelectBytes(const SelectParams& p) const override {
    const PageFormat& f = p.table.format;
    int64_t tokens = 0;
    for (int row = 0; row < p.rows; ++row) tokens += p.row_len[row];
    return tokens * f.kv_heads * Words(f) * 4;
  }

  int64_t SelectLineBytes(const SelectParams& p) const override {
    const PageFormat& f = p.table.format;
    std::vector<int32_t> words(static_cast<size_t>(f.k_dim));
    std::vector<float> sizes(words.size());
    int64_t lines = 0;
    for (int row = 0; row < p.rows; ++row) {
      for (int head = 0; head < f.kv_heads; ++head) {
        const int count = TakeWords(p, row, head, sizes.data(), words.data());
        for (int page = 0; page < Pages(f, p.row_len[row]); ++page) {
          const int32_t id = PageIds(p, row)[page];
          const int64_t begin = (id * f.k_page_stride + head * f.k_head_stride) * ElementSize(f.dtype);
          if (id >= 0) lines += LinesOf(words.data(), count, begin, int64_t{f.page_size} * 4);
        }
      }
    }
    return lines * 64;
  }

  void Select(const Context& ctx, const SelectParams& p, SelectionView selection, void* workspace) const override {
    const PageFormat& f = p.table.format;
    CheckShape(p);
    const Memory memory(*this, p, workspace);
    const int64_t lists = int64_t{p.rows} * f.kv_heads;
    ctx.pool->ParallelFor(lists, [&](int64_t list, int) {
      const int row = static_cast<int>(list / f.kv_heads), head = static_cast<int>(list % f.kv_heads);
      int32_t* words = memory.words + list * memory.r;
      const int count = memory.counts[list] = TakeWords(p, row, head, memory.sizes + list * f.k_dim / f.word, words);
      GatherQueries(p, row, head, words, count, memory.q + list * memory.heads * memory.r * f.word);
    });
    const int parts = (memory.pages + kPagesPerTask - 1) / kPagesPerTask;
    // Neighbouring tasks take neighbouring KV heads of the same pages.
    ctx.pool->ParallelFor(lists * parts, [&](int64_t task, int) {
      const int head = static_cast<int>(task % f.kv_heads);
      const int row = static_cast<int>(task / f.kv_heads / parts);
      const int64_t list = int64_t{row} * f.kv_heads + head;
      const int pages = Pages(f, p.row_len[row]);
      const int first = static_cast<int>(task / f.kv_heads % parts) * kPagesPerTask;
      const int last = std::min(pages, first + kPagesPerTask);
      if (first >= last) return;
      SparqScoreParams s;
      s.dtype = f.dtype;
      s.q = memory.q + list * memory.heads * memory.r * f.word;
      s.heads = memory.heads;
      s.words = memory.words + list * memory.r;
      s.num_words = memory.counts[list];
      s.k = static_cast<const char*>(p.pages.k) + head * f.k_head_stride * ElementSize(f.dtype);
      s.page_stride = f.k_page_stride;
      s.page_ids = PageIds(p, row) + first;
      s.pages = last - first;
      s.page_size = f.page_size;
      s.last_slots = last < pages ? f.page_size : p.row_len[row] - (pages - 1) * f.page_size;
      s.max = memory.max + list * memory.heads * memory.pages + first;
      s.sum = memory.sum + list * memory.heads * memory.pages + first;
      s.head_stride = memory.pages;
      SparqScores(s);
    });
    ctx.pool->ParallelFor(lists, [&](int64_t list, int) {
      const int row = static_cast<int>(list / f.kv_heads);
      const int64_t at = list * memory.heads * memory.pages;
      float* scores = memory.scores + list * memory.pages;
      SparqMerge(memory.max + at, memory.sum + at, memory.heads, Pages(f, p.row_len[row]), memory.pages, scores);
      selection.counts[list] =
          Choose(p, row, scores, selection.pages + list * selection.max_pages, selection.max_pages);
    });
  }

 private:
  struct Memory {
    Memory(const SparqPolicy& policy, const SelectParams& p, void* workspace)
        : heads(p.q_heads / p.table.format.kv_heads), r(policy.Words(p.table.format)) {
      const PageFormat& f = p.table.format;
      for (int row = 0; row < p.rows; ++row) pages = std::max(pages, Pages(f, p.row_len[row]));
      const int64_t lists = int64_t{p.rows} * f.kv_heads;
      max = static_cast<float*>(workspace);
      const auto after = [&](float* begin, int64_t count) {
        bytes += sizeof(float) * static_cast<size_t>(count);
        return workspace == nullptr ? nullptr : begin + count;
      };
      sum = after(max, lists * heads * pages);
      scores = after(sum, lists * heads * pages);
      q = after(scores, lists * pages);
      sizes = after(q, lists * heads * r * f.word);
      words = reinterpret_cast<int32_t*>(after(sizes, lists * (f.k_dim / f.word)));
      counts = reinterpret_cast<int32_t*>(after(reinterpret_cast<float*>(words), lists * r));
      after(reinterpret_cast<float*>(counts), lists);
    }
    int heads, r, pages = 0;  // of a query group; words; of the longest row
    size_t bytes = 0;
    float *max, *sum;  // [lists][heads][pages]
    float* scores;     // [lists][pages]
    float* q;          // [lists][r][heads][w]
    float* sizes;      // [lists][k_dim / w]
    int32_t* words;    // [lists][r]
    int32_t* counts;   // [lists]
  };

  static int Pages(const PageFormat& f, int length) { return (length + f.page_size - 1) / f.page_size; }

  int Words(const PageFormat& f) const {
    return static_cast<int>((std::min<int64_t>(channels_, f.k_dim) + f.word - 1) / f.word);
  }

  // The words with the largest Σ|q|, ascending; one where a query is NaN is never among them. sizes [k_dim / w] is
  // scratch.
  int TakeWords(const SelectParams& p, int row, int head, float* sizes, int32_t* words) const {
    const PageFormat& f = p.table.format;
    const float* q = QueriesOf(p, row, head);
    std::fill_n(sizes, f.k_dim / f.word, 0.0f);
    for (int h = 0; h < p.q_heads / f.kv_heads; ++h, q += f.k_dim) {
      for (int c = 0; c < f.k_dim; ++c) sizes[c / f.word] += std::abs(q[c]);
    }
    return TopPages(sizes, f.k_dim / f.word, Words(f), 0, words);
  }

  // q / τ at the words, [word][heads][w].
  static void GatherQueries(const SelectParams& p, int row, int head, const int32_t* words, int count, float* out) {
    const PageFormat& f = p.table.format;
    const int heads = p.q_heads / f.kv_heads;
    const float* q = QueriesOf(p, row, head);
    for (int h = 0; h < heads; ++h, q += f.k_dim) {
      float all = 0, taken = 0;
      for (int c = 0; c < f.k_dim; ++c) all += std::abs(q[c]);
      for (int i = 0; i < count; ++i) {
        for (int w = 0; w < f.word; ++w) taken += std::abs(q[words[i] * f.word + w]);
      }
      // Queries of zeros score 0 everywhere.
      const float factor = taken == 0 ? 0.0f : 1 / std::sqrt(static_cast<float>(f.k_dim) * taken / all);
      for (int i = 0; i < count; ++i) {
        for (int w = 0; w < f.word; ++w) out[(int64_t{i} * heads + h) * f.word + w] = q[words[i] * f.word + w] * factor;
      }
    }
  }

  int64_t channels_;
};

}  // namespace

PolicyInfo SparqPolicyInfo() {
  return {"sparq", "Ribar et al., arXiv 2312.04985, by pages and without the mean of V",
          "n·channels elements of K, token_budget vectors of K and of V",
          std::string(kPageOptions) + ", channels (1 to head_dim, more is all; default 32)"};
}

Result<std::unique_ptr<AttentionPolicy>> MakeSparqPolicy(const PolicyOptions& options, int page_size) {
  OptionReader reader("sparq", options);
  ASSIGN_OR_RETURN(const PageOptions page_options, PageOptions::Read("sparq", &reader, page_size));
  int64_t channels = 32;
  RETURN_IF_ERROR(reader.Integer("channels", 1, int64_t{1} << 30, &channels));
  RETURN_IF_ERROR(reader.Finish());
  return std::unique_ptr<AttentionPolicy>(std::make_unique<SparqPolicy>(page_options, page_size, channels));
}

}  // namespace quire

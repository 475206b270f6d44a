// SparQ (Ribar et al., arXiv 2312.04985): the r channels with the largest Σ|q| over a KV head's query group give an
// approximate softmax over all tokens, ŝ = softmax(q[r]·K[:, r]ᵀ / τ) with τ = √(d·‖q[r]‖₁/‖q‖₁) for each query head.
// level=page reads the pages with the largest Σ ŝ over their tokens and the group; level=token, as published, the tokens
// with the largest Σ ŝ over the group, the last quarter of the budget always among them. Pages' K is read where it lies:
// channels go in words of 4 bytes, a word of all a page's tokens is one run, so no second copy of K is kept (its
// authors keep two).
//
// v_mean=on adds the authors' correction: y = α·attention + (1 − α)·v̄, α the part of a head's ŝ that is read, v̄ the mean
// of V over all tokens. They leave it out for models with grouped heads; so it is on where a KV head has one query head.
// Sums of V up to the end of each full page are kept as the sequence's history: they follow from the cache alone, made by
// the first step that finds them missing; what a partly filled page adds is summed at each step.
//
// Reads per step and KV head: r elements of each token's K, in runs of page_size · 4 bytes, then the budget's K and V;
// tokens of level=token may lie on as many pages, whose K and V are read whole. v_mean=on: a vector of floats and the last
// page's V.
#include "kernels/cuda/sparq.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "core/base/check.h"
#include "kernels/cpu/sparq_scores.h"
#include "kernels/cpu/top_k.h"
#include "kernels/cuda/page_weights.h"
#include "kernels/cuda/top_pages.h"
#include "kernels/dispatch/dispatch.h"
#include "kernels/selection/page_policy.h"
#include "kernels/selection/policies.h"

namespace quire {
namespace {

constexpr int kPagesPerTask = 64;

struct SparqOptions {
  int64_t channels = 32;
  bool tokens = false;  // level=token
  bool v_mean = false;
};

class SparqPolicy : public PagePolicy {
 public:
  SparqPolicy(const PageOptions& options, const SparqOptions& sparq, const PolicyShape& shape)
      : PagePolicy(options, shape.page_size), sparq_(sparq), v_dim_(shape.v_dim) {}

  std::string_view name() const override { return "sparq"; }
  PageDataNeeds Declare() const override {
    return {.history = sparq_.v_mean ? v_dim_ + 1 : 0,
            .mass = false,
            .slots = sparq_.tokens,
            .correction = sparq_.v_mean};
  }
  int MaxPages(int64_t length, int page_size) const override {
    if (!sparq_.tokens) return PagePolicy::MaxPages(length, page_size);
    return static_cast<int>(std::min((length + page_size - 1) / page_size, options().BudgetAt(length)));
  }
  // A page that is no longer full has its sum made anew.
  void Truncate(int64_t length, int page_size, PageHistory* history) const override {
    PagePolicy::Truncate(length / page_size * page_size, page_size, history);
    history->pages = (length + page_size - 1) / page_size;
  }

  size_t SelectWorkspace(const SelectParams& p) const override { return Memory(*this, p, nullptr).bytes; }

  int64_t SelectBytes(const SelectParams& p) const override {
    const PageFormat& f = p.table.format;
    int64_t tokens = 0;
    for (int row = 0; row < p.rows; ++row) tokens += p.row_len[row];
    return tokens * f.kv_heads * Words(f) * 4 + MeanBytes(p);
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
    return lines * 64 + MeanBytes(p);
  }

  bool RunsOnGpu() const override { return true; }

  void Select(const Context& ctx, const SelectParams& p, SelectionView selection, void* workspace) const override {
    CheckShape(p);
    const Memory memory(*this, p, workspace);
    Dispatch(
        ctx, [&] { SelectOnCpu(ctx, p, memory, selection); },
        [&](Stream stream) { return SelectOnGpu(stream, p, memory, selection); });
  }

 private:
  struct Memory {
    Memory(const SparqPolicy& policy, const SelectParams& p, void* workspace)
        : heads(p.q_heads / p.table.format.kv_heads), r(policy.Words(p.table.format)) {
      const PageFormat& f = p.table.format;
      pages = Pages(f, Longest(p));
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
      softmax = reinterpret_cast<SparqSoftmax*>(after(reinterpret_cast<float*>(counts), lists));
      token_scores = after(reinterpret_cast<float*>(softmax), 2 * lists * heads);
      if (!policy.sparq_.tokens) return;
      budget = policy.options().BudgetAt(Longest(p));
      weights = after(token_scores, lists * heads * pages * f.page_size);
      chosen = reinterpret_cast<int32_t*>(after(weights, lists * pages * f.page_size));
      after(reinterpret_cast<float*>(chosen), lists * budget);
    }
    int heads, r, pages = 0;  // of a query group; words; of the longest row
    int64_t budget = 0;       // tokens
    size_t bytes = 0;
    float *max, *sum;  // [lists][heads][pages]
    float* scores;     // [lists][pages]
    float* q;          // [lists][r][heads][w]
    float* sizes;      // [lists][k_dim / w]
    int32_t* words;    // [lists][r]
    int32_t* counts;   // [lists]
    SparqSoftmax* softmax;  // [lists][heads]
    // Of level=token:
    float* token_scores;         // [lists][heads][pages · page_size]
    float* weights = nullptr;    // [lists][pages · page_size]
    int32_t* chosen = nullptr;   // [lists][budget]
  };

  static int Pages(const PageFormat& f, int64_t length) {
    return static_cast<int>((length + f.page_size - 1) / f.page_size);
  }

  // Of a budget of tokens, which are pages of one there.
  PageBudget TokenBudget() const {
    const int64_t recent = std::max<int64_t>(1, options().recent_tokens);
    return PageBudget::Create(options().token_budget, options().sink_tokens, recent, 1, options().budget_share);
  }

  Status SelectOnGpu(Stream stream, const SelectParams& p, const Memory& memory, SelectionView selection) const {
    const PageFormat& f = p.table.format;
    float* softmax = reinterpret_cast<float*>(memory.softmax);
    float* token_scores = sparq_.tokens ? memory.token_scores : nullptr;
    RETURN_IF_ERROR(cuda::PageWeights(stream, {.q = p.q,
                                               .q_stride = p.q_stride,
                                               .rows = p.rows,
                                               .q_heads = p.q_heads,
                                               .row_seq = p.row_seq,
                                               .row_len = p.row_len,
                                               .pages = p.pages,
                                               .table = p.table,
                                               .words = Words(f),
                                               .max_pages = memory.pages,
                                               .max = memory.max,
                                               .sum = memory.sum,
                                               .weights = memory.scores,
                                               .token_scores = token_scores,
                                               .softmax = sparq_.tokens ? softmax : nullptr}));
    const cuda::SparqRows rows{.rows = p.rows,
                               .q_heads = p.q_heads,
                               .row_seq = p.row_seq,
                               .row_len = p.row_len,
                               .pages = p.pages,
                               .table = p.table,
                               .max_pages = memory.pages,
                               .shares = memory.sum,
                               .token_scores = token_scores,
                               .softmax = softmax};
    if (sparq_.tokens) {
      RETURN_IF_ERROR(cuda::TopTokens(stream, {.rows = rows,
                                               .budget = TokenBudget(),
                                               .weights = memory.weights,
                                               .tokens = memory.chosen,
                                               .counts = memory.counts,
                                               .max_tokens = static_cast<int>(memory.budget),
                                               .selection = selection}));
    } else {
      RETURN_IF_ERROR(cuda::TopPages(stream,
                                     {.scores = memory.scores,
                                      .score_stride = memory.pages,
                                      .rows = p.rows,
                                      .kv_heads = f.kv_heads,
                                      .page_size = f.page_size,
                                      .budget = Budget(),
                                      .row_seq = p.row_seq,
                                      .row_len = p.row_len,
                                      .page_ids = p.table.page_ids,
                                      .page_begin = p.table.page_begin,
                                      .selection = selection},
                                     memory.pages));
    }
    if (!sparq_.v_mean) return OkStatus();
    return cuda::SparqCorrect(
        stream,
        {.rows = rows, .history = p.history, .first_head = p.first_head, .heads = p.heads, .selection = selection});
  }

  void SelectOnCpu(const Context& ctx, const SelectParams& p, const Memory& memory, SelectionView selection) const {
    const PageFormat& f = p.table.format;
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
      if (sparq_.tokens) {
        s.scores_stride = int64_t{memory.pages} * f.page_size;
        s.scores = memory.token_scores + list * memory.heads * s.scores_stride + int64_t{first} * f.page_size;
      }
      SparqScores(s);
    });
    ctx.pool->ParallelFor(lists, [&](int64_t list, int) {
      const int row = static_cast<int>(list / f.kv_heads);
      const int64_t at = list * memory.heads * memory.pages;
      float* scores = memory.scores + list * memory.pages;
      SparqSoftmax* softmax = memory.softmax + list * memory.heads;
      SparqMerge(memory.max + at, memory.sum + at, memory.heads, Pages(f, p.row_len[row]), memory.pages, scores, softmax);
      if (sparq_.tokens) {
        ChooseTokens(p, list, memory, selection);
      } else {
        selection.counts[list] =
            Choose(p, row, scores, selection.pages + list * selection.max_pages, selection.max_pages);
      }
      if (sparq_.v_mean) Correct(p, list, memory, selection);
    });
  }

  int Words(const PageFormat& f) const {
    return static_cast<int>((std::min<int64_t>(sparq_.channels, f.k_dim) + f.word - 1) / f.word);
  }

  // The words with the largest Σ|q|, ascending; one where a query is NaN is never among them. sizes [k_dim / w] is
  // scratch.
  int TakeWords(const SelectParams& p, int row, int head, float* sizes, int32_t* words) const {
    const PageFormat& f = p.table.format;
    const float* q = QueriesOf(p, row, head);
    std::fill_n(sizes, f.k_dim / f.word, 0.0f);
    for (int h = 0; h < p.q_heads / f.kv_heads; ++h, q += f.k_dim) {
      for (int i = 0; i < f.k_dim / f.word; ++i) {
        for (int w = 0; w < f.word; ++w) sizes[i] += std::abs(q[i * f.word + w]);
      }
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

  // The list and masks of the tokens with the largest weights, the first and the last ones among them. What remains of
  // the list's token scores are the heads' weights.
  void ChooseTokens(const SelectParams& p, int64_t list, const Memory& m, const SelectionView& selection) const {
    const PageFormat& f = p.table.format;
    const int row = static_cast<int>(list / f.kv_heads), length = p.row_len[row];
    const int64_t stride = int64_t{m.pages} * f.page_size;
    float* weights = m.weights + list * stride;
    SparqWeigh(m.token_scores + list * m.heads * stride, m.heads, length, stride, m.softmax + list * m.heads, weights);
    const int32_t* ids = PageIds(p, row);
    for (int page = 0; page < Pages(f, length); ++page) {
      if (ids[page] >= 0) continue;
      std::fill_n(weights + int64_t{page} * f.page_size, f.page_size, std::numeric_limits<float>::quiet_NaN());
    }
    const ForcedPages forced = ForcedPages::Create(TokenBudget(), length, 1);  // of tokens
    int32_t* chosen = m.chosen + list * m.budget;
    const int taken =
        TopPages(weights + forced.sinks, forced.recent - forced.sinks, forced.free, forced.sinks, chosen);
    int32_t* pages = selection.pages + list * selection.max_pages;
    uint64_t* masks = selection.slot_mask + list * selection.max_pages * selection.mask_words;
    int count = 0;
    const auto add = [&](int token) {
      const int page = token / f.page_size, slot = token % f.page_size;
      if (ids[page] < 0) return;
      if (count == 0 || pages[count - 1] != page) {
        CHECK_LT(count, selection.max_pages);
        std::fill_n(masks + int64_t{count} * selection.mask_words, selection.mask_words, uint64_t{0});
        pages[count++] = page;
      }
      masks[int64_t{count - 1} * selection.mask_words + slot / 64] |= uint64_t{1} << (slot % 64);
    };
    for (int token = 0; token < forced.sinks; ++token) add(token);
    for (int i = 0; i < taken; ++i) add(chosen[i]);
    for (int token = forced.recent; token < length; ++token) add(token);
    selection.counts[list] = count;
  }

  // α of the list's heads that are asked for, and the mean of V.
  void Correct(const SelectParams& p, int64_t list, const Memory& m, const SelectionView& selection) const {
    const PageFormat& f = p.table.format;
    const int row = static_cast<int>(list / f.kv_heads), head = static_cast<int>(list % f.kv_heads);
    const int32_t* pages = selection.pages + list * selection.max_pages;
    const int wanted = p.heads > 0 ? p.heads : p.q_heads;
    for (int h = 0; h < m.heads; ++h) {
      const int q_head = head * m.heads + h - p.first_head;
      if (q_head < 0 || q_head >= wanted) continue;
      const float* shares = m.sum + (list * m.heads + h) * m.pages;
      const float* tokens =
          sparq_.tokens ? m.token_scores + (list * m.heads + h) * int64_t{m.pages} * f.page_size : nullptr;
      double alpha = 0;
      for (int i = 0; i < selection.counts[list]; ++i) {
        if (tokens == nullptr) {
          alpha += std::isnan(shares[pages[i]]) ? 0 : shares[pages[i]];
          continue;
        }
        const uint64_t* mask = selection.slot_mask + (list * selection.max_pages + i) * selection.mask_words;
        for (int slot = 0; slot < f.page_size; ++slot) {
          const float weight = tokens[int64_t{pages[i]} * f.page_size + slot];
          if ((mask[slot / 64] >> (slot % 64) & 1) != 0 && !std::isnan(weight)) alpha += weight;
        }
      }
      selection.alpha[int64_t{row} * wanted + q_head] = static_cast<float>(std::min(1.0, alpha));
    }
    MeanOfV(p, row, head, selection.v_mean + list * f.v_dim);
  }

  // From the sums up to each full page, which are made where they are missing; mean [v_dim].
  void MeanOfV(const SelectParams& p, int row, int head, float* mean) const {
    const PageFormat& f = p.table.format;
    CHECK_EQ(f.v_dim, v_dim_);
    CHECK(p.history != nullptr);
    const PageHistory& history = p.history[row];
    CHECK_EQ(history.width, v_dim_ + 1);
    const int length = p.row_len[row], full = length / f.page_size;
    const int32_t* ids = PageIds(p, row);
    float* sums = history.Head(head);  // [page][v_dim and a mark]
    const auto sum_of = [&](int page) { return sums + int64_t{page} * history.width; };
    int known = full;
    while (known > 0 && sum_of(known - 1)[v_dim_] != kKnown) --known;
    for (; known < full; ++known) {
      float* sum = sum_of(known);
      if (known == 0) {
        std::fill_n(sum, v_dim_, 0.0f);
      } else {
        std::copy_n(sum_of(known - 1), v_dim_, sum);
      }
      if (ids[known] >= 0) AddV(p, ids[known], head, f.page_size, sum);
      sum[v_dim_] = kKnown;
    }
    if (full == 0) {
      std::fill_n(mean, v_dim_, 0.0f);
    } else {
      std::copy_n(sum_of(full - 1), v_dim_, mean);
    }
    if (length % f.page_size != 0 && ids[full] >= 0) AddV(p, ids[full], head, length % f.page_size, mean);
    for (int c = 0; c < v_dim_; ++c) mean[c] /= static_cast<float>(length);
  }

  // sum [v_dim] += V of a page's first slots, which are added up first.
  static void AddV(const SelectParams& p, int32_t id, int head, int slots, float* sum) {
    const PageFormat& f = p.table.format;
    std::array<float, 256> part;
    VisitFloatDType(f.dtype, [&](auto zero) {
      using T = decltype(zero);
      const T* v = static_cast<const T*>(p.pages.v) + id * f.v_page_stride + head * f.v_head_stride;
      for (int begin = 0; begin < f.v_dim; begin += static_cast<int>(part.size())) {
        const int count = std::min<int>(f.v_dim - begin, static_cast<int>(part.size()));
        std::fill_n(part.begin(), count, 0.0f);
        for (int slot = 0; slot < slots; ++slot) {
          const T* token = v + f.VOffset(slot, begin);
          for (int c = 0; c < count; ++c) part[static_cast<size_t>(c)] += ToFloat(token[int64_t{c} * f.word]);
        }
        for (int c = 0; c < count; ++c) sum[begin + c] += part[static_cast<size_t>(c)];
      }
    });
  }

  int64_t MeanBytes(const SelectParams& p) const {
    const PageFormat& f = p.table.format;
    if (!sparq_.v_mean) return 0;
    int64_t bytes = 0;
    for (int row = 0; row < p.rows; ++row) {
      bytes += f.v_dim * (static_cast<int64_t>(sizeof(float)) + p.row_len[row] % f.page_size * ElementSize(f.dtype));
    }
    return bytes * f.kv_heads;
  }

  static constexpr float kKnown = 1;  // the mark of a page whose sum is made; new entries are 0

  SparqOptions sparq_;
  int v_dim_;
};

}  // namespace

PolicyInfo SparqPolicyInfo() {
  return {"sparq", "Ribar et al., arXiv 2312.04985, by pages or by tokens",
          "n·channels elements of K, token_budget vectors of K and of V",
          std::string(kPageOptions) +
              ", channels (1 to head_dim, more is all; default 32), level (page or token; default page. token: "
              "recent_tokens is a quarter of the budget by default), v_mean (on or off, the correction by the mean of V; "
              "default on where a KV head has one query head)"};
}

Result<std::unique_ptr<AttentionPolicy>> MakeSparqPolicy(const PolicyOptions& options, const PolicyShape& shape) {
  SparqOptions sparq;
  int level = 0, v_mean = shape.query_group == 1 ? 0 : 1;
  OptionReader reader("sparq", options);
  RETURN_IF_ERROR(reader.Integer("channels", 1, int64_t{1} << 30, &sparq.channels));
  RETURN_IF_ERROR(reader.Choice("level", {"page", "token"}, &level));
  RETURN_IF_ERROR(reader.Choice("v_mean", {"on", "off"}, &v_mean));
  sparq.tokens = level == 1;
  sparq.v_mean = v_mean == 0;
  const int unit = sparq.tokens ? 1 : shape.page_size;  // tokens are budgeted as pages of one
  ASSIGN_OR_RETURN(PageOptions page_options, PageOptions::Read("sparq", &reader, unit));
  RETURN_IF_ERROR(reader.Finish());
  if (sparq.tokens) {
    const int64_t quarter = page_options.token_budget / 4;
    PolicyOptions filled = options;
    filled.try_emplace("recent_tokens", std::to_string(quarter));
    filled.try_emplace("sink_tokens", std::to_string(std::min<int64_t>(shape.page_size, quarter)));
    OptionReader filled_reader("sparq", filled);
    ASSIGN_OR_RETURN(page_options, PageOptions::Read("sparq", &filled_reader, unit));
  }
  return std::unique_ptr<AttentionPolicy>(std::make_unique<SparqPolicy>(page_options, sparq, shape));
}

}  // namespace quire

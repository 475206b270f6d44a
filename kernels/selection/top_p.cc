// Twilight (Lin et al., arXiv 2502.02770), whole pages over any page policy: that policy chooses a loose set, a part of
// the length; the exact attention weights over the set's tokens, summed by pages and over the query group, say which of
// its pages are read: the fewest that together hold the share p of the weight. So the budget follows each head and
// step: few pages where attention is sharp, the whole set where it is flat. Forced pages are always in, and count.
//
// Reads per step and KV head: what the selector reads, K of the loose set, then K and V of what is left.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "core/base/check.h"
#include "kernels/cpu/sparq_scores.h"
#include "kernels/cuda/page_weights.h"
#include "kernels/cuda/top_pages.h"
#include "kernels/dispatch/dispatch.h"
#include "kernels/selection/page_policy.h"
#include "kernels/selection/policies.h"

namespace quire {
namespace {

constexpr int kPagesPerTask = 64;

class TopPPolicy : public PagePolicy {
 public:
  TopPPolicy(const PageOptions& options, int page_size, std::unique_ptr<AttentionPolicy> selector, double share)
      : PagePolicy(options, page_size), selector_(std::move(selector)), share_(share) {}

  std::string_view name() const override { return "top-p"; }
  PageDataNeeds Declare() const override {
    PageDataNeeds needs = selector_->Declare();
    needs.queries = true;
    return needs;
  }
  bool IsDense(int64_t length, int layer, int page_size) const override {
    return selector_->IsDense(length, layer, page_size);
  }
  int MaxPages(int64_t length, int page_size) const override { return selector_->MaxPages(length, page_size); }
  void Remember(const AttentionMass& mass, int head, PageHistory* history) const override {
    selector_->Remember(mass, head, history);
  }
  Status RememberOnGpu(Stream stream, const RememberParams& params) const override {
    return selector_->RememberOnGpu(stream, params);
  }
  void Fork(const PageHistory& from, PageHistory* to) const override { selector_->Fork(from, to); }
  void Truncate(int64_t length, int page_size, PageHistory* history) const override {
    selector_->Truncate(length, page_size, history);
  }

  size_t SelectWorkspace(const SelectParams& p) const override {
    return Memory(*this, p, nullptr).bytes + selector_->SelectWorkspace(p);
  }
  int64_t SelectBytes(const SelectParams& p) const override { return selector_->SelectBytes(p) + LooseBytes(p); }
  int64_t SelectLineBytes(const SelectParams& p) const override {
    return selector_->SelectLineBytes(p) + LooseBytes(p);
  }

  bool RunsOnGpu() const override { return selector_->RunsOnGpu(); }

  void Select(const Context& ctx, const SelectParams& p, SelectionView selection, void* workspace) const override {
    CheckShape(p);
    const Memory m(*this, p, workspace);
    SelectionView loose;
    loose.pages = m.loose;
    loose.counts = m.counts;
    loose.max_pages = m.pages;
    selector_->Select(ctx, p, loose, m.selector);
    Dispatch(
        ctx, [&] { CutOnCpu(ctx, p, m, selection); }, [&](Stream stream) { return CutOnGpu(stream, p, m, selection); });
  }

 private:
  // All [lists] of the rows; the same for every call, so that a worker needs none of its own. The GPU leaves out what it
  // has no use for.
  struct Memory {
    Memory(const TopPPolicy& policy, const SelectParams& p, void* workspace)
        : base(static_cast<char*>(workspace)), heads(p.q_heads / p.table.format.kv_heads) {
      const PageFormat& f = p.table.format;
      pages = policy.MaxPages(Longest(p), f.page_size);
      const int64_t lists = int64_t{p.rows} * f.kv_heads;
      loose = Take<int32_t>(lists * pages);
      counts = Take<int32_t>(lists);
      ids = Take<int32_t>(lists * pages);
      order = Take<int32_t>(lists * pages);
      words = Take<int32_t>(f.k_dim / f.word);
      q = Take<float>(lists * heads * f.k_dim);
      max = Take<float>(lists * heads * pages);
      sum = Take<float>(lists * heads * pages);
      mass = Take<float>(lists * pages);
      selector = Take<char>(0);
    }
    template <typename T>
    T* Take(int64_t count) {
      T* begin = base == nullptr ? nullptr : reinterpret_cast<T*>(base + bytes);
      bytes += (sizeof(T) * static_cast<size_t>(count) + 63) / 64 * 64;
      return begin;
    }
    char* base;
    int heads, pages = 0;  // of a query group; of the longest loose list
    size_t bytes = 0;
    int32_t* loose;    // [lists][pages] the selector's lists
    int32_t* counts;   // [lists]
    int32_t* ids;      // [lists][pages] their pages' places
    int32_t* order;    // [lists][pages] scratch
    int32_t* words;    // [k_dim / w] all of them
    float* q;          // [lists][k_dim / w][heads][w], scaled
    float *max, *sum;  // [lists][heads][pages]
    float* mass;       // [lists][pages] by the loose list
    void* selector;    // the selector's own workspace
  };

  static float ScaleOf(const SelectParams& p) {
    return p.scale > 0 ? p.scale : 1 / std::sqrt(static_cast<float>(p.table.format.k_dim));
  }

  Status CutOnGpu(Stream stream, const SelectParams& p, const Memory& m, SelectionView selection) const {
    RETURN_IF_ERROR(cuda::PageWeights(stream, {.q = p.q,
                                               .q_stride = p.q_stride,
                                               .rows = p.rows,
                                               .q_heads = p.q_heads,
                                               .row_seq = p.row_seq,
                                               .row_len = p.row_len,
                                               .pages = p.pages,
                                               .table = p.table,
                                               .scale = ScaleOf(p),
                                               .lists = m.loose,
                                               .counts = m.counts,
                                               .max_pages = m.pages,
                                               .max = m.max,
                                               .sum = m.sum,
                                               .weights = m.mass}));
    return cuda::TopShare(stream, {.weights = m.mass,
                                   .lists = m.loose,
                                   .counts = m.counts,
                                   .list_stride = m.pages,
                                   .rows = p.rows,
                                   .kv_heads = p.table.format.kv_heads,
                                   .page_size = p.table.format.page_size,
                                   .budget = Budget(),
                                   .share = share_,
                                   .row_seq = p.row_seq,
                                   .row_len = p.row_len,
                                   .selection = selection});
  }

  void CutOnCpu(const Context& ctx, const SelectParams& p, const Memory& m, SelectionView selection) const {
    const PageFormat& f = p.table.format;
    const int64_t lists = int64_t{p.rows} * f.kv_heads;
    std::iota(m.words, m.words + f.k_dim / f.word, 0);
    ctx.pool->ParallelFor(lists, [&](int64_t list, int) {
      const int row = static_cast<int>(list / f.kv_heads), head = static_cast<int>(list % f.kv_heads);
      for (int i = 0; i < m.counts[list]; ++i) {
        m.ids[list * m.pages + i] = PageIds(p, row)[m.loose[list * m.pages + i]];
      }
      GatherQueries(p, row, head, m.q + list * m.heads * f.k_dim);
    });
    const int parts = (m.pages + kPagesPerTask - 1) / kPagesPerTask;
    ctx.pool->ParallelFor(lists * parts, [&](int64_t task, int) {
      const int64_t list = task / parts;
      const int row = static_cast<int>(list / f.kv_heads), head = static_cast<int>(list % f.kv_heads);
      const int first = static_cast<int>(task % parts) * kPagesPerTask;
      const int last = std::min(m.counts[list], first + kPagesPerTask);
      if (first >= last) return;
      const int32_t* pages = m.loose + list * m.pages;
      const int partial = (p.row_len[row] - 1) / f.page_size;
      SparqScoreParams s;
      s.dtype = f.dtype;
      s.q = m.q + list * m.heads * f.k_dim;
      s.heads = m.heads;
      s.words = m.words;
      s.num_words = f.k_dim / f.word;
      s.k = static_cast<const char*>(p.pages.k) + head * f.k_head_stride * ElementSize(f.dtype);
      s.page_stride = f.k_page_stride;
      s.page_ids = m.ids + list * m.pages + first;
      s.pages = last - first;
      s.page_size = f.page_size;
      s.last_slots = pages[last - 1] == partial ? p.row_len[row] - partial * f.page_size : f.page_size;
      s.max = m.max + list * m.heads * m.pages + first;
      s.sum = m.sum + list * m.heads * m.pages + first;
      s.head_stride = m.pages;
      SparqScores(s);
    });
    ctx.pool->ParallelFor(lists, [&](int64_t list, int) {
      const int row = static_cast<int>(list / f.kv_heads);
      const int64_t at = list * m.heads * m.pages;
      float* mass = m.mass + list * m.pages;
      SparqMerge(m.max + at, m.sum + at, m.heads, m.counts[list], m.pages, mass);
      CHECK_LE(m.counts[list], selection.max_pages);
      selection.counts[list] = Cut(p.row_len[row], m.loose + list * m.pages, mass, m.counts[list],
                                   m.order + list * m.pages, selection.pages + list * selection.max_pages);
    });
  }

  int64_t LooseBytes(const SelectParams& p) const {
    const PageFormat& f = p.table.format;
    int64_t pages = 0;
    for (int row = 0; row < p.rows; ++row) pages += MaxPages(p.row_len[row], f.page_size);
    return pages * f.kv_heads * f.page_size * f.k_dim * ElementSize(f.dtype);
  }

  static void GatherQueries(const SelectParams& p, int row, int head, float* out) {
    const PageFormat& f = p.table.format;
    const int heads = p.q_heads / f.kv_heads;
    const float scale = ScaleOf(p);
    const float* q = QueriesOf(p, row, head);
    for (int h = 0; h < heads; ++h, q += f.k_dim) {
      for (int c = 0; c < f.k_dim; ++c) out[(int64_t{c / f.word} * heads + h) * f.word + c % f.word] = q[c] * scale;
    }
  }

  // The fewest of the listed pages that hold the share of the mass, forced ones first; equal masses by index, NaN
  // never. order: scratch [count]. Returns how many went to out, ascending.
  int Cut(int64_t length, const int32_t* pages, const float* mass, int count, int32_t* order, int32_t* out) const {
    const ForcedPages forced = Forced(length);
    double total = 0, held = 0;
    int free = 0;
    for (int i = 0; i < count; ++i) {
      const bool is_forced = pages[i] < forced.sinks || pages[i] >= forced.recent;
      if (!std::isnan(mass[i])) total += mass[i];
      if (is_forced && !std::isnan(mass[i])) held += mass[i];
      if (!is_forced && !std::isnan(mass[i])) order[free++] = i;
    }
    std::sort(order, order + free,
              [&](int32_t a, int32_t b) { return mass[a] != mass[b] ? mass[a] > mass[b] : a < b; });
    int taken = 0;
    while (taken < free && held < share_ * total) held += mass[order[taken++]];
    std::sort(order, order + taken);
    int listed = 0, next = 0;
    for (int i = 0; i < count; ++i) {
      const bool is_forced = pages[i] < forced.sinks || pages[i] >= forced.recent;
      const bool take = is_forced || (next < taken && order[next] == i);
      if (take && !is_forced) ++next;
      if (take) out[listed++] = pages[i];
    }
    return listed;
  }

  std::unique_ptr<AttentionPolicy> selector_;
  double share_;
};

}  // namespace

PolicyInfo TopPPolicyInfo() {
  return {
      "top-p", "Lin et al. (Twilight), arXiv 2502.02770, by pages",
      "the selector's, K of loose·n tokens, K and V of the pages that hold the share p of their attention",
      "p (0 to 1; default 0.95), selector (quest, hierarchical, hybrid, sparq, swa, h2o or tova; default quest), loose "
      "(its budget as a part of the length, 0.01 to 1, token_budget at least; default 0.25), and the selector's but "
      "budget_share"};
}

Result<std::unique_ptr<AttentionPolicy>> MakeTopPPolicy(const PolicyOptions& options, int page_size) {
  static const std::initializer_list<std::string_view> kSelectors = {"quest", "hierarchical", "hybrid", "sparq",
                                                                     "swa",   "h2o",          "tova"};
  OptionReader reader("top-p", options);
  double share = 0.95, loose = 0.25;
  int selector = 0;
  RETURN_IF_ERROR(reader.Number("p", 0, 1, &share));
  RETURN_IF_ERROR(reader.Number("loose", 0.01, 1, &loose));
  RETURN_IF_ERROR(reader.Choice("selector", kSelectors, &selector));
  if (options.contains("budget_share")) {
    return InvalidArgument("attention policy 'top-p' has no option 'budget_share'; 'loose' is that of its selector");
  }
  if (options.contains("evict")) {
    return InvalidArgument("attention policy 'top-p' has no option 'evict': it chooses anew at each step from all pages");
  }
  AttentionSpec inner{std::string(kSelectors.begin()[selector]), options};
  for (const char* own : {"p", "loose", "selector"}) inner.options.erase(own);
  inner.options["budget_share"] = std::to_string(loose);
  auto made = MakePolicy(inner, page_size);
  if (!made.ok()) return made.status().WithContext("attention policy 'top-p'");
  if (const PageDataNeeds needs = (*made)->Declare(); needs.slots || needs.correction) {
    return InvalidArgument("attention policy 'top-p': its selector chooses whole pages; leave out level and v_mean");
  }
  // What is forced is as the selector has it.
  PolicyOptions shared;
  for (const char* name : {"token_budget", "sink_tokens", "recent_tokens", "dense_layers", "budget_share"}) {
    if (inner.options.contains(name)) shared[name] = inner.options[name];
  }
  OptionReader shared_reader("top-p", shared);
  const bool half_recent = inner.name == "swa" || inner.name == "h2o";
  ASSIGN_OR_RETURN(const PageOptions page_options,
                   PageOptions::Read("top-p", &shared_reader, page_size,
                                     half_recent ? RecentDefault::kHalfOfTheBudget : RecentDefault::kOnePage));
  return std::unique_ptr<AttentionPolicy>(
      std::make_unique<TopPPolicy>(page_options, page_size, std::move(made).value(), share));
}

}  // namespace quire

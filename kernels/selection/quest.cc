// Quest (Tang et al., arXiv 2406.10774): per page an upper bound of q·k from the channel-wise min and max of its keys;
// the pages with the largest bounds are read. One set per KV head, from the scores of its query group reduced by max,
// mean or sum. Sinks, the recent window and the partly filled page are always in and count towards the budget.
//
// Reads per step and KV head: 2 vectors a page (n / page_size · 2 · k_dim elements), then the budget's K and V.
#include <algorithm>
#include <limits>

#include "core/base/check.h"
#include "kernels/cpu/quest_scores.h"
#include "kernels/cpu/top_k.h"
#include "kernels/selection/budget.h"
#include "kernels/selection/options.h"
#include "kernels/selection/policies.h"

namespace quire {
namespace {

constexpr int kGroupsPerTask = 16;  // 256 pages; 128 KB of metadata at d 128 in 16 bits

struct QuestOptions {
  int64_t token_budget = 2048;
  int64_t sink_tokens = 0;
  int64_t recent_tokens = 0;
  int64_t dense_layers = 2;
  GroupReduce reduce = GroupReduce::kMax;
};

class QuestPolicy : public AttentionPolicy {
 public:
  QuestPolicy(const QuestOptions& options, int page_size) : options_(options), page_size_(page_size) {}

  std::string_view name() const override { return "quest"; }
  int64_t token_budget() const override { return options_.token_budget; }
  PageDataNeeds Declare() const override { return {.min_max = true}; }

  bool IsDense(int64_t length, int layer, int) const override {
    return options_.token_budget >= length || layer < options_.dense_layers;
  }

  int MaxPages(int64_t length, int page_size) const override {
    const int64_t pages = (length + page_size - 1) / page_size;
    return static_cast<int>(std::min<int64_t>(pages, Budget(page_size).budget));
  }

  size_t SelectWorkspace(const SelectParams& p) const override {
    return sizeof(float) * kPagesPerGroup * static_cast<size_t>(Groups(p)) * p.rows * p.table.format.kv_heads;
  }

  void Select(const Context& ctx, const SelectParams& p, SelectionView selection, void* workspace) const override {
    const PageFormat& f = p.table.format;
    CHECK(p.pages.meta != nullptr && p.table.group_ids != nullptr);
    CHECK_EQ(f.page_size, page_size_);
    CHECK_EQ(p.q_heads % f.kv_heads, 0);
    auto* scores = static_cast<float*>(workspace);
    const int groups = Groups(p);
    const int parts = (groups + kGroupsPerTask - 1) / kGroupsPerTask;
    const int64_t lists = int64_t{p.rows} * f.kv_heads;
    // Neighbouring tasks take neighbouring KV heads of the same metadata groups.
    ctx.pool->ParallelFor(lists * parts, [&](int64_t task, int) {
      const int head = static_cast<int>(task % f.kv_heads);
      const int part = static_cast<int>(task / f.kv_heads % parts);
      const int row = static_cast<int>(task / f.kv_heads / parts);
      ScorePart(p, row, head, part, scores + (int64_t{row} * f.kv_heads + head) * groups * kPagesPerGroup);
    });
    ctx.pool->ParallelFor(lists, [&](int64_t list, int) {
      const int row = static_cast<int>(list / f.kv_heads);
      selection.counts[list] = Choose(p, row, scores + list * groups * kPagesPerGroup,
                                      selection.pages + list * selection.max_pages, selection.max_pages);
    });
  }

 private:
  PageBudget Budget(int page_size) const {
    return PageBudget::Create(options_.token_budget, options_.sink_tokens, options_.recent_tokens, page_size);
  }

  // Metadata groups of the longest row.
  static int Groups(const SelectParams& p) {
    int64_t longest = 0;
    for (int row = 0; row < p.rows; ++row) longest = std::max<int64_t>(longest, p.row_len[row]);
    const int64_t tokens = int64_t{p.table.format.page_size} * kPagesPerGroup;
    return static_cast<int>((longest + tokens - 1) / tokens);
  }

  // scores: [groups][16] of one (row, KV head). Pages that can't be chosen freely are not scored.
  void ScorePart(const SelectParams& p, int row, int head, int part, float* scores) const {
    const PageFormat& f = p.table.format;
    const ForcedPages forced = ForcedPages::Create(Budget(f.page_size), p.row_len[row], f.page_size);
    const int last = std::min((forced.recent + kPagesPerGroup - 1) / kPagesPerGroup, (part + 1) * kGroupsPerTask);
    const int first = std::max(forced.sinks / kPagesPerGroup, part * kGroupsPerTask);
    if (forced.free == 0 || first >= last) return;
    QuestScoreParams s;
    s.dtype = f.dtype;
    s.heads = p.q_heads / f.kv_heads;
    s.k_dim = f.k_dim;
    s.q = p.q + row * p.q_stride + int64_t{head} * s.heads * f.k_dim;
    s.meta = static_cast<const char*>(p.pages.meta) + head * f.meta_head_stride * ElementSize(f.dtype);
    s.group_stride = f.meta_group_stride;
    s.group_ids = p.table.group_ids + p.table.group_begin[p.row_seq[row]] + first;
    s.groups = last - first;
    s.reduce = options_.reduce;
    s.scores = scores + int64_t{first} * kPagesPerGroup;
    QuestScores(s);
    // Pages that a window has freed are never chosen.
    const int32_t* ids = p.table.page_ids + p.table.page_begin[p.row_seq[row]];
    for (int page = first * kPagesPerGroup; page < std::min(forced.recent, last * kPagesPerGroup); ++page) {
      if (ids[page] < 0) scores[page] = std::numeric_limits<float>::quiet_NaN();
    }
  }

  int Choose(const SelectParams& p, int row, const float* scores, int32_t* out, int max_pages) const {
    const ForcedPages forced = ForcedPages::Create(Budget(page_size_), p.row_len[row], page_size_);
    CHECK_LE(forced.sinks + forced.free + forced.pages - forced.recent, max_pages);
    const int32_t* ids = p.table.page_ids + p.table.page_begin[p.row_seq[row]];
    int count = 0;
    for (int page = 0; page < forced.sinks; ++page) {
      if (ids[page] >= 0) out[count++] = page;
    }
    count += TopPages(scores + forced.sinks, forced.recent - forced.sinks, forced.free, forced.sinks, out + count);
    for (int page = forced.recent; page < forced.pages; ++page) {
      if (ids[page] >= 0) out[count++] = page;
    }
    return count;
  }

  QuestOptions options_;
  int page_size_;
};

}  // namespace

PolicyInfo QuestPolicyInfo() {
  return {"quest", "Tang et al., arXiv 2406.10774", "2·n/page_size vectors of page metadata, token_budget vectors of K and of V",
          "token_budget (default 2048), sink_tokens (default one page), recent_tokens (default one page, and the partly "
          "filled one), dense_layers (default 2), group_reduce (max, mean or sum; default max)"};
}

Result<std::unique_ptr<AttentionPolicy>> MakeQuestPolicy(const PolicyOptions& options, int page_size) {
  constexpr int64_t kMost = int64_t{1} << 30;
  QuestOptions o;
  o.sink_tokens = o.recent_tokens = page_size;
  OptionReader reader("quest", options);
  RETURN_IF_ERROR(reader.Integer("token_budget", 1, kMost, &o.token_budget));
  RETURN_IF_ERROR(reader.Integer("sink_tokens", 0, kMost, &o.sink_tokens));
  RETURN_IF_ERROR(reader.Integer("recent_tokens", 0, kMost, &o.recent_tokens));
  RETURN_IF_ERROR(reader.Integer("dense_layers", 0, kMost, &o.dense_layers));
  int reduce = static_cast<int>(o.reduce);
  RETURN_IF_ERROR(reader.Choice("group_reduce", {"max", "mean", "sum"}, &reduce));
  o.reduce = static_cast<GroupReduce>(reduce);
  RETURN_IF_ERROR(reader.Finish());
  const PageBudget budget = PageBudget::Create(o.token_budget, o.sink_tokens, o.recent_tokens, page_size);
  const int64_t least = int64_t{budget.sinks} + budget.recent + 1;
  if (budget.budget < least) {
    return InvalidArgument("attention policy 'quest': token_budget " + std::to_string(o.token_budget) + " holds " +
                           std::to_string(budget.budget) + " pages of " + std::to_string(page_size) + " tokens, but " +
                           std::to_string(budget.sinks) + " sink pages, " + std::to_string(budget.recent) +
                           " recent pages and the current one need " + std::to_string(least) + "; give at least " +
                           std::to_string(least * page_size) + " or a smaller page size");
  }
  return std::unique_ptr<AttentionPolicy>(std::make_unique<QuestPolicy>(o, page_size));
}

}  // namespace quire

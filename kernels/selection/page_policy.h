// What policies that choose whole pages by a score share: the four options of a budget, when a step is dense, which
// pages are forced, how the scoring of the rest is cut into tasks, and the list made of forced pages and the best of
// the rest. How pages are scored is each policy's own.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>

#include "core/base/status.h"
#include "kernels/cpu/quest_scores.h"
#include "kernels/cuda/quest.h"
#include "kernels/selection/budget.h"
#include "kernels/selection/options.h"
#include "kernels/selection/policy.h"

namespace quire {

// What recent_tokens is when nobody gives it.
enum class RecentDefault { kOnePage, kHalfOfTheBudget };

struct PageOptions {
  int64_t token_budget = 2048;
  double budget_share = 0;  // of the length: the budget is the larger of the two
  int64_t sink_tokens = 0;    // Read sets one page
  int64_t recent_tokens = 0;  // as sink_tokens
  int64_t dense_layers = 2;
  GroupReduce reduce = GroupReduce::kMax;

  int64_t BudgetAt(int64_t length) const {
    return std::max(token_budget, static_cast<int64_t>(budget_share * static_cast<double>(length)));
  }

  // INVALID_ARGUMENT for a value out of range, or a budget below sinks + recent + the current page. Leaves
  // group_reduce and Finish to the caller, who may have options of its own.
  static Result<PageOptions> Read(std::string_view policy, OptionReader* reader, int page_size,
                                  RecentDefault recent = RecentDefault::kOnePage);
  static Status ReadReduce(OptionReader* reader, GroupReduce* reduce);
};

// How PolicyInfo::options names them.
inline constexpr std::string_view kPageOptions =
    "token_budget (1 to 2^30, sinks, recent tokens and a page at least; default 2048), sink_tokens (0 to 2^30; default one "
    "page), recent_tokens (0 to 2^30; default one page, and the partly filled one), dense_layers (0 to 2^30; default 2), "
    "budget_share (0 to 1: the budget is at least that part of the length; default 0)";
inline constexpr std::string_view kHalfRecentPageOptions =
    "token_budget (1 to 2^30, sinks, recent tokens and a page at least; default 2048), sink_tokens (0 to 2^30; default one "
    "page), recent_tokens (0 to 2^30; default half of the budget's pages with the partly filled one), dense_layers (0 to "
    "2^30; default 2), budget_share (0 to 1: the budget is at least that part of the length; default 0)";
inline constexpr std::string_view kReduceOption = ", group_reduce (max, mean or sum; default max)";

class PagePolicy : public AttentionPolicy {
 public:
  PagePolicy(const PageOptions& options, int page_size) : options_(options), page_size_(page_size) {}

  int64_t token_budget() const override { return options_.token_budget; }
  PageDataNeeds Declare() const override { return {.min_max = true}; }
  bool IsDense(int64_t length, int layer, int page_size) const override;
  int MaxPages(int64_t length, int page_size) const override;

 protected:
  const PageOptions& options() const { return options_; }
  PageBudget Budget() const {
    return PageBudget::Create(options_.token_budget, options_.sink_tokens, options_.recent_tokens, page_size_,
                              options_.budget_share);
  }
  ForcedPages Forced(int64_t length) const;
  // Pages that a row at `position` sees.
  int64_t PagesAt(int64_t position) const { return position / page_size_ + 1; }
  // What the GPU's page scores and lists take, but their workspace.
  cuda::QuestParams OnGpu(const SelectParams& params) const;
  // CHECKs the page size the policy was made for and that KV heads have whole query groups.
  void CheckShape(const SelectParams& params) const;
  // The same, and that the caller gave the metadata that Declare asks for.
  void CheckParams(const SelectParams& params) const;

  // At least the longest row; what workspaces are sized by.
  static int64_t Longest(const SelectParams& params);
  // Metadata groups of the longest row, and of a row.
  static int Groups(const SelectParams& params);
  static int GroupsOf(const PageFormat& format, int64_t length);
  // Logical page ids of a row's sequence.
  static const int32_t* PageIds(const SelectParams& params, int row) {
    return params.table.page_ids + params.table.page_begin[params.row_seq[row]];
  }
  // Its metadata groups.
  static const int32_t* GroupIds(const SelectParams& params, int row) {
    return params.table.group_ids + params.table.group_begin[params.row_seq[row]];
  }
  // Calls f(row, head, first, last) from the pool's threads for metadata groups [first, last), at most groups_per_task
  // of them, such that together the groups of all lists are visited once that hold a page to choose. Neighbouring tasks
  // take neighbouring KV heads of the same groups.
  template <typename F>
  void ForFreeGroups(const Context& ctx, const SelectParams& params, int groups_per_task, F&& f) const {
    const int kv_heads = params.table.format.kv_heads;
    const int parts = (Groups(params) + groups_per_task - 1) / groups_per_task;
    ctx.pool->ParallelFor(int64_t{params.rows} * parts * kv_heads, [&](int64_t task, int) {
      const int head = static_cast<int>(task % kv_heads);
      const int part = static_cast<int>(task / kv_heads % parts);
      const int row = static_cast<int>(task / kv_heads / parts);
      const ForcedPages forced = Forced(params.row_len[row]);
      const int first = std::max(forced.sinks / kPagesPerGroup, part * groups_per_task);
      const int last = std::min((forced.recent + kPagesPerGroup - 1) / kPagesPerGroup, (part + 1) * groups_per_task);
      if (forced.free > 0 && first < last) f(row, head, first, last);
    });
  }

  // One KV head's metadata, and the row's query group.
  static const void* MetaOf(const SelectParams& params, int head);
  static const float* QueriesOf(const SelectParams& params, int row, int head);

  // The list of one (row, KV head) from scores of all its pages; those that are forced needn't be scored,
  // a freed page is never listed. Returns its length.
  int Choose(const SelectParams& params, int row, float* scores, int32_t* out, int max_pages) const;
  // The same from any source of free pages: take(k, out) writes at most k of them, ascending, and says how many.
  template <typename Take>
  int ListWith(const SelectParams& params, int row, int32_t* out, int max_pages, Take&& take) const {
    const ForcedPages forced = Forced(params.row_len[row]);
    const int32_t* ids = PageIds(params, row);
    CheckRoom(forced, max_pages);
    int count = 0;
    for (int page = 0; page < forced.sinks; ++page) {
      if (ids[page] >= 0) out[count++] = page;
    }
    count += take(forced.free, out + count);
    for (int page = forced.recent; page < forced.pages; ++page) {
      if (ids[page] >= 0) out[count++] = page;
    }
    return count;
  }
  // 64-byte lines that hold runs of run_bytes each, run r at byte begin + r * run_bytes. runs ascend.
  static int64_t LinesOf(const int32_t* runs, int count, int64_t begin, int64_t run_bytes);

 private:
  static void CheckRoom(const ForcedPages& forced, int max_pages);

  PageOptions options_;
  int page_size_;
};

}  // namespace quire

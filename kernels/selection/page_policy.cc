#include "kernels/selection/page_policy.h"

#include <algorithm>
#include <limits>
#include <string>

#include "core/base/check.h"
#include "kernels/cpu/top_k.h"

namespace quire {

Result<PageOptions> PageOptions::Read(std::string_view policy, OptionReader* reader, int page_size,
                                      RecentDefault recent) {
  constexpr int64_t kMost = int64_t{1} << 30;
  PageOptions o;
  RETURN_IF_ERROR(reader->Integer("token_budget", 1, kMost, &o.token_budget));
  o.sink_tokens = o.recent_tokens = page_size;
  // In whole pages, the partly filled one being of that half.
  if (recent == RecentDefault::kHalfOfTheBudget) {
    o.recent_tokens = std::max<int64_t>(0, o.token_budget / page_size / 2 - 1) * page_size;
  }
  RETURN_IF_ERROR(reader->Integer("sink_tokens", 0, kMost, &o.sink_tokens));
  RETURN_IF_ERROR(reader->Integer("recent_tokens", 0, kMost, &o.recent_tokens));
  RETURN_IF_ERROR(reader->Integer("dense_layers", 0, kMost, &o.dense_layers));
  RETURN_IF_ERROR(reader->Number("budget_share", 0, 1, &o.budget_share));
  const PageBudget budget = PageBudget::Create(o.token_budget, o.sink_tokens, o.recent_tokens, page_size);
  const int64_t least = int64_t{budget.sinks} + budget.recent + 1;
  if (budget.budget < least) {
    return InvalidArgument("attention policy '" + std::string(policy) + "': token_budget " +
                           std::to_string(o.token_budget) + " holds " + std::to_string(budget.budget) + " pages of " +
                           std::to_string(page_size) + " tokens, but " + std::to_string(budget.sinks) +
                           " sink pages, " + std::to_string(budget.recent) + " recent pages and the current one need " +
                           std::to_string(least) + "; give at least " + std::to_string(least * page_size) +
                           " or a smaller page size");
  }
  return o;
}

Status PageOptions::ReadReduce(OptionReader* reader, GroupReduce* reduce) {
  int choice = static_cast<int>(*reduce);
  RETURN_IF_ERROR(reader->Choice("group_reduce", {"max", "mean", "sum"}, &choice));
  *reduce = static_cast<GroupReduce>(choice);
  return OkStatus();
}

bool PagePolicy::IsDense(int64_t length, int layer, int) const {
  return options_.BudgetAt(length) >= length || layer < options_.dense_layers;
}

int PagePolicy::MaxPages(int64_t length, int page_size) const {
  const int64_t pages = (length + page_size - 1) / page_size;
  return static_cast<int>(std::min<int64_t>(pages, options_.BudgetAt(length) / page_size));
}

ForcedPages PagePolicy::Forced(int64_t length) const {
  return ForcedPages::Create(Budget(), length, page_size_);
}

cuda::QuestParams PagePolicy::OnGpu(const SelectParams& p) const {
  cuda::QuestParams q;
  q.q = p.q;
  q.q_stride = p.q_stride;
  q.rows = p.rows;
  q.q_heads = p.q_heads;
  q.row_seq = p.row_seq;
  q.row_len = p.row_len;
  q.pages = p.pages;
  q.table = p.table;
  q.budget = Budget();
  q.reduce = options_.reduce;
  q.max_groups = Groups(p);
  return q;
}

void PagePolicy::CheckParams(const SelectParams& p) const {
  CHECK(p.pages.meta != nullptr && p.pages.over != nullptr && p.table.group_ids != nullptr);
  CheckShape(p);
}

void PagePolicy::CheckShape(const SelectParams& p) const {
  CHECK_EQ(p.table.format.page_size, page_size_);
  CHECK_EQ(p.q_heads % p.table.format.kv_heads, 0);
}

int PagePolicy::GroupsOf(const PageFormat& format, int64_t length) {
  const int64_t tokens = int64_t{format.page_size} * kPagesPerGroup;
  return static_cast<int>((length + tokens - 1) / tokens);
}

int64_t PagePolicy::Longest(const SelectParams& p) {
  if (p.longest > 0) return p.longest;
  int64_t longest = 0;
  for (int row = 0; row < p.rows; ++row) longest = std::max<int64_t>(longest, p.row_len[row]);
  return longest;
}

int PagePolicy::Groups(const SelectParams& p) { return GroupsOf(p.table.format, Longest(p)); }

const void* PagePolicy::MetaOf(const SelectParams& p, int head) {
  const PageFormat& f = p.table.format;
  return static_cast<const char*>(p.pages.meta) + head * f.meta_head_stride * ElementSize(f.dtype);
}

const float* PagePolicy::QueriesOf(const SelectParams& p, int row, int head) {
  const PageFormat& f = p.table.format;
  return p.q + row * p.q_stride + int64_t{head} * (p.q_heads / f.kv_heads) * f.k_dim;
}

int PagePolicy::Choose(const SelectParams& p, int row, float* scores, int32_t* out, int max_pages) const {
  const ForcedPages forced = Forced(p.row_len[row]);
  return ListWith(p, row, out, max_pages, [&](int k, int32_t* to) {
    const int32_t* ids = PageIds(p, row);
    for (int page = forced.sinks; page < forced.recent; ++page) {
      if (ids[page] < 0) scores[page] = std::numeric_limits<float>::quiet_NaN();
    }
    return TopPages(scores + forced.sinks, forced.recent - forced.sinks, k, forced.sinks, to);
  });
}

int64_t PagePolicy::LinesOf(const int32_t* runs, int count, int64_t begin, int64_t run_bytes) {
  constexpr int64_t kLine = 64;
  int64_t lines = 0, end = 0;  // end: of the lines counted
  for (int i = 0; i < count; ++i) {
    const int64_t from = begin + runs[i] * run_bytes;
    const int64_t first = std::max(end, from / kLine);
    end = std::max(end, (from + run_bytes + kLine - 1) / kLine);
    lines += end - std::min(end, first);
  }
  return lines;
}

void PagePolicy::CheckRoom(const ForcedPages& forced, int max_pages) {
  CHECK_LE(forced.sinks + forced.free + forced.pages - forced.recent, max_pages);
}

}  // namespace quire

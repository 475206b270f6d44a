// Which pages a budget holds whatever the query: the part that all page policies share. Pure arithmetic.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/page_table.h"

namespace quire {

// A token budget at one page size, in pages. Holds for sequences of any length, so a GPU is given one for all rows.
struct PageBudget {
  int budget = 0;  // token_budget / page_size, rounded down
  int sinks = 0;   // pages that hold the first sink_tokens
  int recent = 0;  // whole pages that hold the last recent_tokens before the partly filled page
  double share = 0;  // of the length: where that is more tokens than the budget's, it is the budget

  static constexpr PageBudget Create(int64_t token_budget, int64_t sink_tokens, int64_t recent_tokens, int page_size,
                                     double share = 0) {
    const auto pages = [&](int64_t tokens) { return static_cast<int>((tokens + page_size - 1) / page_size); };
    return {static_cast<int>(token_budget / page_size), pages(sink_tokens), pages(recent_tokens), share};
  }
  // Pages that are read of a sequence of `length` tokens, if it has as many.
  constexpr int At(int64_t length, int page_size) const {
    if (share <= 0) return budget;
    return std::max(budget, static_cast<int>(static_cast<uint32_t>(share * static_cast<double>(length)) /
                                             static_cast<uint32_t>(page_size)));
  }
};

// The cut of a sequence: logical pages [0, sinks) and [recent, pages) are forced, `free` of those between are chosen.
struct ForcedPages {
  int sinks = 0;
  int recent = 0;
  int pages = 0;
  int free = 0;

  // Divisions of 32 bits: GPUs have none of 64, and every block of a selection begins here.
  static constexpr ForcedPages Create(const PageBudget& budget, int64_t length, int page_size) {
    ForcedPages f;
    const auto tokens = static_cast<uint32_t>(length), size = static_cast<uint32_t>(page_size);
    const int full = static_cast<int>(tokens / size);
    f.pages = full + (static_cast<uint32_t>(full) * size < tokens ? 1 : 0);
    f.recent = std::max(0, full - budget.recent);
    f.sinks = std::min(budget.sinks, f.recent);
    f.free = std::clamp(budget.At(length, page_size) - f.sinks - (f.pages - f.recent), 0, f.recent - f.sinks);
    return f;
  }
};

// Hierarchical's cut: metadata groups [first, first + groups) have pages that are not forced; `kept` of them stay.
struct GroupCut {
  static constexpr int64_t kAll = 1'000'000'000;  // of keep_billionths, the share of the groups that stays
  int first = 0;
  int groups = 0;
  int kept = 0;

  static constexpr GroupCut Create(const ForcedPages& forced, int64_t keep_billionths) {
    GroupCut cut;
    if (forced.free == 0) return cut;
    const int last = (forced.recent + kPagesPerGroup - 1) / kPagesPerGroup;
    cut.first = forced.sinks / kPagesPerGroup;
    cut.groups = last - cut.first;
    // As many as hold the free pages even when the first and the last, whose pages may be forced in part, are among
    // them.
    const int forced_inside = forced.sinks - cut.first * kPagesPerGroup + last * kPagesPerGroup - forced.recent;
    cut.kept = Kept(cut.groups, forced.free + forced_inside, keep_billionths);
    return cut;
  }
  // At least what is kept at any length up to this one.
  static constexpr int MostKept(const PageBudget& budget, int64_t length, int page_size, int64_t keep_billionths) {
    const int pages = ForcedPages::Create(budget, length, page_size).pages;
    const int groups = std::max(1, (pages + kPagesPerGroup - 1) / kPagesPerGroup);
    return Kept(groups, budget.At(length, page_size) + 2 * (kPagesPerGroup - 1), keep_billionths);
  }

 private:
  static constexpr int Kept(int groups, int pages, int64_t keep_billionths) {
    const auto share = static_cast<int>((keep_billionths * groups + kAll - 1) / kAll);
    return std::min(groups, std::max(share, (pages + kPagesPerGroup - 1) / kPagesPerGroup));
  }
};

}  // namespace quire

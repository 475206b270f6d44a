// Which pages a budget holds whatever the query: the part that all page policies share. Pure arithmetic.
#pragma once

#include <algorithm>
#include <cstdint>

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
    int most = budget.budget;
    if (budget.share > 0) {
      most = std::max(most, static_cast<int>(static_cast<uint32_t>(budget.share * static_cast<double>(tokens)) / size));
    }
    f.free = std::clamp(most - f.sinks - (f.pages - f.recent), 0, f.recent - f.sinks);
    return f;
  }
};

}  // namespace quire

// H2O (Zhang et al., arXiv 2306.14048), whole pages: the pages that have gathered the most attention since they were
// written, summed over all rows of prompt and output and over the query group, and the recent ones; by default half of
// the budget is recent, as the authors have it. Here nothing is evicted: a page that was left out gathers nothing more,
// but comes back when others have less.
//
// Remembers a float a page and KV head: the sum. Reads per step and KV head: those, then the budget's K and V.
#include <algorithm>
#include <string>

#include "kernels/selection/history_policy.h"
#include "kernels/selection/policies.h"

namespace quire {
namespace {

class H2oPolicy : public HistoryPolicy {
 public:
  using HistoryPolicy::HistoryPolicy;

  std::string_view name() const override { return "h2o"; }
  PageDataNeeds Declare() const override { return {.history = 1, .queries = false}; }

  void Remember(const AttentionMass& mass, int head, PageHistory* history) const override {
    float* sums = history->Head(head);
    if (mass.read != nullptr) {
      for (int i = 0; i < mass.read_count; ++i) sums[mass.read[i]] += mass.mass[mass.read[i]];
      return;
    }
    const int64_t pages = PagesAt(mass.position);
    for (int64_t page = 0; page < pages; ++page) sums[page] += mass.mass[page];
  }

 protected:
  void Score(const PageHistory& history, int head, int64_t pages, float* scores) const override {
    std::copy_n(history.Head(head), pages, scores);
  }
};

}  // namespace

PolicyInfo H2oPolicyInfo() {
  return {"h2o", "Zhang et al., arXiv 2306.14048, by pages, keeping what it leaves out",
          "n/page_size floats of history, token_budget vectors of K and of V", std::string(kHalfRecentPageOptions)};
}

Result<std::unique_ptr<AttentionPolicy>> MakeH2oPolicy(const PolicyOptions& options, int page_size) {
  OptionReader reader("h2o", options);
  ASSIGN_OR_RETURN(const PageOptions page_options,
                   PageOptions::Read("h2o", &reader, page_size, RecentDefault::kHalfOfTheBudget));
  RETURN_IF_ERROR(reader.Finish());
  return std::unique_ptr<AttentionPolicy>(std::make_unique<H2oPolicy>(page_options, page_size));
}

}  // namespace quire

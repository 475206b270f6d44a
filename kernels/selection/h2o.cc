// H2O (Zhang et al., arXiv 2306.14048), whole pages: the pages that have gathered the most attention since they were
// written, summed over all rows of prompt and output and over the query group, and the recent ones; by default half of
// the budget is recent, as the authors have it. Here nothing is evicted: a page that was left out gathers nothing more,
// but comes back when others have less.
//
// Remembers a float a page and KV head: the sum. Reads per step and KV head: those, then the budget's K and V.
//
// Evicting (evicting.h) it is the authors' own: by tokens, the lightest sum leaves for good, and a token's sum begins
// with the attention that it pays to itself.
#include <algorithm>
#include <string>

#include "kernels/selection/evicting.h"
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
  cuda::HistoryRule rule() const override { return cuda::HistoryRule::kSum; }
  void Score(const PageHistory& history, int head, int64_t pages, float* scores) const override {
    std::copy_n(history.Head(head), pages, scores);
  }
};

class EvictingH2oPolicy : public WeighingPolicy {
 public:
  using WeighingPolicy::WeighingPolicy;

  std::string_view name() const override { return "h2o"; }

  void RememberSlots(const float* mass, int64_t slots, int head, SlotMap* map) const override {
    float* sums = map->Weights(head);
    for (int64_t slot = 0; slot < slots; ++slot) sums[slot] += mass[slot];
  }

 protected:
  cuda::SlotRule rule() const override { return cuda::SlotRule::kSum; }
};

}  // namespace

PolicyInfo H2oPolicyInfo() {
  return {"h2o", "Zhang et al., arXiv 2306.14048, by pages, keeping what it leaves out",
          "n/page_size floats of history, token_budget vectors of K and of V; evicting, of K twice",
          std::string(kHalfRecentPageOptions) + std::string(kEvictOption), true};
}

Result<std::unique_ptr<AttentionPolicy>> MakeH2oPolicy(const PolicyOptions& options, int page_size) {
  OptionReader reader("h2o", options);
  bool evict = false;
  RETURN_IF_ERROR(EvictOptions::ReadEvict("h2o", &reader, &evict));
  if (evict) {
    ASSIGN_OR_RETURN(const EvictOptions evict_options, EvictOptions::Read("h2o", &reader, /*half_recent=*/true));
    RETURN_IF_ERROR(reader.Finish());
    return std::unique_ptr<AttentionPolicy>(std::make_unique<EvictingH2oPolicy>(evict_options));
  }
  ASSIGN_OR_RETURN(const PageOptions page_options,
                   PageOptions::Read("h2o", &reader, page_size, RecentDefault::kHalfOfTheBudget));
  RETURN_IF_ERROR(reader.Finish());
  return std::unique_ptr<AttentionPolicy>(std::make_unique<H2oPolicy>(page_options, page_size));
}

}  // namespace quire

// TOVA (Oren et al., arXiv 2401.06104), whole pages and per KV head: the pages to which the last query paid the most
// attention, summed over the query group. What a query did not read has no weight to be judged by, so a page that was
// left out stays out, as if it had been evicted; its memory is kept. A page leaves whenever one is filled. A prompt's
// last row makes the first choice.
//
// Remembers a float a page and KV head. Reads per step and KV head: those, then the budget's K and V.
//
// Evicting (evicting.h) it goes by tokens, and one leaves for good whenever one comes; the authors average the weights
// over all heads of a layer, here each KV head has its own.
#include <algorithm>
#include <cmath>
#include <string>

#include "kernels/selection/evicting.h"
#include "kernels/selection/history_policy.h"
#include "kernels/selection/policies.h"

namespace quire {
namespace {

constexpr float kDropped = -1;  // masses are ≥ 0

class TovaPolicy : public HistoryPolicy {
 public:
  using HistoryPolicy::HistoryPolicy;

  std::string_view name() const override { return "tova"; }
  PageDataNeeds Declare() const override { return {.history = 1, .history_rows = 1, .queries = false}; }

  void Remember(const AttentionMass& mass, int head, PageHistory* history) const override {
    float* last = history->Head(head);
    const int64_t pages = PagesAt(mass.position);
    int next = 0;
    for (int64_t page = 0; page < pages; ++page) {
      const bool read = mass.read == nullptr || (next < mass.read_count && mass.read[next] == page);
      next += read;
      last[page] = read ? mass.mass[page] : kDropped;
    }
  }

 protected:
  cuda::HistoryRule rule() const override { return cuda::HistoryRule::kLast; }
  void Score(const PageHistory& history, int head, int64_t pages, float* scores) const override {
    const float* last = history.Head(head);
    for (int64_t page = 0; page < pages; ++page) scores[page] = last[page] == kDropped ? std::nanf("") : last[page];
  }
};

class EvictingTovaPolicy : public WeighingPolicy {
 public:
  using WeighingPolicy::WeighingPolicy;

  std::string_view name() const override { return "tova"; }
  PageDataNeeds Declare() const override { return {.history_rows = 1, .queries = false, .slot_map = true}; }

  void RememberSlots(const float* mass, int64_t slots, int head, SlotMap* map) const override {
    std::copy_n(mass, slots, map->Weights(head));
  }

 protected:
  cuda::SlotRule rule() const override { return cuda::SlotRule::kLast; }
};

}  // namespace

PolicyInfo TovaPolicyInfo() {
  return {"tova", "Oren et al., arXiv 2401.06104, by pages, keeping in memory what it drops",
          "n/page_size floats of history, token_budget vectors of K and of V; evicting, of K twice",
          std::string(kPageOptions) + std::string(kEvictOption), true};
}

Result<std::unique_ptr<AttentionPolicy>> MakeTovaPolicy(const PolicyOptions& options, int page_size) {
  OptionReader reader("tova", options);
  bool evict = false;
  RETURN_IF_ERROR(EvictOptions::ReadEvict("tova", &reader, &evict));
  if (evict) {
    ASSIGN_OR_RETURN(const EvictOptions evict_options, EvictOptions::Read("tova", &reader, /*half_recent=*/false));
    RETURN_IF_ERROR(reader.Finish());
    return std::unique_ptr<AttentionPolicy>(std::make_unique<EvictingTovaPolicy>(evict_options));
  }
  ASSIGN_OR_RETURN(const PageOptions page_options, PageOptions::Read("tova", &reader, page_size));
  RETURN_IF_ERROR(reader.Finish());
  return std::unique_ptr<AttentionPolicy>(std::make_unique<TovaPolicy>(page_options, page_size));
}

}  // namespace quire

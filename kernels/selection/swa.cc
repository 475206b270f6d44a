// ALISA's sparse window attention (Zhao et al., arXiv 2403.17312), whole pages and per KV head: half of the budget are
// the latest pages, the other half those with the largest sum of the last few rows' attention weights, summed over the
// query group. A page that a row did not read counts with its last mass; a prompt's last rows give the first sums.
//
// Remembers `rows` floats a page and KV head, a ring over positions. Reads per step and KV head: those, then the
// budget's K and V.
#include <string>

#include "kernels/selection/history_policy.h"
#include "kernels/selection/policies.h"

namespace quire {
namespace {

class SwaPolicy : public HistoryPolicy {
 public:
  SwaPolicy(const PageOptions& options, int page_size, int rows) : HistoryPolicy(options, page_size), rows_(rows) {}

  std::string_view name() const override { return "swa"; }
  PageDataNeeds Declare() const override { return {.history = rows_, .history_rows = rows_, .queries = false}; }

  void Remember(const AttentionMass& mass, int head, PageHistory* history) const override {
    float* ring = history->Head(head);
    const int64_t pages = PagesAt(mass.position);
    const int64_t now = mass.position % rows_, before = (mass.position + rows_ - 1) % rows_;
    if (mass.read == nullptr) {
      for (int64_t page = 0; page < pages; ++page) ring[page * rows_ + now] = mass.mass[page];
      return;
    }
    int next = 0;
    for (int64_t page = 0; page < pages; ++page) {
      const bool read = next < mass.read_count && mass.read[next] == page;
      next += read;
      ring[page * rows_ + now] = read ? mass.mass[page] : ring[page * rows_ + before];
    }
  }

 protected:
  cuda::HistoryRule rule() const override { return cuda::HistoryRule::kRing; }
  void Score(const PageHistory& history, int head, int64_t pages, float* scores) const override {
    const float* ring = history.Head(head);
    for (int64_t page = 0; page < pages; ++page) {
      float sum = 0;
      for (int row = 0; row < rows_; ++row) sum += ring[page * rows_ + row];
      scores[page] = sum;
    }
  }

 private:
  int rows_;
};

}  // namespace

PolicyInfo SwaPolicyInfo() {
  return {"swa", "Zhao et al. (ALISA), arXiv 2403.17312, by pages",
          "rows·n/page_size floats of history, token_budget vectors of K and of V",
          std::string(kHalfRecentPageOptions) + ", rows (the last so many are summed, 1 to 64; default 4)"};
}

Result<std::unique_ptr<AttentionPolicy>> MakeSwaPolicy(const PolicyOptions& options, int page_size) {
  OptionReader reader("swa", options);
  ASSIGN_OR_RETURN(const PageOptions page_options,
                   PageOptions::Read("swa", &reader, page_size, RecentDefault::kHalfOfTheBudget));
  int64_t rows = 4;
  RETURN_IF_ERROR(reader.Integer("rows", 1, 64, &rows));
  RETURN_IF_ERROR(reader.Finish());
  return std::unique_ptr<AttentionPolicy>(std::make_unique<SwaPolicy>(page_options, page_size, static_cast<int>(rows)));
}

}  // namespace quire

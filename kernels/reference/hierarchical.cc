#include "kernels/reference/hierarchical.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <set>

namespace quire::reference {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// How far apart the k-th and the next best of scores are.
double GapAtCut(std::vector<double> scores, int k) {
  std::erase_if(scores, [](double x) { return std::isnan(x); });
  if (k <= 0 || k >= static_cast<int>(scores.size())) return std::numeric_limits<double>::infinity();
  std::sort(scores.begin(), scores.end(), std::greater<>());
  return scores[static_cast<size_t>(k) - 1] - scores[static_cast<size_t>(k)];
}

}  // namespace

std::vector<double> GroupScores(const SelectParams& p, int row, int kv_head, GroupReduce reduce) {
  return Bounds(p, row, kv_head, kPagesPerGroup, reduce);
}

HierarchicalChoice Hierarchical(const SelectParams& p, int row, int kv_head, GroupReduce reduce,
                                const PageBudget& budget, double keep) {
  const ForcedPages forced = ForcedPages::Create(budget, p.row_len[row], p.table.format.page_size);
  const auto is_free = [&](int page) { return page >= forced.sinks && page < forced.recent; };

  // Groups without a page to choose are no candidates.
  std::vector<double> groups = GroupScores(p, row, kv_head, reduce);
  std::vector<int> free_pages(groups.size());
  for (int page = 0; page < forced.pages; ++page) {
    free_pages[static_cast<size_t>(page / kPagesPerGroup)] += is_free(page);
  }
  int candidates = 0, taken = 0;  // places of the candidates that hold no page to choose
  for (size_t g = 0; g < groups.size(); ++g) {
    if (free_pages[g] == 0) {
      groups[g] = kNan;
      continue;
    }
    ++candidates;
    taken += kPagesPerGroup - free_pages[g];
  }
  // As many as `keep` says, but enough to fill the budget with all places that are taken among them.
  int kept = static_cast<int>(std::ceil(keep * candidates - 1e-9));
  while (kept * kPagesPerGroup - taken < forced.free && kept < candidates) ++kept;

  const std::vector<int32_t> best = TopPages(groups, kept);
  const std::set<int32_t> in(best.begin(), best.end());
  std::vector<double> scores = QuestScores(p, row, kv_head, reduce);
  for (int page = 0; page < forced.pages; ++page) {
    if (!is_free(page) || !in.contains(page / kPagesPerGroup)) scores[static_cast<size_t>(page)] = kNan;
  }
  HierarchicalChoice choice;
  choice.gap = std::min(GapAtCut(groups, kept), GapAtCut(scores, forced.free));
  const std::vector<int32_t> chosen = TopPages(scores, forced.free);
  for (int page = 0; page < forced.sinks; ++page) choice.pages.push_back(page);
  choice.pages.insert(choice.pages.end(), chosen.begin(), chosen.end());
  for (int page = forced.recent; page < forced.pages; ++page) choice.pages.push_back(page);
  return choice;
}

}  // namespace quire::reference

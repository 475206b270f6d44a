#include "kernels/reference/hierarchical.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <set>
#include <tuple>

#include "kernels/metadata_codes.h"
#include "kernels/reference/attention.h"

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

std::vector<double> CodedScores(const SelectParams& p, int row, int kv_head, GroupReduce reduce) {
  const PageFormat& f = p.table.format;
  std::vector<double> scores = QuestScores(p, row, kv_head, reduce);
  const int heads = p.q_heads / f.kv_heads, group_tokens = kPagesPerGroup * f.page_size;
  const int32_t* ids = p.table.page_ids + p.table.page_begin[p.row_seq[row]];
  const auto key = [&](int t, int c) { return KAt(p.table, p.pages, ids[t / f.page_size], kv_head, t % f.page_size, c); };
  const auto range = [&](int begin, int tokens, int c) {
    double least = key(begin, c), most = least;
    bool finite = true;
    for (int t = begin; t < begin + tokens; ++t) {
      least = std::min<double>(least, key(t, c));
      most = std::max<double>(most, key(t, c));
      finite = finite && std::isfinite(key(t, c));
    }
    return std::tuple(least, most, finite);
  };
  for (int group = 0; (group + 1) * group_tokens <= p.row_len[row]; ++group) {
    const int first = group * kPagesPerGroup;
    if (std::any_of(ids + first, ids + first + kPagesPerGroup, [](int32_t id) { return id < 0; })) continue;
    // [page][query head]
    std::vector<std::vector<double>> sums(kPagesPerGroup, std::vector<double>(static_cast<size_t>(heads), 0.0));
    bool all_finite = true;
    for (int c = 0; c < f.k_dim && all_finite; ++c) {
      const auto [lo, hi, finite] = range(group * group_tokens, group_tokens, c);
      all_finite = finite;
      const double step = CodeStep(static_cast<float>(lo), static_cast<float>(hi));
      for (int page = 0; page < kPagesPerGroup; ++page) {
        const auto [least, most, _] = range((first + page) * f.page_size, f.page_size, c);
        const double below = step > 0 ? lo + step * std::floor((least - lo) / step) : lo;
        const double above = step > 0 ? lo + step * std::ceil((most - lo) / step) : lo;
        for (int g = 0; g < heads; ++g) {
          const double q = QueryOf(p, row, kv_head, g)[c];
          sums[static_cast<size_t>(page)][static_cast<size_t>(g)] += std::max(q * below, q * above);
        }
      }
    }
    for (int page = 0; page < kPagesPerGroup && all_finite; ++page) {
      scores[static_cast<size_t>(first + page)] = Reduced(sums[static_cast<size_t>(page)], reduce);
    }
  }
  return scores;
}

HierarchicalChoice Hierarchical(const SelectParams& p, int row, int kv_head, GroupReduce reduce,
                                const PageBudget& budget, double keep, bool codes) {
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
  std::vector<double> scores = codes ? CodedScores(p, row, kv_head, reduce) : QuestScores(p, row, kv_head, reduce);
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

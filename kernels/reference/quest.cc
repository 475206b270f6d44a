#include "kernels/reference/quest.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/reference/attention.h"

namespace quire::reference {

std::vector<double> QuestScores(const SelectParams& p, int row, int kv_head, GroupReduce reduce) {
  const PageFormat& f = p.table.format;
  const int heads = p.q_heads / f.kv_heads;
  const int64_t length = p.row_len[row];
  const int32_t* ids = p.table.page_ids + p.table.page_begin[p.row_seq[row]];
  std::vector<double> scores;
  for (int64_t page = 0; page * f.page_size < length; ++page) {
    const int slots = static_cast<int>(std::min<int64_t>(f.page_size, length - page * f.page_size));
    double total = reduce == GroupReduce::kMax ? -std::numeric_limits<double>::infinity() : 0.0;
    for (int g = 0; g < heads && ids[page] >= 0; ++g) {
      const float* q = p.q + row * p.q_stride + int64_t{kv_head * heads + g} * f.k_dim;
      double score = 0;
      for (int c = 0; c < f.k_dim; ++c) {
        double best = -std::numeric_limits<double>::infinity();
        for (int slot = 0; slot < slots; ++slot) {
          best = std::max(best, double{q[c]} * KAt(p.table, p.pages, ids[page], kv_head, slot, c));
        }
        score += best;
      }
      total = reduce == GroupReduce::kMax ? std::max(total, score) : total + score;
    }
    if (reduce == GroupReduce::kMean) total /= heads;
    scores.push_back(ids[page] < 0 ? std::numeric_limits<double>::quiet_NaN() : total);
  }
  return scores;
}

std::vector<int32_t> TopPages(const std::vector<double>& scores, int k) {
  std::vector<int32_t> order;
  for (size_t i = 0; i < scores.size(); ++i) {
    if (!std::isnan(scores[i])) order.push_back(static_cast<int32_t>(i));
  }
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)];
  });
  order.resize(std::min(order.size(), static_cast<size_t>(std::max(k, 0))));
  std::sort(order.begin(), order.end());
  return order;
}

}  // namespace quire::reference

#include "kernels/reference/quest.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/reference/attention.h"

namespace quire::reference {

const float* QueryOf(const SelectParams& p, int row, int kv_head, int g) {
  const int heads = p.q_heads / p.table.format.kv_heads;
  return p.q + row * p.q_stride + int64_t{kv_head * heads + g} * p.table.format.k_dim;
}

double Reduced(const std::vector<double>& scores, GroupReduce reduce) {
  if (reduce == GroupReduce::kMax) return *std::max_element(scores.begin(), scores.end());
  const double sum = std::accumulate(scores.begin(), scores.end(), 0.0);
  return reduce == GroupReduce::kMean ? sum / static_cast<double>(scores.size()) : sum;
}

std::vector<double> Bounds(const SelectParams& p, int row, int kv_head, int pages, GroupReduce reduce) {
  const PageFormat& f = p.table.format;
  const int64_t length = p.row_len[row], tokens = int64_t{pages} * f.page_size;
  const int32_t* ids = p.table.page_ids + p.table.page_begin[p.row_seq[row]];
  std::vector<double> bounds;
  for (int64_t begin = 0; begin < length; begin += tokens) {
    const int64_t end = std::min(length, begin + tokens);
    const bool freed =
        std::any_of(ids + begin / f.page_size, ids + (end - 1) / f.page_size + 1, [](int32_t id) { return id < 0; });
    std::vector<double> scores(static_cast<size_t>(p.q_heads / f.kv_heads), 0.0);
    for (size_t g = 0; g < scores.size() && !freed; ++g) {
      const float* q = QueryOf(p, row, kv_head, static_cast<int>(g));
      for (int c = 0; c < f.k_dim; ++c) {
        double best = -std::numeric_limits<double>::infinity();
        for (int64_t t = begin; t < end; ++t) {
          const int slot = static_cast<int>(t % f.page_size);
          best = std::max(best, double{q[c]} * KAt(p.table, p.pages, ids[t / f.page_size], kv_head, slot, c));
        }
        scores[g] += best;
      }
    }
    bounds.push_back(freed ? std::numeric_limits<double>::quiet_NaN() : Reduced(scores, reduce));
  }
  return bounds;
}

std::vector<double> QuestScores(const SelectParams& p, int row, int kv_head, GroupReduce reduce) {
  return Bounds(p, row, kv_head, 1, reduce);
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

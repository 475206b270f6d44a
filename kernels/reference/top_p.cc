#include "kernels/reference/top_p.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/reference/attention.h"
#include "kernels/reference/quest.h"

namespace quire::reference {

std::vector<double> ListedMass(const SelectParams& p, int row, int kv_head, const std::vector<int32_t>& pages) {
  const PageFormat& f = p.table.format;
  const int32_t* ids = p.table.page_ids + p.table.page_begin[p.row_seq[row]];
  const double scale = p.scale > 0 ? p.scale : 1 / std::sqrt(f.k_dim);
  std::vector<double> mass(pages.size());
  for (int g = 0; g < p.q_heads / f.kv_heads; ++g) {
    const float* q = QueryOf(p, row, kv_head, g);
    std::vector<std::vector<double>> scores(pages.size());
    double max = -std::numeric_limits<double>::infinity(), sum = 0;
    for (size_t i = 0; i < pages.size(); ++i) {
      const int64_t begin = int64_t{pages[i]} * f.page_size;
      for (int64_t pos = begin; pos < std::min<int64_t>(begin + f.page_size, p.row_len[row]); ++pos) {
        double dot = 0;
        for (int c = 0; c < f.k_dim; ++c) {
          dot += double{q[c]} * KAt(p.table, p.pages, ids[pages[i]], kv_head, static_cast<int>(pos - begin), c);
        }
        scores[i].push_back(dot * scale);
        max = std::max(max, dot * scale);
      }
    }
    for (auto& page : scores) {
      for (double& s : page) sum += s = std::exp(s - max);
    }
    for (size_t i = 0; i < pages.size(); ++i) mass[i] += std::accumulate(scores[i].begin(), scores[i].end(), 0.0) / sum;
  }
  return mass;
}

std::vector<int32_t> FewestWith(const std::vector<double>& mass, const std::vector<bool>& forced, double share) {
  const double wanted = share * std::accumulate(mass.begin(), mass.end(), 0.0);
  std::vector<double> free(mass);
  double held = 0;
  for (size_t i = 0; i < mass.size(); ++i) {
    if (!forced[i]) continue;
    held += mass[i];
    free[i] = std::numeric_limits<double>::quiet_NaN();
  }
  std::vector<int32_t> best;
  for (int k = 0; held < wanted && k <= static_cast<int>(mass.size()); ++k) {
    best = TopPages(free, k);
    double sum = held;
    for (const int32_t i : best) sum += mass[static_cast<size_t>(i)];
    if (sum >= wanted) break;
  }
  for (size_t i = 0; i < mass.size(); ++i) {
    if (forced[i]) best.push_back(static_cast<int32_t>(i));
  }
  std::sort(best.begin(), best.end());
  return best;
}

}  // namespace quire::reference

#include "kernels/reference/top_candidates.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace quire::reference {

void TopCandidates(const TopCandidatesParams& p) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  for (int64_t r = 0; r < p.rows; ++r) {
    const float* x = p.logits + r * p.stride;
    std::vector<int32_t> order(static_cast<size_t>(p.vocab));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      if (std::isnan(x[b])) return !std::isnan(x[a]);
      return x[a] > x[b];
    });
    for (int i = 0; i < p.k; ++i) {
      const float v = x[order[i]];
      p.ids[r * p.k + i] = p.vocab_begin + order[i];
      p.values[r * p.k + i] = std::isnan(v) ? -kInf : v;
    }
    const float max = std::isnan(x[order[0]]) ? -kInf : x[order[0]];
    double sum = 0;
    for (int64_t i = 0; i < p.vocab; ++i) {
      if (!std::isnan(x[i])) sum += std::exp(static_cast<double>(x[i]) - max);
    }
    p.lse[r] = std::isinf(max) ? max : static_cast<float>(max + std::log(sum));
  }
}

}  // namespace quire::reference

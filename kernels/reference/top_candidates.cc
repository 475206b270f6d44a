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
    const CandidateRow which = p.row_of != nullptr ? p.row_of[r] : CandidateRow{static_cast<int32_t>(r), 1, 0, 0};
    const float* logits = p.logits + which.row * p.stride;
    std::vector<float> x(logits, logits + p.vocab);
    for (int32_t e = which.edits_begin; e < which.edits_end; ++e) {
      const LogitEdit& edit = p.edits[e];
      float& y = x[static_cast<size_t>(edit.id - p.vocab_begin)];
      y += edit.bias;
      if (y > 0) {
        y /= edit.repetition;
      } else {
        y *= edit.repetition;
      }
      y -= edit.subtract;
      if (edit.bias == -kInf) y = -kInf;
    }
    for (float& y : x) y *= which.scale;
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

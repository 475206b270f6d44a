// Attention as its definition says it, for the tests of Mods: the full matrix of scores of every query with every key,
// the Mod's two functions over all of it, a softmax a row, in double.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/reference/attention.h"
#include "tests/kernels/paged_cache.h"

namespace quire::testing {

// Rows at the given positions of one sequence, against keys [0, keys); a row sees none past ends[row]. q, out: the
// sequence's first row.
template <class Mod>
void FullAttention(const PageTableView& table, const LayerPages& pages, int seq, int keys,
                   const std::vector<int64_t>& positions, const std::vector<int64_t>& ends, const float* q,
                   int64_t q_stride, int q_heads, double scale, const Mod& mod, float* out, int64_t out_stride,
                   float* lse) {
  const PageFormat& f = table.format;
  const int32_t* ids = table.page_ids + table.page_begin[seq];
  const size_t rows = positions.size(), n = static_cast<size_t>(keys);
  const double kMinusInf = -std::numeric_limits<double>::infinity();
  for (int head = 0; head < q_heads; ++head) {
    const int kv_head = head / (q_heads / f.kv_heads);
    std::vector<double> scores(rows * n), v(n * static_cast<size_t>(f.v_dim));
    for (size_t kv = 0; kv < n; ++kv) {
      const int32_t page = ids[kv / static_cast<size_t>(f.page_size)];
      const int slot = static_cast<int>(kv % static_cast<size_t>(f.page_size));
      for (int c = 0; c < f.v_dim; ++c) {
        v[kv * static_cast<size_t>(f.v_dim) + static_cast<size_t>(c)] =
            reference::VAt(table, pages, page, kv_head, slot, c);
      }
      for (int c = 0; c < f.k_dim; ++c) {
        const double k = reference::KAt(table, pages, page, kv_head, slot, c);
        for (size_t r = 0; r < rows; ++r) {
          scores[r * n + kv] += k * double{q[static_cast<int64_t>(r) * q_stride + int64_t{head} * f.k_dim + c]};
        }
      }
    }
    for (size_t r = 0; r < rows; ++r) {
      double max = kMinusInf, sum = 0;
      for (size_t kv = 0; kv < n; ++kv) {
        double& s = scores[r * n + kv];
        const auto key = static_cast<int64_t>(kv);
        const double score = mod.Score(static_cast<float>(s * scale), seq, head, positions[r], key);
        s = key < ends[r] && mod.Mask(seq, head, positions[r], key) ? score : kMinusInf;
        max = std::max(max, s);
      }
      float* y = out + static_cast<int64_t>(r) * out_stride + int64_t{head} * f.v_dim;
      std::vector<double> acc(static_cast<size_t>(f.v_dim), 0.0);
      for (size_t kv = 0; kv < n; ++kv) {
        const double w = scores[r * n + kv] == kMinusInf ? 0.0 : std::exp(scores[r * n + kv] - max);
        if (w == 0) continue;
        sum += w;
        for (size_t c = 0; c < acc.size(); ++c) acc[c] += w * v[kv * acc.size() + c];
      }
      for (size_t c = 0; c < acc.size(); ++c) y[c] = sum == 0 ? 0.0f : static_cast<float>(acc[c] / sum);
      lse[static_cast<int64_t>(r) * q_heads + head] = sum == 0 ? static_cast<float>(kMinusInf)
                                                               : static_cast<float>(max + std::log(sum));
    }
  }
}

}  // namespace quire::testing

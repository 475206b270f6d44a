// Reference mass of prompt rows: each row's softmax by itself, double accumulation, no log-sum-exp from outside.
#pragma once

#include <vector>

#include "kernels/attention_mass.h"
#include "kernels/reference/attention.h"

namespace quire::reference {

template <typename Mod>
void PrefillMass(const PrefillMassParams& p, const Mod& mod) {
  const PageFormat& f = p.table.format;
  const int group = p.q_heads / f.kv_heads;
  std::vector<double> out, weights, sums;
  std::vector<int64_t> positions;
  for (int row = 0; row < p.chunk.rows; ++row) {
    const int64_t q_pos = int64_t{p.chunk.start_pos} + row;
    positions.clear();
    for (int64_t pos = 0; pos <= q_pos; ++pos) {
      if (p.table.page_ids[p.table.page_begin[p.chunk.seq] + pos / f.page_size] >= 0) positions.push_back(pos);
    }
    for (int kv_head = 0; kv_head < f.kv_heads; ++kv_head) {
      sums.assign(static_cast<size_t>(p.mass_pages), 0.0);
      for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        const float* q = p.q + (int64_t{p.chunk.first_row} + row) * p.q_stride + int64_t{head} * f.k_dim;
        AttendPositions(p.table, p.pages, q, p.chunk.seq, head, kv_head, q_pos, p.scale, positions, mod, out, weights);
        for (size_t i = 0; i < positions.size(); ++i) {
          sums[static_cast<size_t>(positions[i] / (p.by_token ? 1 : f.page_size))] += weights[i];
        }
      }
      float* mass = p.mass + (int64_t{row} * f.kv_heads + kv_head) * p.mass_pages;
      for (size_t page = 0; page < sums.size(); ++page) mass[page] = static_cast<float>(sums[page]);
    }
  }
}

}  // namespace quire::reference

// Reference of decode attention with sinks: both parts' scores under one softmax, double accumulation.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/attention_decode_sinks.h"
#include "kernels/reference/attention.h"

namespace quire::reference {

inline void AttentionDecodeSinks(const AttentionSinksParams& p) {
  const AttentionDecodeParams& d = p.decode;
  const PageFormat& f = d.table.format;
  for (int row = 0; row < d.rows; ++row) {
    const int32_t* ids = d.table.page_ids + d.table.page_begin[d.row_seq[row]];
    const int64_t length = d.row_len[row];
    for (int head = 0; head < d.q_heads; ++head) {
      const int kv_head = head / (d.q_heads / f.kv_heads);
      std::vector<int64_t> positions;
      std::vector<double> scores;
      double max = -std::numeric_limits<double>::infinity(), sum = 0;
      for (int64_t pos = 0; pos < length; ++pos) {
        if (pos >= p.sinks && pos < length - p.window) continue;
        const float* q = pos < p.sinks ? p.q_sinks + row * p.q_sinks_stride : d.q + row * d.q_stride;
        double dot = 0;
        for (int c = 0; c < f.k_dim; ++c) {
          dot += double{q[int64_t{head} * f.k_dim + c]} *
                 KAt(d.table, d.pages, ids[pos / f.page_size], kv_head, static_cast<int>(pos % f.page_size), c);
        }
        positions.push_back(pos);
        const double score = dot * d.scale;
        scores.push_back(p.softcap > 0 ? p.softcap * std::tanh(score / p.softcap) : score);
        max = std::max(max, scores.back());
      }
      for (double& s : scores) sum += s = std::exp(s - max);
      for (int c = 0; c < f.v_dim; ++c) {
        double y = 0;
        for (size_t i = 0; i < positions.size(); ++i) {
          y += scores[i] / sum *
               VAt(d.table, d.pages, ids[positions[i] / f.page_size], kv_head,
                   static_cast<int>(positions[i] % f.page_size), c);
        }
        d.out[row * d.out_stride + int64_t{head} * f.v_dim + c] = static_cast<float>(y);
      }
      if (d.lse != nullptr) d.lse[int64_t{row} * d.q_heads + head] = static_cast<float>(max + std::log(sum));
    }
  }
}

}  // namespace quire::reference

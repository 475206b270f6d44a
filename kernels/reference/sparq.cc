#include "kernels/reference/sparq.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/reference/attention.h"

namespace quire::reference {

std::vector<int32_t> SparqWords(const SelectParams& p, int row, int kv_head, int channels) {
  const PageFormat& f = p.table.format;
  std::vector<double> sizes(static_cast<size_t>(f.k_dim / f.word));
  for (int g = 0; g < p.q_heads / f.kv_heads; ++g) {
    for (int c = 0; c < f.k_dim; ++c) {
      sizes[static_cast<size_t>(c / f.word)] += std::abs(QueryOf(p, row, kv_head, g)[c]);
    }
  }
  return TopPages(sizes, (std::min(channels, f.k_dim) + f.word - 1) / f.word);
}

std::vector<std::vector<double>> SparqWeights(const SelectParams& p, int row, int kv_head, int channels) {
  const PageFormat& f = p.table.format;
  const int length = p.row_len[row];
  const int32_t* ids = p.table.page_ids + p.table.page_begin[p.row_seq[row]];
  std::vector<bool> taken(static_cast<size_t>(f.k_dim));
  for (const int32_t word : SparqWords(p, row, kv_head, channels)) {
    for (int w = 0; w < f.word; ++w) taken[static_cast<size_t>(word * f.word + w)] = true;
  }
  std::vector<std::vector<double>> weights;
  for (int g = 0; g < p.q_heads / f.kv_heads; ++g) {
    const float* q = QueryOf(p, row, kv_head, g);
    double of_taken = 0, of_all = 0;
    for (int c = 0; c < f.k_dim; ++c) {
      of_all += std::abs(q[c]);
      if (taken[static_cast<size_t>(c)]) of_taken += std::abs(q[c]);
    }
    const double tau = std::sqrt(f.k_dim * of_taken / of_all);
    std::vector<double> s(static_cast<size_t>(length), -std::numeric_limits<double>::infinity());
    for (int t = 0; t < length; ++t) {
      if (ids[t / f.page_size] < 0) continue;
      double dot = 0;
      for (int c = 0; c < f.k_dim; ++c) {
        if (!taken[static_cast<size_t>(c)]) continue;
        dot += q[c] * KAt(p.table, p.pages, ids[t / f.page_size], kv_head, t % f.page_size, c);
      }
      s[static_cast<size_t>(t)] = of_taken == 0 ? 0 : dot / tau;
    }
    const double max = *std::max_element(s.begin(), s.end());
    double sum = 0;
    for (double& x : s) sum += x = std::exp(x - max);
    for (double& x : s) x /= sum;
    weights.push_back(std::move(s));
  }
  return weights;
}

std::vector<double> SparqScores(const SelectParams& p, int row, int kv_head, int channels) {
  const PageFormat& f = p.table.format;
  const int32_t* ids = p.table.page_ids + p.table.page_begin[p.row_seq[row]];
  std::vector<double> scores(static_cast<size_t>((p.row_len[row] + f.page_size - 1) / f.page_size));
  for (const std::vector<double>& weights : SparqWeights(p, row, kv_head, channels)) {
    for (size_t t = 0; t < weights.size(); ++t) scores[t / static_cast<size_t>(f.page_size)] += weights[t];
  }
  for (size_t page = 0; page < scores.size(); ++page) {
    if (ids[page] < 0) scores[page] = std::numeric_limits<double>::quiet_NaN();
  }
  return scores;
}

std::vector<double> SparqTokenScores(const SelectParams& p, int row, int kv_head, int channels) {
  const PageFormat& f = p.table.format;
  const int32_t* ids = p.table.page_ids + p.table.page_begin[p.row_seq[row]];
  std::vector<double> scores(static_cast<size_t>(p.row_len[row]));
  for (const std::vector<double>& weights : SparqWeights(p, row, kv_head, channels)) {
    for (size_t t = 0; t < weights.size(); ++t) scores[t] += weights[t];
  }
  for (size_t t = 0; t < scores.size(); ++t) {
    if (ids[t / static_cast<size_t>(f.page_size)] < 0) scores[t] = std::numeric_limits<double>::quiet_NaN();
  }
  return scores;
}

std::vector<double> MeanOfV(const SelectParams& p, int row, int kv_head) {
  const PageFormat& f = p.table.format;
  const int32_t* ids = p.table.page_ids + p.table.page_begin[p.row_seq[row]];
  std::vector<double> mean(static_cast<size_t>(f.v_dim));
  for (int t = 0; t < p.row_len[row]; ++t) {
    if (ids[t / f.page_size] < 0) continue;
    for (int c = 0; c < f.v_dim; ++c) {
      mean[static_cast<size_t>(c)] += VAt(p.table, p.pages, ids[t / f.page_size], kv_head, t % f.page_size, c);
    }
  }
  for (double& x : mean) x /= p.row_len[row];
  return mean;
}

}  // namespace quire::reference

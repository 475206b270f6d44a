#include "kernels/reference/hybrid.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/reference/attention.h"

namespace quire::reference {

std::vector<int32_t> HybridChannels(const SelectParams& p, int row, int kv_head, int channels) {
  const int heads = p.q_heads / p.table.format.kv_heads;
  std::vector<double> sizes;
  for (int c = 0; c < p.table.format.k_dim; ++c) {
    double size = 0;
    for (int g = 0; g < heads; ++g) size += std::abs(QueryOf(p, row, kv_head, g)[c]);
    sizes.push_back(size);
  }
  return TopPages(sizes, channels);
}

std::vector<double> HybridScores(const SelectParams& p, int row, int kv_head, int channels, GroupReduce reduce) {
  const PageFormat& f = p.table.format;
  const int heads = p.q_heads / f.kv_heads;
  const int64_t length = p.row_len[row];
  const int32_t* ids = p.table.page_ids + p.table.page_begin[p.row_seq[row]];
  const std::vector<int32_t> chosen = HybridChannels(p, row, kv_head, channels);
  std::vector<double> scores;
  for (int64_t page = 0; page * f.page_size < length; ++page) {
    if (ids[page] < 0) {
      scores.push_back(std::numeric_limits<double>::quiet_NaN());
      continue;
    }
    const int slots = static_cast<int>(std::min<int64_t>(f.page_size, length - page * f.page_size));
    std::vector<double> of_heads(static_cast<size_t>(heads), 0.0);
    for (const int32_t c : chosen) {
      double sum = 0;
      for (int g = 0; g < heads; ++g) sum += QueryOf(p, row, kv_head, g)[c];
      double stands = KAt(p.table, p.pages, ids[page], kv_head, 0, c);
      for (int slot = 1; slot < slots; ++slot) {
        const double k = KAt(p.table, p.pages, ids[page], kv_head, slot, c);
        stands = sum >= 0 ? std::max(stands, k) : std::min(stands, k);
      }
      for (int g = 0; g < heads; ++g) of_heads[static_cast<size_t>(g)] += QueryOf(p, row, kv_head, g)[c] * stands;
    }
    scores.push_back(Reduced(of_heads, reduce));
  }
  return scores;
}

}  // namespace quire::reference

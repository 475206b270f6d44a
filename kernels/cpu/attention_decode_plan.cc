#include "kernels/cpu/attention_decode_plan.h"

namespace quire {
namespace {

// Listed pages of a row, over its KV heads at most.
int64_t MostPages(const AttentionDecodeParams& p, int row, bool exact) {
  const PageFormat& f = p.table.format;
  const int64_t all = (int64_t{p.row_len[row]} + f.page_size - 1) / f.page_size;
  if (!exact) return all;
  if (p.selection == nullptr) return DecodeList::Create(p, row, 0).count;
  int64_t most = 0;
  for (int h = 0; h < f.kv_heads; ++h) {
    most = std::max<int64_t>(most, p.selection->counts[int64_t{row} * f.kv_heads + h]);
  }
  return std::min(most, all);
}

}  // namespace

size_t DecodeWorkspace::Layout(const AttentionDecodeParams& p, const DecodePlan& plan, bool exact, void* workspace,
                               DecodeWorkspace* out) {
  const PageFormat& f = p.table.format;
  int64_t records = 0, pages = 0;
  auto* index = static_cast<int64_t*>(workspace);
  const int64_t rows = p.rows;
  for (int row = 0; row < p.rows; ++row) {
    if (index != nullptr) {
      index[row] = records;
      index[rows + 1 + row] = pages;
    }
    const int64_t most = MostPages(p, row, exact);
    records += plan.Chunks(most);
    pages += most;
  }
  const auto align = [](size_t bytes) { return (bytes + 63) / 64 * 64; };
  size_t bytes = align(sizeof(int64_t) * 2 * static_cast<size_t>(rows + 1));
  const auto take = [&](int64_t floats) {
    float* at = workspace == nullptr ? nullptr : reinterpret_cast<float*>(static_cast<char*>(workspace) + bytes);
    bytes += align(sizeof(float) * static_cast<size_t>(floats));
    return at;
  };
  DecodeWorkspace w;
  w.records = take(records * f.kv_heads * plan.record_floats);
  w.page_sums = take(p.mass == nullptr ? 0 : pages * p.q_heads);
  w.scores = take(plan.ScoresOnStack() ? 0 : 2 * records * f.kv_heads * kDecodeHeadsPerPass * plan.chunk_slots);
  if (index != nullptr) {
    index[rows] = records;
    index[2 * rows + 1] = pages;
    w.first_record = index;
    w.first_page = index + rows + 1;
    *out = w;
  }
  return bytes;
}

size_t AttentionDecodeWorkspace(const AttentionDecodeParams& params) {
  const PageFormat& f = params.table.format;
  return DecodeWorkspace::Layout(params, DecodePlan::Create(f, params.q_heads / f.kv_heads), false, nullptr, nullptr);
}

}  // namespace quire

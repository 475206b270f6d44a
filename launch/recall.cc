// See recall.h.
#include "launch/recall.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <random>

#include "core/base/dtype.h"
#include "kernels/attention_decode.h"

namespace quire::launch {
namespace {

constexpr double kBoundSlack = 1e-4;  // rounding of the kernels' log-sum-exps

}  // namespace

void SelectionSums::Add(const SelectionSums& o) {
  steps += o.steps;
  chosen += o.chosen;
  best += o.best;
  random += o.random;
  recent += o.recent;
  recall += o.recall;
  random_recall += o.random_recall;
  recent_recall += o.recent_recall;
  missing += o.missing;
  bound += o.bound;
  bounds += o.bounds;
  broken_bounds += o.broken_bounds;
}

SelectionSums RecallRecorder::Total() const {
  SelectionSums total;
  for (const auto& [where, sums] : sums_) total.Add(sums);
  return total;
}

void RecallRecorder::OnSelect(const SelectParams& params, const SelectionView& selection) {
  if (!status_.ok() || params.rows == 0) return;
  const PageFormat& format = params.table.format;
  const int longest = *std::max_element(params.row_len, params.row_len + params.rows);
  const int mass_pages = (longest + format.page_size - 1) / format.page_size;
  const size_t heads = static_cast<size_t>(params.rows) * static_cast<size_t>(params.q_heads);
  out_.resize(heads * static_cast<size_t>(format.v_dim));
  mass_.resize(static_cast<size_t>(params.rows) * static_cast<size_t>(format.kv_heads) * static_cast<size_t>(mass_pages));
  lse_.resize(heads);
  read_lse_.resize(heads);

  Context ctx;
  ctx.pool = &pool_;
  AttentionDecodeParams dense;
  dense.q = params.q;
  dense.q_stride = params.q_stride;
  dense.out = out_.data();
  dense.out_stride = int64_t{params.q_heads} * format.v_dim;
  dense.lse = lse_.data();
  dense.rows = params.rows;
  dense.q_heads = params.q_heads;
  dense.row_seq = params.row_seq;
  dense.row_len = params.row_len;
  dense.pages = params.pages;
  dense.table = params.table;
  dense.scale = scale_;
  dense.mass = mass_.data();
  dense.mass_pages = mass_pages;
  AttentionDecodeParams chosen = dense;
  chosen.selection = &selection;
  chosen.lse = read_lse_.data();
  chosen.mass = nullptr;
  chosen.mass_pages = 0;
  for (const AttentionDecodeParams* call : {&dense, &chosen}) {
    status_ = workspace_.Reserve(AttentionDecodeWorkspace(*call));
    if (!status_.ok()) return;
    AttentionDecode(ctx, *call, workspace_.As<void>(), {.softcap = softcap_});
  }
  for (int row = 0; row < params.rows; ++row) {
    for (int head = 0; head < format.kv_heads; ++head) AddStep(params, selection, row, head, mass_pages);
  }
}

void RecallRecorder::AddStep(const SelectParams& params, const SelectionView& selection, int row, int kv_head,
                             int mass_pages) {
  const PageFormat& format = params.table.format;
  const int group = params.q_heads / format.kv_heads;
  const int64_t list = int64_t{row} * format.kv_heads + kv_head;
  const int count = selection.counts[list];
  const int pages = (params.row_len[row] + format.page_size - 1) / format.page_size;
  const int32_t* listed = selection.pages + list * selection.max_pages;
  const std::vector<float> mass(mass_.begin() + list * mass_pages, mass_.begin() + list * mass_pages + pages);
  const auto sum = [&](auto begin, auto end) { return std::accumulate(begin, end, 0.0) / group; };

  SelectionSums step;
  step.steps = 1;
  std::vector<bool> read(static_cast<size_t>(pages));
  for (int i = 0; i < count; ++i) read[static_cast<size_t>(listed[i])] = true;
  for (int g = 0; g < group; ++g) {
    const int64_t head = int64_t{row} * params.q_heads + kv_head * group + g;
    const double kept = std::exp(double{read_lse_[head]} - lse_[head]);  // also right where slots are masked
    const double missing = std::max(0.0, 1 - kept);
    step.chosen += kept / group;
    step.missing += missing / group;
    if (params.pages.meta == nullptr || selection.slot_mask != nullptr) continue;
    const float* q = params.q + row * params.q_stride + int64_t{kv_head * group + g} * format.k_dim;
    const double bound = Bound(params, q, row, kv_head, read, read_lse_[head]);
    step.bound += bound / group;
    ++step.bounds;
    if (missing > bound + kBoundSlack) ++step.broken_bounds;
  }
  std::vector<float> sorted = mass;
  std::nth_element(sorted.begin(), sorted.begin() + std::min(count, pages), sorted.end(), std::greater<>());
  step.best = sum(sorted.begin(), sorted.begin() + std::min(count, pages));
  step.recent = sum(mass.end() - std::min(count, pages), mass.end());
  // The same draw for every policy: of the place alone.
  std::vector<int> order(static_cast<size_t>(pages));
  std::iota(order.begin(), order.end(), 0);
  std::seed_seq place{seed_, static_cast<uint64_t>(params.layer), static_cast<uint64_t>(kv_head),
                      static_cast<uint64_t>(params.row_len[row])};
  std::mt19937_64 random(place);
  for (int i = 0; i < std::min(count, pages); ++i) {
    std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(i) + random() % static_cast<size_t>(pages - i)]);
    step.random += double{mass[static_cast<size_t>(order[static_cast<size_t>(i)])]} / group;
  }
  step.recall = step.best > 0 ? step.chosen / step.best : 1;
  step.random_recall = step.best > 0 ? step.random / step.best : 1;
  step.recent_recall = step.best > 0 ? step.recent / step.best : 1;
  sums_[{params.layer, kv_head}].Add(step);
}

double RecallRecorder::Bound(const SelectParams& params, const float* q, int row, int kv_head,
                             const std::vector<bool>& read, float lse) const {
  const PageFormat& format = params.table.format;
  const int32_t* groups = params.table.group_ids + params.table.group_begin[params.row_seq[row]];
  double left_out = 0;
  VisitFloatDType(format.dtype, [&](auto type) {
    using T = decltype(type);
    const T* meta = static_cast<const T*>(params.pages.meta);
    for (size_t page = 0; page < read.size(); ++page) {
      if (read[page]) continue;
      const T* block = meta + groups[page / kPagesPerGroup] * format.meta_group_stride +
                       kv_head * format.meta_head_stride;
      const int column = static_cast<int>(page % kPagesPerGroup);
      double bound = 0;
      for (int c = 0; c < format.k_dim; ++c) {
        bound += std::max(double{q[c]} * ToFloat(block[format.MetaOffset(0, c, column)]),
                          double{q[c]} * ToFloat(block[format.MetaOffset(1, c, column)]));
      }
      const int64_t tokens = std::min<int64_t>(format.page_size,
                                               params.row_len[row] - static_cast<int64_t>(page) * format.page_size);
      double score = scale_ * bound;
      if (softcap_ > 0) score = softcap_ * std::tanh(score / softcap_);
      left_out += static_cast<double>(tokens) * std::exp(score - lse);
    }
  });
  return std::isinf(left_out) ? 1 : left_out / (1 + left_out);
}

}  // namespace quire::launch

#include "kernels/selection/missing_mass.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/base/check.h"
#include "kernels/cpu/quest_scores.h"
#include "kernels/cuda/missing_mass.h"
#include "kernels/dispatch/dispatch.h"

namespace quire {
namespace {

// Of one query head, scores [pages] being bounds of q · k; those of pages that are gone are NaN.
double BoundOf(const SelectParams& p, const std::vector<float>& scores, const std::vector<char>& listed, int length,
               float softcap, float lse) {
  const int page_size = p.table.format.page_size;
  double left_out = 0;
  for (size_t page = 0; page < listed.size(); ++page) {
    if (listed[page] || std::isnan(scores[page])) continue;
    double score = double{p.scale} * scores[page];
    if (softcap > 0) score = softcap * std::tanh(score / softcap);
    const int tokens = std::min(page_size, length - static_cast<int>(page) * page_size);
    left_out += tokens * std::exp(score - lse);
  }
  return std::isinf(left_out) ? 1 : left_out / (1 + left_out);
}

void BoundsOnCpu(const Context& ctx, const SelectParams& p, const SelectionView& selection, const float* lse,
                 float softcap, float* sums) {
  const PageFormat& f = p.table.format;
  const int heads = p.q_heads / f.kv_heads;
  std::vector<double> parts(static_cast<size_t>(p.rows) * static_cast<size_t>(f.kv_heads));
  ctx.pool->ParallelFor(static_cast<int64_t>(parts.size()), [&](int64_t list, int) {
    const int row = static_cast<int>(list / f.kv_heads), kv_head = static_cast<int>(list % f.kv_heads);
    const int length = p.row_len[row], pages = (length + f.page_size - 1) / f.page_size;
    const int groups = (pages + kPagesPerGroup - 1) / kPagesPerGroup;
    std::vector<char> listed(static_cast<size_t>(pages), 0);
    const int32_t* chosen = selection.pages + list * selection.max_pages;
    for (int i = 0; i < selection.counts[list]; ++i) listed[static_cast<size_t>(chosen[i])] = 1;
    const int32_t* ids = p.table.page_ids + p.table.page_begin[p.row_seq[row]];
    std::vector<float> scores(static_cast<size_t>(groups) * kPagesPerGroup);
    QuestScoreParams s;
    s.dtype = f.dtype;
    s.heads = 1;
    s.k_dim = f.k_dim;
    s.meta = static_cast<const char*>(p.pages.meta) + kv_head * f.meta_head_stride * ElementSize(f.dtype);
    s.group_stride = f.meta_group_stride;
    s.group_ids = p.table.group_ids + p.table.group_begin[p.row_seq[row]];
    s.groups = groups;
    s.scores = scores.data();
    for (int g = 0; g < heads; ++g) {
      const int head = kv_head * heads + g;
      s.q = p.q + row * p.q_stride + int64_t{head} * f.k_dim;
      QuestScores(s);
      for (int page = 0; page < pages; ++page) {
        if (ids[page] < 0) scores[static_cast<size_t>(page)] = std::numeric_limits<float>::quiet_NaN();
      }
      parts[static_cast<size_t>(list)] +=
          BoundOf(p, scores, listed, length, softcap, lse[int64_t{row} * p.q_heads + head]);
    }
  });
  for (int row = 0; row < p.rows; ++row) {
    double sum = 0;
    for (int head = 0; head < f.kv_heads; ++head) sum += parts[static_cast<size_t>(row * f.kv_heads + head)];
    sums[row] = static_cast<float>(sum);
  }
}

int MaxGroups(const SelectParams& p) {
  const int64_t tokens = int64_t{p.table.format.page_size} * kPagesPerGroup;
  return static_cast<int>((p.longest + tokens - 1) / tokens);
}

}  // namespace

size_t MissingMassWorkspace(const Context& ctx, const SelectParams& p) {
  return DispatchValue(
      ctx, [] { return size_t{0}; },
      [&] { return cuda::MissingMassWorkspace(p.table.format, p.rows, p.q_heads, MaxGroups(p)); });
}

void MissingMassBounds(const Context& ctx, const SelectParams& p, const SelectionView& selection, const float* lse,
                       float softcap, float* sums, void* workspace) {
  CHECK(p.pages.meta != nullptr && selection.slot_mask == nullptr);
  Dispatch(
      ctx, [&] { BoundsOnCpu(ctx, p, selection, lse, softcap, sums); },
      [&](Stream stream) {
        return cuda::MissingMass(stream,
                                 {.q = p.q,
                                  .q_stride = p.q_stride,
                                  .rows = p.rows,
                                  .q_heads = p.q_heads,
                                  .row_seq = p.row_seq,
                                  .row_len = p.row_len,
                                  .pages = p.pages,
                                  .table = p.table,
                                  .scale = p.scale,
                                  .softcap = softcap,
                                  .selection = selection,
                                  .lse = lse,
                                  .max_groups = MaxGroups(p),
                                  .sums = sums},
                                 workspace);
      });
}

}  // namespace quire

#include "kernels/selection/history_policy.h"

#include "core/base/check.h"
#include "kernels/cuda/quest.h"
#include "kernels/dispatch/dispatch.h"

namespace quire {

size_t HistoryPolicy::SelectWorkspace(const SelectParams& p) const {
  return sizeof(float) * kPagesPerGroup * static_cast<size_t>(Groups(p)) * p.rows * p.table.format.kv_heads;
}

int64_t HistoryPolicy::SelectBytes(const SelectParams& p) const {
  const PageFormat& f = p.table.format;
  int64_t pages = 0;
  for (int row = 0; row < p.rows; ++row) pages += (p.row_len[row] + f.page_size - 1) / f.page_size;
  return pages * f.kv_heads * Declare().history * static_cast<int64_t>(sizeof(float));
}

Status HistoryPolicy::RememberOnGpu(Stream stream, const RememberParams& p) const {
  return cuda::RememberMass(stream, rule(), p);
}

void HistoryPolicy::Select(const Context& ctx, const SelectParams& p, SelectionView selection, void* workspace) const {
  CheckShape(p);
  CHECK(p.history != nullptr);
  Dispatch(
      ctx, [&] { SelectOnCpu(ctx, p, selection, workspace); },
      [&](Stream stream) { return SelectOnGpu(stream, p, selection, workspace); });
}

Status HistoryPolicy::SelectOnGpu(Stream stream, const SelectParams& p, SelectionView selection, void* workspace) const {
  cuda::QuestParams q = OnGpu(p);
  q.scores = static_cast<float*>(workspace);
  cuda::HistoryScoresParams s;
  s.history = p.history;
  s.rows = p.rows;
  s.kv_heads = p.table.format.kv_heads;
  s.page_size = p.table.format.page_size;
  s.row_seq = p.row_seq;
  s.row_len = p.row_len;
  s.longest = p.longest;
  s.scores = q.scores;
  s.score_stride = int64_t{q.max_groups} * kPagesPerGroup;
  RETURN_IF_ERROR(cuda::HistoryScores(stream, rule(), s));
  return cuda::ListPages(stream, q, selection);
}

void HistoryPolicy::SelectOnCpu(const Context& ctx, const SelectParams& p, SelectionView selection,
                                void* workspace) const {
  const PageFormat& f = p.table.format;
  const int64_t stride = int64_t{Groups(p)} * kPagesPerGroup;
  ctx.pool->ParallelFor(int64_t{p.rows} * f.kv_heads, [&](int64_t list, int) {
    const int row = static_cast<int>(list / f.kv_heads), head = static_cast<int>(list % f.kv_heads);
    const PageHistory& history = p.history[row];
    const int64_t pages = (int64_t{p.row_len[row]} + f.page_size - 1) / f.page_size;
    CHECK(history.values != nullptr);
    CHECK_EQ(history.kv_heads, f.kv_heads);
    CHECK_EQ(history.width, Declare().history);
    CHECK_GE(history.pages, pages);
    float* scores = static_cast<float*>(workspace) + list * stride;
    Score(history, head, pages, scores);
    selection.counts[list] = Choose(p, row, scores, selection.pages + list * selection.max_pages, selection.max_pages);
  });
}

}  // namespace quire

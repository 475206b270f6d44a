// Which metadata groups the scores of pages are made of: what their kernels share. Device code.
#pragma once

#include "kernels/cuda/quest.h"
#include "kernels/cuda/simt.h"
#include "kernels/selection/budget.h"

namespace quire::cuda {

// The metadata groups of a (row, KV head) that are scored: entries [first, last) of the sequence's groups, or of those kept.
struct ScoredGroups {
  const int32_t* ids;   // of the sequence's groups
  const int32_t* kept;  // null: entries are groups
  int first = 0, last = 0;

  QUIRE_DEVICE static ScoredGroups Create(const QuestParams& p, int row, int kv_head) {
    ScoredGroups s = {};
    const int seq = p.row_seq[row];
    if (seq < 0) return s;
    s.ids = p.table.group_ids + p.table.group_begin[seq];
    if (p.kept_groups != nullptr) {
      const int64_t list = int64_t{row} * p.table.format.kv_heads + kv_head;
      s.kept = p.kept_groups + list * p.max_groups;
      s.last = p.kept_counts[list];
      return s;
    }
    const ForcedPages cut = ForcedPages::Create(p.budget, p.row_len[row], p.table.format.page_size);
    if (cut.free == 0) return s;
    s.first = cut.sinks / kPagesPerGroup;
    s.last = (cut.recent + kPagesPerGroup - 1) / kPagesPerGroup;
    return s;
  }
  // Which of the sequence's groups an entry is.
  QUIRE_DEVICE int Group(int entry) const { return kept == nullptr ? entry : kept[entry]; }
  // −1: its pages are gone.
  QUIRE_DEVICE int Id(int entry) const { return ids[Group(entry)]; }
};

}  // namespace quire::cuda

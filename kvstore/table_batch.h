// TableBatch: the page tables of the sequences of one step, end to end, as kernels want them, for one cache group.
// Plain vectors that keep their memory from step to step and travel in the StepPlan as they are.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/page_table.h"
#include "kvstore/page_table.h"

namespace quire {

struct TableBatch {
  std::vector<int32_t> page_ids;
  std::vector<int32_t> page_begin{0};  // [num_seqs + 1]
  std::vector<int32_t> group_ids;
  std::vector<int32_t> group_begin{0};  // [num_seqs + 1]

  void Clear();
  // Adds a sequence; returns its index in the batch.
  int Add(const PageTable& table);
  int num_seqs() const { return static_cast<int>(page_begin.size()) - 1; }
  // Points into the vectors: good until the next Add or Clear. metadata false: group_ids is null.
  PageTableView View(const PageFormat& format, bool metadata) const;
};

}  // namespace quire

// Hierarchical quest's selection on the GPU: scores of metadata groups, the best of these, scores of their pages, the best of
// those. Pointers are device memory. The rules are those of kernels/selection/hierarchical.cc.
#pragma once

#include <cstdint>

#include "core/base/device.h"
#include "core/base/status.h"
#include "kernels/cuda/quest.h"

namespace quire::cuda {

struct HierarchicalParams {
  // Queries are f32. Of the groups: max_groups counts those of the longest row, and scores has room for all; kept_groups and
  // kept_counts are null.
  QuestParams quest;
  int32_t longest = 0;            // tokens of the longest row, or of the longest there may be
  int64_t keep_billionths = 0;    // as GroupCut takes it
  bool codes = false;             // pages of whole groups are scored by their codes of 8 bits
  float* group_scores = nullptr;  // workspace [rows][kv_heads][max_groups]
  int32_t* kept = nullptr;        // workspace [rows][kv_heads][max_groups]
  int32_t* kept_counts = nullptr;  // workspace [rows][kv_heads]
};

// group_scores[row][kv_head][i] = quest's bound over the whole group, from the min and max over its pages, of the cut's group i;
// where a row's cut keeps all groups nothing is written. f32; each sum is in one order.
// Bytes: rows * kv_heads * groups * 2 * k_dim * element size.
Status GroupScores(Stream stream, const HierarchicalParams& params);

Status HierarchicalSelect(Stream stream, const HierarchicalParams& params, SelectionView selection);

}  // namespace quire::cuda

// Quest's selection on the GPU: page scores from the channel-major metadata, then the best pages of each (row, KV head) with
// the forced ones, ascending. Pointers are device memory. The rules are those of kernels/selection/quest.cc.
#pragma once

#include <cstdint>
#include <string>

#include "core/base/device.h"
#include "core/base/dtype.h"
#include "core/base/status.h"
#include "kernels/cpu/quest_scores.h"
#include "kernels/cuda/page_scores.h"
#include "kernels/page_table.h"
#include "kernels/selection.h"
#include "kernels/selection/budget.h"

namespace quire::cuda {

struct QuestParams {
  const void* q = nullptr;  // [rows][q_heads][k_dim] of q_dtype, row stride q_stride; rotated
  int64_t q_stride = 0;
  int rows = 0;
  int q_heads = 0;
  const int32_t* row_seq = nullptr;  // [rows] index into table; negative: padding, its count becomes 0
  const int32_t* row_len = nullptr;  // [rows] tokens in the cache, the current one included
  LayerPages pages;
  PageTableView table;
  PageBudget budget;
  GroupReduce reduce = GroupReduce::kMax;
  // Metadata groups of the longest row, or of the longest there may be (a captured graph); with kept_groups: of their lists.
  int max_groups = 0;
  float* scores = nullptr;  // workspace [rows][kv_heads][max_groups * 16]
  // Pages of these groups alone are scored, the scores in the groups' order, and chosen from; null: of all groups.
  const int32_t* kept_groups = nullptr;  // [rows][kv_heads][max_groups] ascending
  const int32_t* kept_counts = nullptr;  // [rows][kv_heads]
};

// How the scores' work is cut, of sizes alone. A page's score is the same whatever the cut.
struct QuestScoresConfig : GroupBlocks {
  bool tensor_cores = false;
  int heads_at_once = 1;  // query heads of a KV head that a warp scores together
  size_t shared_bytes = 0;
  // max_groups: as in QuestParams.
  static QuestScoresConfig For(const PageFormat& format, int rows, int q_heads, int max_groups);
  std::string ToString() const;
};

// scores[row][kv_head][page] = reduce over the query group of Σ_c max(q_c · min_c, q_c · max_c), for the pages that may be
// chosen freely; the rest is not written. With kept_groups: [row][kv_head][16 · place of the group + column], for all pages of
// the groups. f32; each page's sum is in one order.
// Bytes: rows * kv_heads * groups * 2 * k_dim * 16 * element size.
Status QuestScores(Stream stream, DType q_dtype, const QuestParams& params);

// The lists from such scores: TopPages with what params say.
Status ListPages(Stream stream, const QuestParams& params, SelectionView selection);

// Both.
Status QuestSelect(Stream stream, DType q_dtype, const QuestParams& params, SelectionView selection);

}  // namespace quire::cuda

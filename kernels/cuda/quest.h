// Quest's selection on the GPU: page scores from the channel-major metadata, then the best pages of each (row, KV head) with
// the forced ones, ascending. Pointers are device memory. The rules are those of kernels/selection/quest.cc.
#pragma once

#include <cstdint>
#include <string>

#include "core/base/device.h"
#include "core/base/dtype.h"
#include "core/base/status.h"
#include "kernels/cpu/quest_scores.h"
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
  int max_groups = 0;       // metadata groups of the longest row, or of the longest there may be (a captured graph)
  float* scores = nullptr;  // workspace [rows][kv_heads][max_groups * 16]
};

// How the scores' work is cut, of sizes alone. A page's score is the same whatever the cut.
struct QuestScoresConfig {
  bool tensor_cores = false;
  int heads_at_once = 1;  // query heads of a KV head that a warp scores together
  int warps = 4;
  int groups_per_warp = 1;
  int parts = 1;  // blocks along the groups
  size_t shared_bytes = 0;
  // max_groups: as in QuestParams.
  static QuestScoresConfig For(const PageFormat& format, int rows, int q_heads, int max_groups);
  std::string ToString() const;
};

struct TopPagesConfig {
  int threads = 256;
  int cached_keys = 0;  // a block's keys in shared memory; lists with more read their scores again
  size_t shared_bytes = 0;
  static TopPagesConfig For(int max_pages_of_a_list);
  std::string ToString() const;
};

// scores[row][kv_head][page] = reduce over the query group of Σ_c max(q_c · min_c, q_c · max_c), for the pages that may be
// chosen freely; the rest is not written. f32; each page's sum is in one order.
// Bytes: rows * kv_heads * groups * 2 * k_dim * 16 * element size.
Status QuestScores(Stream stream, DType q_dtype, const QuestParams& params);

struct TopPagesParams {
  const float* scores = nullptr;  // [rows][kv_heads][score_stride]
  int64_t score_stride = 0;
  int rows = 0;
  int kv_heads = 0;
  int page_size = 1;
  PageBudget budget;
  const int32_t* row_seq = nullptr;
  const int32_t* row_len = nullptr;
  const int32_t* page_ids = nullptr;    // pages whose id is negative are never chosen; null: all are there
  const int32_t* page_begin = nullptr;  // [num_seqs + 1]; null with page_ids
  SelectionView selection;
};
// Sinks, recent pages and the budget's best of the others: equal scores to the lower index, NaN never wins, ids ascend.
// Writes selection.pages and counts. max_pages must hold the budget at every row's length. longest: pages of the longest list there may be.
Status TopPages(Stream stream, const TopPagesParams& params, int longest);

// Both.
Status QuestSelect(Stream stream, DType q_dtype, const QuestParams& params, SelectionView selection);

}  // namespace quire::cuda

// The top-k of pages on the GPU: lists of the forced pages and the best of the others. Pointers are device memory. The rules
// are those of kernels/selection/page_policy.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/base/device.h"
#include "core/base/status.h"
#include "kernels/selection.h"
#include "kernels/selection/budget.h"

namespace quire::cuda {

// How a top-k of a list is cut.
struct TopPagesConfig {
  int threads = 256;
  int cached_keys = 0;  // a block's keys in shared memory; lists with more read their scores again
  size_t shared_bytes = 0;
  static TopPagesConfig For(int max_pages_of_a_list);
  std::string ToString() const;
};

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
  // Of pages that aren't forced, those of these metadata groups alone may be chosen, and scores are theirs, 16 a group in
  // the groups' order; null: all, scores by page.
  const int32_t* kept_groups = nullptr;  // [rows][kv_heads][kept_stride] ascending
  const int32_t* kept_counts = nullptr;  // [rows][kv_heads]
  int kept_stride = 0;
  SelectionView selection;
};
// Sinks, recent pages and the budget's best of the others: equal scores to the lower index, NaN never wins, ids ascend.
// Writes selection.pages and counts. max_pages must hold the budget at every row's length. longest: pages of the longest list
// there may be, or 16 · kept_stride.
Status TopPages(Stream stream, const TopPagesParams& params, int longest);

// Of lists of pages with weights, the fewest pages that together hold a share of their list's weight, the forced ones first:
// equal weights to the lower index, NaN never, ids ascend. max_pages must hold the longest list.
struct TopShareParams {
  const float* weights = nullptr;     // [rows][kv_heads][list_stride], each at most the query group's size
  const int32_t* lists = nullptr;     // [rows][kv_heads][list_stride] ascending
  const int32_t* counts = nullptr;    // [rows][kv_heads]
  int list_stride = 0;
  int rows = 0;
  int kv_heads = 0;
  int page_size = 1;
  PageBudget budget;
  double share = 1;  // 0 to 1
  const int32_t* row_seq = nullptr;
  const int32_t* row_len = nullptr;
  SelectionView selection;
};
Status TopShare(Stream stream, const TopShareParams& params);

// Hierarchical's first choice: the metadata groups that a row's cut (GroupCut) keeps, by their scores.
struct TopGroupsParams {
  const float* scores = nullptr;  // [rows][kv_heads][max_groups], of the cut's groups from its first on
  int max_groups = 0;             // of the longest row there may be
  int rows = 0;
  int kv_heads = 0;
  int page_size = 1;
  PageBudget budget;
  int64_t keep_billionths = 0;  // as GroupCut takes it
  const int32_t* row_seq = nullptr;
  const int32_t* row_len = nullptr;
  int32_t* kept_groups = nullptr;  // [rows][kv_heads][kept_stride] out
  int32_t* kept_counts = nullptr;  // [rows][kv_heads] out
  int kept_stride = 0;             // at least what any cut keeps
};
// Where a cut keeps all groups their scores aren't read.
Status TopGroups(Stream stream, const TopGroupsParams& params);

}  // namespace quire::cuda

// What sparq does behind the weights of pages (page_weights.h) on the GPU: the choice of tokens, and the correction by the mean
// of V. Pointers are device memory. The rules are those of kernels/selection/sparq.cc.
#pragma once

#include <cstdint>

#include "core/base/device.h"
#include "core/base/status.h"
#include "kernels/page_history.h"
#include "kernels/page_table.h"
#include "kernels/selection.h"
#include "kernels/selection/budget.h"

namespace quire::cuda {

// The rows, and what PageWeights has made of all their pages.
struct SparqRows {
  int rows = 0;
  int q_heads = 0;
  const int32_t* row_seq = nullptr;  // [rows] index into table; negative: no row
  const int32_t* row_len = nullptr;  // [rows] tokens in the cache, the current one included
  LayerPages pages;
  PageTableView table;
  int max_pages = 0;                     // of the longest row there may be
  const float* shares = nullptr;         // [rows][kv_heads][query group][max_pages] PageWeightsParams::sum
  const float* token_scores = nullptr;   // [rows][kv_heads][query group][max_pages · page_size]; null: pages are chosen
  const float* softmax = nullptr;        // [rows][kv_heads][query group][2]
};

struct TopTokensParams {
  SparqRows rows;
  PageBudget budget;           // of tokens, as if they were pages of one
  float* weights = nullptr;    // workspace [rows][kv_heads][max_pages · page_size]
  int32_t* tokens = nullptr;   // workspace [rows][kv_heads][max_tokens]
  int32_t* counts = nullptr;   // workspace [rows][kv_heads]
  int max_tokens = 0;          // the budget at the longest row there may be
  SelectionView selection;     // pages, counts and slot_mask out
};
// The first tokens, the latest, and of the others those with the largest sum over the query group of their softmax weights: as
// lists of their pages, with masks. Of a page that is gone none.
// Bytes: a score a token and query head, and twice a weight a token.
Status TopTokens(Stream stream, const TopTokensParams& params);

struct SparqCorrectionParams {
  SparqRows rows;
  const PageHistory* history = nullptr;  // [rows] by page Σ V up to its end, and a mark that it is made: v_dim + 1 floats
  int first_head = 0;                    // of the q_heads, those whose alpha is wanted; heads 0: all
  int heads = 0;
  SelectionView selection;  // the lists; alpha and v_mean out
};
// alpha: the part of each head's softmax that its list holds; v_mean: the mean of V over all tokens, from the sums up to the
// last full page, which are made where they are missing, in the CPU's order.
// Bytes: V of the pages without a sum and of the partly filled one, and a sum a list.
Status SparqCorrect(Stream stream, const SparqCorrectionParams& params);

}  // namespace quire::cuda

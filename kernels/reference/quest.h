// Reference quest: scores from K itself (min and max over each page's slots), double accumulation, and a selection by
// sorting. The fast path reads metadata and must agree.
#pragma once

#include <vector>

#include "kernels/cpu/quest_scores.h"
#include "kernels/selection/policy.h"

namespace quire::reference {

// Query head g of the row's and KV head's query group: [k_dim].
const float* QueryOf(const SelectParams& params, int row, int kv_head, int g);

// The group_reduce of the scores of a query group's heads.
double Reduced(const std::vector<double>& scores, GroupReduce reduce);

// Bounds of runs of `pages` pages each of one (row, KV head), the last run with what is left; a run with a freed page
// is NaN.
std::vector<double> Bounds(const SelectParams& params, int row, int kv_head, int pages, GroupReduce reduce);

// Scores of all pages of one (row, KV head); a freed page scores NaN.
std::vector<double> QuestScores(const SelectParams& params, int row, int kv_head, GroupReduce reduce);

// Ascending indices of the k best scores, ties to the lower index, NaN left out.
std::vector<int32_t> TopPages(const std::vector<double>& scores, int k);

}  // namespace quire::reference

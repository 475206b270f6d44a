// Reference hierarchical quest: bounds of groups and of pages from K itself, double accumulation, choices by sorting.
#pragma once

#include <vector>

#include "kernels/reference/quest.h"
#include "kernels/selection/budget.h"

namespace quire::reference {

// Bounds of the metadata groups (16 pages each) of one (row, KV head), over every page they have.
std::vector<double> GroupScores(const SelectParams& params, int row, int kv_head, GroupReduce reduce);

// Scores of all pages with those of whole groups bounded by codes of 8 bits (metadata=int8, kernels/metadata_codes.h): the
// least code times step above lo that is no smaller than the page's max, the largest that is no larger than its min. Groups
// that hold an infinity or a NaN are scored as QuestScores does.
std::vector<double> CodedScores(const SelectParams& params, int row, int kv_head, GroupReduce reduce);

// The list of one (row, KV head), and how clear a choice it was: the least distance between what a cut took and what it
// left. What lies nearer than the fast path's rounding may fall either way there. Infinite where nothing was left out.
struct HierarchicalChoice {
  std::vector<int32_t> pages;
  double gap;
};
HierarchicalChoice Hierarchical(const SelectParams& params, int row, int kv_head, GroupReduce reduce,
                                const PageBudget& budget, double keep, bool codes = false);

}  // namespace quire::reference

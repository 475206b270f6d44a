// Reference top-p: exact softmax weights over the tokens of listed pages, and the fewest pages that hold a share of
// them.
#pragma once

#include <vector>

#include "kernels/selection/policy.h"

namespace quire::reference {

// Of each listed page: its tokens' softmax weights over all listed tokens, summed over the query group.
std::vector<double> ListedMass(const SelectParams& params, int row, int kv_head, const std::vector<int32_t>& pages);

// Of pages with these masses, the fewest that with the forced ones hold `share` of the sum. Ascending indices.
std::vector<int32_t> FewestWith(const std::vector<double>& mass, const std::vector<bool>& forced, double share);

}  // namespace quire::reference

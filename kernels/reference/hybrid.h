// Reference hybrid: channels by sorting, each page's min or max from K itself, double accumulation.
#pragma once

#include <vector>

#include "kernels/reference/quest.h"

namespace quire::reference {

// The `channels` channels with the largest Σ|q| over the query group, ascending; ties to the lower channel.
std::vector<int32_t> HybridChannels(const SelectParams& params, int row, int kv_head, int channels);

// Scores of all pages of one (row, KV head); a freed page scores NaN.
std::vector<double> HybridScores(const SelectParams& params, int row, int kv_head, int channels, GroupReduce reduce);

}  // namespace quire::reference

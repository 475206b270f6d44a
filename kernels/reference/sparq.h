// Reference sparq by pages: words of channels by sorting, softmax over all tokens straight from K, double accumulation.
#pragma once

#include <vector>

#include "kernels/reference/quest.h"

namespace quire::reference {

// The words (channel / w) with the largest Σ|q| over the query group that hold `channels` channels, ascending; ties to
// the lower word.
std::vector<int32_t> SparqWords(const SelectParams& params, int row, int kv_head, int channels);

// Σ of the approximate softmax over each page's tokens and over the query group; a freed page scores NaN.
std::vector<double> SparqScores(const SelectParams& params, int row, int kv_head, int channels);

}  // namespace quire::reference

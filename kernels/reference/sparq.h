// Reference sparq by pages and by tokens: words of channels by sorting, softmax over all tokens straight from K, double accumulation.
#pragma once

#include <vector>

#include "kernels/reference/quest.h"

namespace quire::reference {

// The words (channel / w) with the largest Σ|q| over the query group that hold `channels` channels, ascending; ties to
// the lower word.
std::vector<int32_t> SparqWords(const SelectParams& params, int row, int kv_head, int channels);

// The approximate softmax of each query head of the group over all tokens: [heads][tokens], 0 in a freed page.
std::vector<std::vector<double>> SparqWeights(const SelectParams& params, int row, int kv_head, int channels);

// Σ of it over each page's tokens and over the query group; a freed page scores NaN.
std::vector<double> SparqScores(const SelectParams& params, int row, int kv_head, int channels);

// Σ of it over the query group, by token; those of a freed page score NaN.
std::vector<double> SparqTokenScores(const SelectParams& params, int row, int kv_head, int channels);

// The mean of V over all tokens, [v_dim]; a freed page's count as zeros.
std::vector<double> MeanOfV(const SelectParams& params, int row, int kv_head);

}  // namespace quire::reference

// Top logits of each row with the row's log-sum-exp: what ranks exchange instead of the whole vocabulary.
#pragma once

#include <cstdint>

#include "core/base/context.h"

namespace quire {

struct TopCandidatesParams {
  const float* logits = nullptr;  // [rows][vocab], row stride `stride`
  int64_t stride = 0;
  int64_t rows = 0;
  int64_t vocab = 0;
  int32_t vocab_begin = 0;  // first id of this slice
  int k = 1;                // ≤ vocab
  int32_t* ids = nullptr;    // [rows][k], by descending logit, ties by ascending id; NaN never wins
  float* values = nullptr;   // [rows][k]
  float* lse = nullptr;      // [rows] log Σ exp over the slice
};

void TopCandidates(const Context& ctx, const TopCandidatesParams& params);
// The largest k that it takes.
int MostCandidates(const Context& ctx);

}  // namespace quire

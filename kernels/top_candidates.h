// Top logits of each row with the row's log-sum-exp: what ranks exchange instead of the whole vocabulary. And single logits.
#pragma once

#include <cstdint>

#include "core/base/context.h"
#include "kernels/logit_edit.h"

namespace quire {

struct TopCandidatesParams {
  const float* logits = nullptr;  // [rows][vocab], row stride `stride`; not changed
  int64_t stride = 0;
  int64_t rows = 0;
  int64_t vocab = 0;
  int32_t vocab_begin = 0;  // first id of this slice
  int k = 1;                // ≤ vocab
  int32_t* ids = nullptr;    // [rows][k], by descending logit, ties by ascending id; NaN never wins
  float* values = nullptr;   // [rows][k]
  float* lse = nullptr;      // [rows] log Σ exp over the slice
  // Null: row i is row i of the logits, as it is. Else which row it is, edited and scaled so; all above is of that.
  const CandidateRow* row_of = nullptr;  // [rows]
  const LogitEdit* edits = nullptr;      // those that row_of names; null when it names none
  float* work = nullptr;                 // [rows][vocab] for edited rows; only the CPU wants it, and only with row_of
};

void TopCandidates(const Context& ctx, const TopCandidatesParams& params);
// The largest k that it takes.
int MostCandidates(const Context& ctx);
// Bytes of the session's Scratch that a call of these sizes takes; 0 on the CPU.
size_t TopCandidatesScratch(const Context& ctx, int64_t rows, int64_t vocab, int k);

struct GatherLogitsParams {
  const float* logits = nullptr;  // [..][vocab], row stride `stride`
  int64_t stride = 0;
  int64_t rows = 0;
  int64_t vocab = 0;
  int32_t vocab_begin = 0;
  int k = 1;
  const CandidateRow* row_of = nullptr;  // [rows] of which `row` counts: logits are neither edited nor scaled here
  const int32_t* ids = nullptr;          // [rows][k]
  float* out = nullptr;                  // [rows][k]; 0 for an id outside the slice
};

void GatherLogits(const Context& ctx, const GatherLogitsParams& params);

}  // namespace quire

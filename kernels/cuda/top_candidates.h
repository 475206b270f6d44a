// Top logits of each row with the row's log-sum-exp, and single logits, on the GPU: kernels/top_candidates.h. Pointers are device
// memory.
#pragma once

#include <cstdint>
#include <string>

#include "core/base/device.h"
#include "core/base/dtype.h"
#include "core/base/status.h"
#include "kernels/logit_edit.h"

namespace quire::cuda {

struct TopCandidatesParams {
  const void* logits = nullptr;  // [rows][vocab] of dtype, row stride `stride`
  int64_t stride = 0;
  int64_t rows = 0;
  int64_t vocab = 0;
  int32_t vocab_begin = 0;  // first id of this slice
  int k = 1;                // ≤ vocab and ≤ kMaxCandidates
  int32_t* ids = nullptr;   // [rows][k], by descending logit, ties by ascending id; NaN last, with −inf as its value
  float* values = nullptr;  // [rows][k]
  float* lse = nullptr;     // [rows] log Σ exp over the slice, NaN left out
  void* workspace = nullptr;  // TopCandidatesConfig::workspace_bytes, 16-byte aligned
  const CandidateRow* row_of = nullptr;  // [rows], 16-byte aligned, nullable: edited and scaled rows instead of all rows as they are
  const LogitEdit* edits = nullptr;      // 16-byte aligned
};

inline constexpr int kMaxCandidates = 1024;

// Two launches: the best k of every chunk of the vocabulary, then the best k of those. Chunks are cut by size alone.
struct TopCandidatesConfig {
  int chunk = 4096;      // logits of a block of the first launch
  int chunks = 1;        // of a row
  int kept = 1;          // of a chunk: min(k, chunk)
  int merge_keys = 0;    // keys of the second launch's block in shared memory: all of them, or 0 where they don't fit
  size_t shared_bytes = 0, merge_shared_bytes = 0;
  size_t workspace_bytes = 0;
  static TopCandidatesConfig For(int64_t rows, int64_t vocab, int k);
  std::string ToString() const;
};

// Bytes: rows * vocab * element size. A row's edits are looked through by each of its chunks.
Status TopCandidates(Stream stream, DType dtype, const TopCandidatesParams& params);

struct GatherLogitsParams {
  const void* logits = nullptr;  // of dtype, row stride `stride`
  int64_t stride = 0;
  int64_t rows = 0;
  int64_t vocab = 0;
  int32_t vocab_begin = 0;
  int k = 1;
  const CandidateRow* row_of = nullptr;  // [rows] of which `row` counts
  const int32_t* ids = nullptr;          // [rows][k]
  float* out = nullptr;                  // [rows][k]; 0 for an id outside the slice
};
Status GatherLogits(Stream stream, DType dtype, const GatherLogitsParams& params);

}  // namespace quire::cuda

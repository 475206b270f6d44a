// Attention history on the GPU, for the policies that choose pages by it: a row's mass goes into the history of its sequence,
// and a history becomes the scores of pages. Pointers are device memory. What is remembered is as kernels/selection/{h2o,swa,tova}.cc
// say it, with the same arithmetic in the same order: the same mass gives the same bits.
#pragma once

#include <cstdint>

#include "core/base/device.h"
#include "core/base/status.h"
#include "kernels/page_history.h"

namespace quire::cuda {

enum class HistoryRule {
  kSum,   // h2o: of all masses since the page was written
  kLast,  // tova: the last one, or that the page was left out
  kRing,  // swa: the last `width` ones, of which a page that wasn't read repeats its own
};

// Bytes: the mass and the history of the pages up to each row's, once, and the lists of what was read.
Status RememberMass(Stream stream, HistoryRule rule, const RememberParams& params);

struct HistoryScoresParams {
  const PageHistory* history = nullptr;  // [rows]
  int rows = 0;
  int kv_heads = 0;
  int page_size = 1;
  const int32_t* row_seq = nullptr;  // [rows] negative: no row
  const int32_t* row_len = nullptr;  // [rows] tokens in the cache, the current one included
  int64_t longest = 0;               // at least the longest row_len
  float* scores = nullptr;           // [rows][kv_heads][score_stride] out: of each row's pages; NaN: never chosen
  int64_t score_stride = 0;
};
// Bytes: the history of each row's pages, read, and a score a page.
Status HistoryScores(Stream stream, HistoryRule rule, const HistoryScoresParams& params);

}  // namespace quire::cuda

// What streaming (kernels/selection/streaming.cc) has on the GPU beside decode attention: the pages of its two parts, and
// the merge of their attention (kernels/attention_decode_sinks.h). Pointers are device memory. A row whose sequence is
// negative is padding.
#pragma once

#include <cstdint>

#include "core/base/device.h"
#include "core/base/status.h"
#include "kernels/page_table.h"
#include "kernels/selection.h"

namespace quire::cuda {

// Ascending lists of the pages with the first `sinks` tokens and the last `window` ones, the same for all KV heads; freed pages
// are left out. selection.max_pages holds them.
struct SinkPagesParams {
  int sinks = 0;
  int window = 0;
  int rows = 0;
  const int32_t* row_seq = nullptr;  // [rows]
  const int32_t* row_len = nullptr;  // [rows] more than the window
  PageTableView table;
  SelectionView selection;
};
Status SinkPages(Stream stream, const SinkPagesParams& params);

// lengths [rows] = sinks.
Status SinkLengths(Stream stream, int sinks, int rows, int32_t* lengths);

// Attention over the sinks joins that over the window, by log-sum-exps; where there are no sinks out stays.
// Bytes: rows * q_heads * v_dim * 12.
struct MergeSinksParams {
  const float* sinks = nullptr;       // [rows][q_heads][v_dim]
  const float* sinks_lse = nullptr;   // [rows][q_heads]; −inf: none
  const float* window_lse = nullptr;  // [rows][q_heads]
  float* out = nullptr;               // [rows][q_heads][v_dim] the window's, row stride out_stride; becomes both's
  int64_t out_stride = 0;
  float* lse = nullptr;  // [rows][q_heads] of both, nullable
  int rows = 0;
  int q_heads = 0;
  int v_dim = 0;
};
Status MergeSinks(Stream stream, const MergeSinksParams& params);

}  // namespace quire::cuda

// Attention weights by pages on the GPU, of all channels of K or of those where the queries are largest: top-p's and sparq's
// scores. Pointers are device memory. The rules are those of kernels/selection/top_p.cc and sparq.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/base/device.h"
#include "core/base/status.h"
#include "kernels/page_table.h"

namespace quire::cuda {

struct PageWeightsParams {
  const float* q = nullptr;  // [rows][q_heads][k_dim], row stride q_stride; rotated
  int64_t q_stride = 0;
  int rows = 0;
  int q_heads = 0;
  const int32_t* row_seq = nullptr;  // [rows] index into table; negative: padding, nothing is weighed
  const int32_t* row_len = nullptr;  // [rows] tokens in the cache, the current one included
  LayerPages pages;
  PageTableView table;
  // Words of K (4 bytes a token) that count: 0: all, and a score is q·k · scale. Otherwise those with the largest Σ|q| over the
  // query group, equal ones to the lower, none where a query is NaN; and a score is q·k over their channels / τ, τ = √(k_dim ·
  // Σ|q there| / Σ|q|).
  int words = 0;
  float scale = 1;
  // The pages that are weighed; null: all of a row's. Ascending.
  const int32_t* lists = nullptr;   // [rows][kv_heads][max_pages]
  const int32_t* counts = nullptr;  // [rows][kv_heads]
  int max_pages = 0;                // of the longest list, or of the longest there may be
  float* max = nullptr;      // workspace [rows][kv_heads][query group][max_pages]
  float* sum = nullptr;      // the same; becomes the pages' shares of each head's softmax
  float* weights = nullptr;  // [rows][kv_heads][max_pages] out, in the lists' order
  // Of the tokens, where lists is null: their scores (of a page that is gone nothing is written), and what makes weights of
  // them: a token's is exp(score − softmax[0]) · softmax[1]. Both null: not wanted.
  float* token_scores = nullptr;  // [rows][kv_heads][query group][max_pages · page_size] out
  float* softmax = nullptr;       // [rows][kv_heads][query group][2] out
};

// How pages are dealt out, of sizes alone. A weight is the same whatever the cut.
struct PageWeightsConfig {
  int heads_at_once = 1;
  int chunk_pages = 1;  // pages whose scores a block has at once
  int strip_slots = 1;  // of a page, of which it has so many at once
  int chunks_per_block = 1;
  int parts = 1;  // blocks along the pages of a list
  size_t shared_bytes = 0;
  static PageWeightsConfig For(const PageFormat& format, int rows, int q_heads, int words, int max_pages);
  std::string ToString() const;
};

// weights[page] = Σ over the query group of the softmax weights of the page's tokens among those of all pages that are weighed;
// NaN where a score of it is, which then is in no softmax. 0 for a page that is gone. f32; each sum is in one order.
// Bytes: rows * kv_heads * pages * page_size * (words · 4, or k_dim * element size).
Status PageWeights(Stream stream, const PageWeightsParams& params);

}  // namespace quire::cuda

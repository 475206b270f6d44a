// Append on the GPU: kernels/kv_append.h with the rotation of q and k fused in. Pointers are device memory.
#pragma once

#include <cstdint>
#include <string>

#include "core/base/device.h"
#include "core/base/dtype.h"
#include "core/base/status.h"
#include "kernels/page_table.h"

namespace quire::cuda {

struct KvAppendParams {
  LayerPages pages;     // one layer
  PageTableView table;
  void* q = nullptr;    // [rows][q_heads][k_dim] of the rows' dtype, row stride q_stride; rotated in place; nullable
  int64_t q_stride = 0;
  int q_heads = 0;
  const void* k = nullptr;  // [rows][kv_heads][k_dim], row stride k_stride; not rotated yet
  int64_t k_stride = 0;
  const void* v = nullptr;  // [rows][kv_heads][v_dim], row stride v_stride
  int64_t v_stride = 0;
  // Of RopeTable, [rows][2][rotary_dim / 2]; null: nothing is rotated (q is left alone). See kernels/elementwise.h.
  const float* cos_sin = nullptr;
  int rotary_dim = 0;
  bool interleaved = false;
  // Rows of one sequence are consecutive and ascending in position. A row whose sequence is negative is padding.
  const int32_t* row_seq = nullptr;  // [rows]
  const int32_t* row_pos = nullptr;  // [rows]
  int64_t rows = 0;
  int64_t pos_head_stride = 0;  // as in kernels/kv_append.h
};

// How an append is cut; of sizes alone.
struct KvAppendConfig {
  int lanes = 32;             // threads side by side over a row's words
  int row_lanes = 1;          // rows of a page at once
  int q_heads_per_block = 0;  // 0: no q
  int q_blocks = 0;
  size_t shared_bytes = 0;

  static KvAppendConfig For(const PageFormat& format, int q_heads, int64_t rows, int num_seqs);
  int threads() const { return lanes * row_lanes; }
  std::string ToString() const;
};

// dtype: of q, k and v; f32 or the cache's. Values are rotated in f32 and rounded once, to nearest even; metadata is of the
// rounded values, and of all rows of a page or group that this call brings, with what was there before. A row in slot 0 of a
// page resets that page's column, one in slot 0 of a group's first page resets the group. One that makes a group whole brings
// its codes of 8 bits, where pages has them.
// Bytes: rows * ((q_heads * 2 + kv_heads) * k_dim + kv_heads * v_dim) * element size read and written, metadata apart.
Status KvAppend(Stream stream, DType dtype, const KvAppendParams& params);

}  // namespace quire::cuda

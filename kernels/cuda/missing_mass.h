// The bound of the attention that selections leave out, on the GPU: kernels/selection/missing_mass.h, whose rules these are.
// Pointers are device memory. f32 throughout; each sum is in one order, which follows from sizes alone.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/base/device.h"
#include "core/base/status.h"
#include "kernels/page_table.h"
#include "kernels/selection.h"

namespace quire::cuda {

struct MissingMassParams {
  const float* q = nullptr;  // [rows][q_heads][k_dim], row stride q_stride; rotated
  int64_t q_stride = 0;
  int rows = 0;
  int q_heads = 0;
  const int32_t* row_seq = nullptr;  // [rows] index into table; negative: padding, its sum becomes 0
  const int32_t* row_len = nullptr;  // [rows] tokens in the cache, the current one included
  LayerPages pages;
  PageTableView table;
  float scale = 1.0f;
  float softcap = 0.0f;  // 0: none
  SelectionView selection;     // of whole pages
  const float* lse = nullptr;  // [rows][q_heads] natural, of what was read
  int max_groups = 0;          // metadata groups of the longest row, or of the longest there may be (a captured graph)
  float* sums = nullptr;       // [rows] out: of the bounds of the row's query heads
};

// Bytes of workspace.
size_t MissingMassWorkspace(const PageFormat& format, int rows, int q_heads, int max_groups);
// Bytes: rows * kv_heads * 2 * k_dim * 16 * element size for each metadata group with a page that was left out, once for up
// to eight query heads of a group.
Status MissingMass(Stream stream, const MissingMassParams& params, void* workspace);

}  // namespace quire::cuda

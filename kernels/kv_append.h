// Writes new K and V rows into pages and keeps the page metadata (channel-wise min and max of K, per page and
// per group of 16 pages) right for partly filled pages and groups.
#pragma once

#include <cstdint>

#include "core/base/context.h"
#include "kernels/elementwise.h"
#include "kernels/page_table.h"

namespace quire {

struct KvAppendParams {
  LayerPages pages;                // one layer
  PageTableView table;
  const float* k = nullptr;        // [rows][kv_heads][k_dim], row stride k_stride; rotated already
  int64_t k_stride = 0;
  const float* v = nullptr;        // [rows][kv_heads][v_dim], row stride v_stride
  int64_t v_stride = 0;
  const int32_t* row_seq = nullptr;  // [rows] index into table
  const int32_t* row_pos = nullptr;  // [rows] token position; rows of one sequence are consecutive and ascending
  int64_t rows = 0;
  // Not 0: positions of KV head h are row_pos[h * pos_head_stride + row], as evicting sequences write over slots of each
  // head's own. One row a sequence then, and pages without metadata.
  int64_t pos_head_stride = 0;
};

// Values are rounded to the cache's dtype (nearest even); metadata is of the rounded values. A row in slot 0 of a page
// resets that page's column, a row in slot 0 of a group's first page resets the group; later rows only widen them. A row in
// a group's last slot makes its codes, where pages have any.
void KvAppend(const Context& ctx, const KvAppendParams& params);

// Rotates q and k, then appends, a GPU in one launch. rope.x: rows with their q heads, and behind them the k heads that
// append.k points at; where those lie k may stay unrotated afterwards. rope.rotary_dim 0: nothing is rotated.
void RopeKvAppend(const Context& ctx, const RopeParams& rope, const KvAppendParams& append);

// Recomputes from K what KvAppend would have left for one logical page that holds `slots` tokens, and for its group:
// after a truncate, and in the debug check. Columns after `column` in the group are ignored for the group's min/max.
struct MetadataRecomputeParams {
  LayerPages pages;
  PageFormat format;
  int32_t group_id = 0;                  // physical metadata group
  const int32_t* group_pages = nullptr;  // [column + 1] physical pages of the group's logical pages 0 … column
  int column = 0;
  int slots = 0;  // tokens in the page of `column`, 1 … page_size; earlier pages are full
};
void RecomputeMetadata(const Context& ctx, const MetadataRecomputeParams& params);

// Copies whole pages or metadata groups inside one layer (copy on write), and zeroes them (hand-out), on the CPU; page_ops.h
// does so in all layers of any device.
void CopyPage(const LayerPages& pages, const PageFormat& format, int32_t from, int32_t to);
void ZeroPage(const LayerPages& pages, const PageFormat& format, int32_t page);
// Copies columns [0, columns) and resets the rest and the over-group values to those of the copied columns.
void CopyGroup(const LayerPages& pages, const PageFormat& format, int32_t from, int32_t to, int columns);
void ResetGroup(const LayerPages& pages, const PageFormat& format, int32_t group);

}  // namespace quire

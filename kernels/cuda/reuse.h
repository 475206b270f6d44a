// A selection that is used for several steps, on the GPU: which rows select is looked up in device memory, so that one launch
// list serves all steps. Pointers are device memory. The rules are those of kernels/selection/reuse.cc.
#pragma once

#include <cstdint>

#include "core/base/device.h"
#include "core/base/status.h"
#include "kernels/page_history.h"
#include "kernels/page_table.h"
#include "kernels/selection.h"

namespace quire::cuda {

// What a page's entry says; any other value: it was born since, or nothing has been selected yet.
inline constexpr float kReuseListed = 1;
inline constexpr float kReuseLeftOut = 2;

struct ReuseParams {
  int steps = 1;  // R
  int rows = 0;
  const int32_t* row_seq = nullptr;  // [rows] negative: no row
  const int32_t* row_len = nullptr;  // [rows] tokens in the cache, the current one included
  PageTableView table;
  const PageHistory* history = nullptr;  // [rows] a float a page
  int32_t* selecting = nullptr;          // [rows] out of RowsThatSelect: row_seq where the row selects, else −1
  SelectionView selection;               // max_pages holds a selection and the pages born until the next one
};
// The row of token n − 1 selects where R divides n − 1, or where its first page has no entry.
Status RowsThatSelect(Stream stream, const ReuseParams& params);

// Behind a selection of the rows that select, which ran over `selecting`: their lists are kept, and the lists of the others
// become what is kept and all pages born since, as far as they are there. A row that isn't there has an empty list.
// Bytes: an entry a page of each row's list and KV head.
Status KeepOrList(Stream stream, const ReuseParams& params);

}  // namespace quire::cuda

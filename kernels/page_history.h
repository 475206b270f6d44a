// What attention policies remember of sequences by logical pages, and the attention that rows have paid, of which it is made.
// Whose history it is, and what a policy makes of it, is said in kernels/selection/policy.h.
#pragma once

#include <cstdint>

#include "kernels/selection.h"

namespace quire {

// What a policy remembers of a sequence beside page data: [kv_heads][pages][width] floats of one layer. It belongs to the
// sequence, so a fork copies it and a truncation forgets what lay past the new end. Entries are 0 when their page is
// new. A policy that declares none is never given one.
struct PageHistory {
  float* values = nullptr;  // in the memory of the device that selects
  int64_t head_stride = 0;  // floats between KV heads; ≥ pages * width
  int kv_heads = 0;
  int64_t pages = 0;  // entries in use
  int width = 1;      // PageDataNeeds::history
  constexpr float* Head(int head) const { return values + head * head_stride; }
};

// The attention that one row gave to the pages of one KV head, summed over the query group (of all ranks that hold a part
// of it): the query heads' softmax weights by pages.
struct AttentionMass {
  int64_t position = 0;         // of the row's token: it saw the pages up to position / page_size
  const float* mass = nullptr;  // [pages]; 0 where nothing was read
  const int32_t* read = nullptr;  // [read_count] the pages that were read, ascending; null: all
  int read_count = 0;
};

// The same of many rows and all KV heads, for one policy. What the pointers point to lies in the device's memory, but for the
// selection itself.
struct RememberParams {
  const float* mass = nullptr;  // [rows][kv_heads][mass_pages]
  int64_t mass_pages = 0;
  int rows = 0;
  int kv_heads = 0;
  int page_size = 1;
  const int32_t* row_pos = nullptr;          // [rows] position of the row's token; negative: no row
  const SelectionView* selection = nullptr;  // what the rows read; null: all pages
  const PageHistory* history = nullptr;      // [rows] of the row's sequence, or where one_sequence the only one
  bool one_sequence = false;                 // the rows are one sequence's, in the order of positions; else no two are
};

}  // namespace quire

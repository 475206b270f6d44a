// What keeps GPU page memory in agreement with the books (kvstore/cache_ops.h): zeroed and copied pages, reset and copied
// metadata groups, and metadata recomputed from K. One launch a kind serves all layers and all ids. Pointers are device memory.
#pragma once

#include <cstdint>
#include <string>

#include "core/base/device.h"
#include "core/base/status.h"
#include "kernels/page_ops.h"

namespace quire::cuda {

// n ids each, in device memory. No `to` occurs twice, and none is a `from` of the same call.
struct PageCopies {
  const int32_t* from = nullptr;
  const int32_t* to = nullptr;
  int n = 0;
};
// Bytes: n * layers * (a page of K and of V), read and written.
Status CopyPages(Stream stream, const LayersOfPages& layers, const PageCopies& copies);
Status ZeroPages(Stream stream, const LayersOfPages& layers, const int32_t* pages, int n);

// Columns [0, columns[i]) of group from[i]; the rest of group to[i] is reset and its over-group values are those of the copied
// columns. columns 0 … 16, in device memory.
Status CopyGroups(Stream stream, const LayersOfPages& layers, const PageCopies& copies, const int32_t* columns);
Status ResetGroups(Stream stream, const LayersOfPages& layers, const int32_t* groups, int n);

// What appends would have left for the page of one column, and for its group, that holds `slots` tokens; earlier pages are full.
// A group that is whole by it gets its codes of 8 bits, where there are any.
struct MetadataRecompute {
  int32_t group = 0;
  int32_t column = 0;
  int32_t slots = 0;                   // 1 … page_size
  int32_t pages[kPagesPerGroup] = {};  // physical pages of columns 0 … column; −1 where a window has freed one
};
// recomputes [n], in device memory. A freed page's columns count no more.
Status RecomputeMetadata(Stream stream, const LayersOfPages& layers, const MetadataRecompute* recomputes, int n);

// Blocks of a copy, of sizes alone.
struct PageCopyConfig {
  int threads = 256;
  int blocks = 1;  // along a page
  int unit = 16;   // bytes an access
  static PageCopyConfig For(int64_t page_bytes);
  std::string ToString() const;
};

}  // namespace quire::cuda

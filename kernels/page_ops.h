// What keeps page memory in agreement with the books (kvstore/cache_ops.h), in all layers of a cache group: pages are zeroed
// when they are handed out, copied on write; metadata groups are reset, copied up to a column, or recomputed from K.
#pragma once

#include <cstdint>
#include <span>

#include "core/base/context.h"
#include "core/base/status.h"
#include "kernels/page_table.h"

namespace quire {

// All layers of a cache group: layer l begins l strides behind `first`. Strides in elements.
struct LayersOfPages {
  LayerPages first;
  PageFormat format;
  int layers = 1;
  int64_t k_layer_stride = 0, v_layer_stride = 0, meta_layer_stride = 0, over_layer_stride = 0;
};

struct PageOp {
  enum class Kind : int32_t {
    kZeroPage,           // to
    kCopyPage,           // from → to
    kResetGroup,         // to
    kCopyGroup,          // from → to: columns [0, columns), the rest reset
    kRecomputeMetadata,  // group `to`, column columns − 1 with `slots` tokens; its pages are listed
  };
  Kind kind = Kind::kZeroPage;
  int32_t from = -1, to = -1;
  int32_t columns = 0;
  int32_t slots = 0;
  int32_t pages_begin = 0;  // its `columns` physical pages in the list; −1 where a window has freed one
};

// As if one op ran after the other. Ids are valid; from ≠ to. ops and listed are the host's.
void RunPageOps(const Context& ctx, const LayersOfPages& layers, std::span<const PageOp> ops,
                std::span<const int32_t> listed);

// K and V of a sequence's pages from seeded random numbers, on a GPU (the CPU's are in kvstore/fill_random.cc, which has the
// rules). seeds [layers], table [4096] of the cache's dtype and pages are the host's.
struct PageFill {
  std::span<const uint64_t> seeds;
  const void* table = nullptr;
  std::span<const int32_t> pages;  // logical order; negative: not there
  int64_t length = 0;
  int first_kv_head = 0;
};
Status FillPagesOnGpu(const Context& ctx, const LayersOfPages& layers, const PageFill& fill);

}  // namespace quire

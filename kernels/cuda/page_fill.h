// K and V of whole pages from seeded random numbers, for benches of any depth without a prefill: bit for bit what
// kvstore/fill_random.cc writes on the CPU, which says how numbers are drawn. Metadata is not touched.
#pragma once

#include <cstdint>

#include "core/base/device.h"
#include "core/base/status.h"
#include "kernels/page_ops.h"

namespace quire::cuda {

inline constexpr int kPageFillBits = 12;  // of an index into the table; five to a draw of 64 bits

// A finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
constexpr uint64_t MixBits(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

struct PageFillParams {
  LayersOfPages layers;
  const uint64_t* seeds = nullptr;     // [layers]
  const void* table = nullptr;         // [1 << kPageFillBits] of the cache's dtype
  const int32_t* page_ids = nullptr;   // [pages]; negative: not there
  int pages = 0;
  int64_t length = 0;                  // tokens; slots past it become 0
  int first_kv_head = 0;               // of this rank
};
// Pointers are device memory. Bytes: layers * pages * (a page of K and of V), written.
Status FillPages(Stream stream, const PageFillParams& params);

}  // namespace quire::cuda

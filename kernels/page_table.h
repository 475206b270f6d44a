// How the paged KV cache lies in memory, as kernels see it. Pages are interleaved so that a 32-bit word of K
// is w channels of one token and a word of V is w tokens of one channel (w = 4 bytes / element size):
//
//   K:  [layer][page][kv_head][k_dim / w][slot][w]           channels in groups of w, then slots
//   V:  [layer][page][kv_head][ceil(slots / w)][v_dim][w]     slots in groups of w, then channels
//   metadata:        [layer][group of 16 logical pages][kv_head][2 (min, max)][k_dim][16]
//   over a group:    [layer][group][kv_head][2][k_dim]
//   in 8 bits:       [layer][group][kv_head][2][k_dim][16]    metadata of whole groups (kernels/metadata_codes.h)
//
// Kernels take the strides from PageFormat and assume nothing else. Pages are zeroed when handed out.
#pragma once

#include <cstdint>

#include "core/base/dtype.h"
#include "core/base/status.h"

namespace quire {

// Logical pages of a sequence per metadata group.
inline constexpr int kPagesPerGroup = 16;

// The format of one cache group (layers that share KV heads, widths, window and dtype). Strides in elements.
struct PageFormat {
  DType dtype = DType::kBF16;
  int word = 2;        // w: elements per 32-bit word
  int page_size = 16;  // slots (tokens) per page
  int kv_heads = 1;    // local to this rank
  int k_dim = 64;      // head_dim of K; divisible by word
  int v_dim = 64;
  int64_t k_head_stride = 0;      // page_size * k_dim
  int64_t k_page_stride = 0;      // kv_heads * k_head_stride
  int64_t v_head_stride = 0;      // ceil(page_size / word) * word * v_dim
  int64_t v_page_stride = 0;      // kv_heads * v_head_stride
  int64_t meta_head_stride = 0;   // 2 * k_dim * kPagesPerGroup
  int64_t meta_group_stride = 0;  // kv_heads * meta_head_stride
  int64_t over_head_stride = 0;   // 2 * k_dim           (min/max over the whole group)
  int64_t over_group_stride = 0;  // kv_heads * over_head_stride

  // INVALID_ARGUMENT for a page size or head count below 1, or a k_dim that the word doesn't divide.
  static Result<PageFormat> Create(DType dtype, int page_size, int kv_heads, int k_dim, int v_dim);

  // Element offsets inside one (page, KV head) block. constexpr, so that GPU kernels may call them too.
  constexpr int64_t KOffset(int slot, int channel) const {
    return (int64_t{channel / word} * page_size + slot) * word + channel % word;
  }
  constexpr int64_t VOffset(int slot, int channel) const {
    return (int64_t{slot / word} * v_dim + channel) * word + slot % word;
  }
  // Element offset inside one (group, KV head) block of metadata; which: 0 = min, 1 = max; column = page in group.
  constexpr int64_t MetaOffset(int which, int channel, int column) const {
    return (int64_t{which} * k_dim + channel) * kPagesPerGroup + column;
  }
  constexpr int64_t OverOffset(int which, int channel) const { return int64_t{which} * k_dim + channel; }
};

// One layer's memory in a cache group. meta and over, and codes, are null when no policy in use needs them.
struct LayerPages {
  void* k = nullptr;     // [page][kv_head][k_dim / w][slot][w]
  void* v = nullptr;     // [page][kv_head][ceil(slots / w)][v_dim][w]
  void* meta = nullptr;  // [group][kv_head][2][k_dim][16]
  void* over = nullptr;  // [group][kv_head][2][k_dim]
  uint8_t* codes = nullptr;  // [group][kv_head][2][k_dim][16]: meta's strides in bytes
};

// The page tables of the sequences of one step, for one cache group; the same for all its layers.
// Logical page i of sequence s is page_ids[page_begin[s] + i]; -1 where a window has freed it.
struct PageTableView {
  PageFormat format;
  const int32_t* page_ids = nullptr;
  const int32_t* page_begin = nullptr;   // [num_seqs + 1]
  const int32_t* group_ids = nullptr;    // metadata groups; null when there is no metadata
  const int32_t* group_begin = nullptr;  // [num_seqs + 1]
  int num_seqs = 0;
};

}  // namespace quire

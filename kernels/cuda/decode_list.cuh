// What the decode kernels share: the list of pages of a (row, KV head), its chunks, which slots count, partial results and
// how they end. Device code.
#pragma once

#include "kernels/cuda/attention_decode.h"
#include "kernels/cuda/attention_math.cuh"

namespace quire::cuda {

struct DecodeArgs {
  AttentionDecodeParams p;  // p.selection is not for the device
  SelectionView selection;
  bool selected = false;
  AttentionDecodeConfig c;
  int most_pages = 0;
  int page_slots = 1;
  uint32_t page_magic = 0;   // DivisionMagic(page_slots)
  float* records = nullptr;  // [rows][kv_heads][parts][record_floats]
  float* lse = nullptr;      // [rows][q_heads], nullable
  int32_t* counters = nullptr;  // [rows][kv_heads][passes] zeros; null: a kernel of its own merges
};

// What a kernel with a Mod takes.
template <class Mod>
struct ModDecodeArgs : DecodeArgs {
  Mod mod;
};

// x / page_slots; exact while x * page_slots < 2^32, which the launcher sees to.
QUIRE_DEVICE int PageOfSlot(const DecodeArgs& a, int x) { return DivideByMagic(x, a.page_magic); }

// The pages that one (row, KV head) reads, in order, without those that have no visible token at either end, so that a
// selection of all pages is the same list as dense.
struct PageList {
  const int32_t* ids;    // of the row's sequence
  const int32_t* pages;  // listed logical pages; null: first_page + i
  const uint64_t* mask;  // [count][mask_words], nullable
  int mask_words;
  int first_page;
  int count;
  int first_pos, length;  // visible positions: [first_pos, length)

  QUIRE_DEVICE int Page(int i) const { return pages != nullptr ? pages[i] : first_page + i; }
};

// The first of n ascending pages that is not below `page`.
QUIRE_DEVICE int FirstNotBelow(const int32_t* pages, int n, int page) {
  int low = 0;
  while (low < n) {
    const int middle = (low + n) / 2;
    if (pages[middle] < page) {
      low = middle + 1;
    } else {
      n = middle;
    }
  }
  return low;
}

template <class Mod>
QUIRE_DEVICE PageList ListOf(const ModDecodeArgs<Mod>& a, int row, int kv_head) {
  const AttentionDecodeParams& p = a.p;
  const PageFormat& f = p.table.format;
  PageList list;
  const int seq = p.row_seq[row];
  list.length = seq < 0 ? 0 : p.row_len[row];
  list.ids = seq < 0 ? nullptr : p.table.page_ids + p.table.page_begin[seq];
  list.first_pos = list.length > 0 ? static_cast<int>(a.mod.FirstKey(list.length - 1)) : 0;
  list.pages = nullptr;
  list.mask = nullptr;
  list.mask_words = 0;
  list.first_page = list.first_pos / f.page_size;
  const int end = (list.length + f.page_size - 1) / f.page_size;
  list.count = end - list.first_page;
  if (a.selected) {
    const SelectionView& s = a.selection;
    const int64_t block = int64_t{row} * f.kv_heads + kv_head;
    const int32_t* pages = s.pages + block * s.max_pages;
    const int n = seq < 0 ? 0 : s.counts[block];
    // Mostly all of them count, which two loads at once tell; a search waits for one after the other.
    const bool from_first = n == 0 || pages[0] >= list.first_page, to_last = n == 0 || pages[n - 1] < end;
    const int begin = from_first ? 0 : FirstNotBelow(pages, n, list.first_page);
    const int stop = to_last ? n : FirstNotBelow(pages, n, end);
    list.pages = pages + begin;
    list.count = stop - begin;
    if (s.slot_mask != nullptr) {
      list.mask = s.slot_mask + (block * s.max_pages + begin) * s.mask_words;
      list.mask_words = s.mask_words;
    }
  }
  return list;
}

// Slots [begin, end) of a list, in padded pages.
struct ListChunk {
  int chunks;  // of the list
  int begin, end;
  int first_entry;  // the page of `begin`
  int offset;       // begin − first_entry * page_slots
};

QUIRE_DEVICE ListChunk ChunkOf(const DecodeArgs& a, const PageList& list, int chunk) {
  const int slots = AttentionDecodeConfig::ChunkSlots(list.count, a.page_slots);
  const int all = list.count * a.page_slots;
  ListChunk c;
  c.chunks = (all + slots - 1) / slots;
  c.begin = chunk * slots;
  c.end = c.begin + slots < all ? c.begin + slots : all;
  c.first_entry = c.begin / a.page_slots;
  c.offset = c.begin - c.first_entry * a.page_slots;
  return c;
}

QUIRE_DEVICE float* RecordOf(const DecodeArgs& a, int row, int kv_head, int chunk) {
  return a.records + ((int64_t{row} * a.p.table.format.kv_heads + kv_head) * a.c.parts + chunk) * a.c.record_floats;
}

// One channel of a finished head: the weighted sum over `sum`, with sparq's correction.
QUIRE_DEVICE void WriteOut(const DecodeArgs& a, int row, int head, int channel, float value, float sum) {
  const AttentionDecodeParams& p = a.p;
  const int v_dim = p.table.format.v_dim;
  float y = sum == 0 ? 0.0f : value / sum;
  if (a.selected && a.selection.alpha != nullptr) {
    const float alpha = a.selection.alpha[int64_t{row} * p.q_heads + head];
    y *= alpha;
    if (a.selection.v_mean != nullptr) {
      const int kv_heads = p.table.format.kv_heads;
      const int64_t block = int64_t{row} * kv_heads + head / (p.q_heads / kv_heads);
      y = simt::Fma(1.0f - alpha, a.selection.v_mean[block * v_dim + channel], y);
    }
  }
  p.out[row * p.out_stride + int64_t{head} * v_dim + channel] = y;
}

// max: of scores to base 2.
QUIRE_DEVICE void WriteLse(const DecodeArgs& a, int row, int head, float max, float sum) {
  const float lse = sum == 0 ? MinusInfinity() : simt::Fma(max, kLn2, simt::Log(sum));
  if (a.lse != nullptr) a.lse[int64_t{row} * a.p.q_heads + head] = lse;
}

// The same result for `heads` heads of a row, from all threads of a block.
QUIRE_DEVICE void FillRow(const DecodeArgs& a, int row, int head, int heads, float value, float sum) {
  const int v_dim = a.p.table.format.v_dim;
  for (int i = simt::ThreadIndex(); i < heads * v_dim; i += simt::BlockThreads()) {
    WriteOut(a, row, head + i / v_dim, i % v_dim, value, sum);
  }
  for (int h = simt::ThreadIndex(); h < heads; h += simt::BlockThreads()) WriteLse(a, row, head + h, value, sum);
}
// Of a row with more than most_pages.
QUIRE_DEVICE void RefuseRow(const DecodeArgs& a, int row, int head, int heads) { FillRow(a, row, head, heads, QuietNan(), 1.0f); }
// Of a row that reads nothing.
QUIRE_DEVICE void EmptyRow(const DecodeArgs& a, int row, int head, int heads) { FillRow(a, row, head, heads, 0.0f, 0.0f); }

// Heads next to each other in the grid, for so their blocks of a page lie: they are read at about the same time.
inline simt::LaunchShape DecodeShape(const DecodeArgs& a) {
  simt::LaunchShape shape;
  shape.grid_x = int64_t{a.p.table.format.kv_heads} * a.c.passes;
  shape.grid_y = a.c.parts;
  shape.grid_z = a.p.rows;
  shape.threads = a.c.threads;
  shape.shared_bytes = a.c.shared_bytes;
  return shape;
}

// What the mask leaves of one page for heads [first_head, first_head + heads): of its keys that the row sees.
template <class Mod>
QUIRE_DEVICE MaskState PageState(const ModDecodeArgs<Mod>& a, const PageList& list, int seq, int first_head, int heads, int page) {
  if constexpr (Mod::kHasMask) {
    const int64_t begin = int64_t{page} * a.p.table.format.page_size, end = begin + a.p.table.format.page_size;
    const int64_t first = begin > list.first_pos ? begin : list.first_pos, stop = end < list.length ? end : list.length;
    if (first >= stop) return MaskState::kMasked;
    return a.mod.State(seq, first_head, heads, {list.length - 1, list.length, first, stop});
  } else {
    return MaskState::kOpen;
  }
}

// attention_decode.cu: when tensor cores are used; group: of the model.
bool TensorDecodeFits(const PageFormat& format, int group);
// Fills all but the Mod; workspace as in AttentionDecode.
Status MakeDecodeArgs(const AttentionDecodeParams& params, int most_pages, void* workspace, int32_t* counters, DecodeArgs* args);

}  // namespace quire::cuda

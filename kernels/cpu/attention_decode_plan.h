// How decode attention cuts its work: pure arithmetic on sizes, lengths and list lengths, and the layout of the
// workspace. The kernel only obeys it. Nothing here depends on the batch, the threads or the number of local heads,
// except for which task does what.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/base/check.h"
#include "kernels/attention_decode.h"
#include "kernels/cpu/amx.h"

namespace quire {

// Query heads that one pass over a chunk serves; larger groups take several passes over the cached chunk.
inline constexpr int kDecodeHeadsPerPass = 16;
// Slots of a chunk's scores kept on the stack, per head; a page larger than that has its scores in the workspace.
inline constexpr int kDecodeStackSlots = 544;
// Query heads whose scores fit on the stack; a task that reads several KV heads has no more.
inline constexpr int kDecodeStackHeads = 32;
// Floats of their queries, too; a wider head takes fewer heads at a time.
inline constexpr int kDecodeStackChannels = kDecodeStackHeads * 256;
inline constexpr int kDecodeChunkTokens = 256;
// Pages of a chunk where tiles are used: pages there have 16 slots or more.
inline constexpr int kDecodeTilePages = kDecodeChunkTokens / 16;

struct DecodePlan {
  int chunk_pages = 1;
  int page_slots = 1;         // page_size rounded up to a word of V
  int chunk_slots = 1;        // chunk_pages * page_slots, padded to 16
  int pass_heads = 1;         // query heads that a pass serves
  bool tiles = false;         // whole bf16 pages go through AMX tiles, by the model's group whatever part of it is here
  bool stacked = false;       // likewise: as AmxStacks has it
  int64_t record_floats = 0;  // a chunk's partial result: [q heads of the KV head][2] max and sum, then [..][v_dim]

  static int PadSlots(int slots) { return (slots + 15) / 16 * 16; }

  static DecodePlan Create(const AttentionDecodeParams& p) {
    const PageFormat& f = p.table.format;
    const int group = p.q_heads / f.kv_heads;
    const auto pass = [&](int heads) { return std::min({heads, kDecodeHeadsPerPass, kDecodeStackChannels / f.k_dim}); };
    DecodePlan plan;
    plan.chunk_pages = std::max(1, kDecodeChunkTokens / f.page_size);
    plan.page_slots = (f.page_size + f.word - 1) / f.word * f.word;
    plan.chunk_slots = PadSlots(plan.chunk_pages * plan.page_slots);
    CHECK_LE(f.k_dim, kDecodeStackChannels);
    const int model_group = std::max(group, p.model_group);
    plan.pass_heads = pass(group);
    plan.stacked = AmxStacks(model_group);
    plan.tiles = f.dtype == DType::kBF16 && HasAmx() && f.page_size <= kDecodeChunkTokens &&
                 AmxShapeFits(pass(model_group), f.page_size, f.k_dim, f.v_dim);
    plan.record_floats = int64_t{group} * (f.v_dim + 2);
    return plan;
  }
  int Chunks(int64_t pages) const { return static_cast<int>((pages + chunk_pages - 1) / chunk_pages); }
  bool ScoresOnStack() const { return chunk_slots <= kDecodeStackSlots; }
  // KV heads that one task reads: more than one where all read the same pages, so that memory is read in longer runs,
  // and only while enough tasks are left for the threads. Changes no bit of the result.
  int KvBlock(const AttentionDecodeParams& p, int64_t records, int threads) const {
    const int kv_heads = p.table.format.kv_heads, group = p.q_heads / kv_heads;
    if (p.selection != nullptr || tiles || !ScoresOnStack()) return 1;
    const int heads = std::min(kDecodeStackHeads, kDecodeStackChannels / p.table.format.k_dim);
    int block = std::clamp(heads / group, 1, kv_heads);
    while (block > 1 && records * ((kv_heads + block - 1) / block) < int64_t{8} * threads) block = (block + 1) / 2;
    return block;
  }
};

// The pages that one (row, KV head) reads, in order; pages without a visible token at either end are left out, so that
// a selection of all pages is the same list as dense.
struct DecodeList {
  const int32_t* pages = nullptr;  // listed logical pages; null: first_page + i
  const uint64_t* mask = nullptr;  // [count][mask_words], nullable
  int mask_words = 0;
  int first_page = 0;
  int count = 0;
  int64_t first_pos = 0;  // visible positions: [first_pos, length)
  int64_t length = 0;

  template <class Mod>
  static DecodeList Create(const AttentionDecodeParams& p, int row, int kv_head, const Mod& mod) {
    const PageFormat& f = p.table.format;
    DecodeList list;
    list.length = p.row_len[row];
    list.first_pos = list.length > 0 ? mod.FirstKey(list.length - 1) : 0;
    const int first = static_cast<int>(list.first_pos / f.page_size);
    const int end = static_cast<int>((list.length + f.page_size - 1) / f.page_size);
    if (p.selection == nullptr) {
      list.first_page = first;
      list.count = end - first;
      return list;
    }
    const SelectionView& s = *p.selection;
    const int64_t block = int64_t{row} * f.kv_heads + kv_head;
    const int32_t* pages = s.pages + block * s.max_pages;
    int begin = 0, stop = s.counts[block];
    while (begin < stop && pages[begin] < first) ++begin;
    while (begin < stop && pages[stop - 1] >= end) --stop;
    list.pages = pages + begin;
    list.count = stop - begin;
    if (s.slot_mask != nullptr) {
      list.mask = s.slot_mask + (block * s.max_pages + begin) * s.mask_words;
      list.mask_words = s.mask_words;
    }
    return list;
  }

  int Page(int i) const { return pages != nullptr ? pages[i] : first_page + i; }
  // The i-th page's block of K or V; null where the window has freed it. base: of the KV head.
  template <typename T>
  const T* Block(int i, const int32_t* ids, const T* base, int64_t page_stride) const {
    const int32_t id = ids[Page(i)];
    return id < 0 ? nullptr : base + id * page_stride;
  }
  // True when every slot of the i-th page counts.
  bool Whole(int i, int page_size) const {
    const int64_t begin = int64_t{Page(i)} * page_size;
    return mask == nullptr && begin >= first_pos && begin + page_size <= length;
  }
  bool Visible(int i, int slot, int64_t pos) const {
    if (pos < first_pos || pos >= length) return false;
    return mask == nullptr || (mask[int64_t{i} * mask_words + slot / 64] >> (slot % 64) & 1) != 0;
  }
};

// Workspace: [rows + 1] int64 first record of each row, then floats: the records [record][kv_heads], the page sums for
// the mass [page of the row][q_heads] (when asked for), the scores and weights of pages too large for the stack.
struct DecodeWorkspace {
  int64_t* first_record = nullptr;  // [rows + 1], in units of kv_heads records
  int64_t* first_page = nullptr;    // [rows + 1], pages of the rows before, for the mass
  float* records = nullptr;
  float* page_sums = nullptr;
  float* scores = nullptr;

  // Fills the index arrays and the pointers. most_pages(row): of its lists, over KV heads. Returns the bytes taken; with a
  // null workspace only counts them.
  template <class MostPages>
  static size_t Layout(const AttentionDecodeParams& p, const DecodePlan& plan, const MostPages& most_pages, void* workspace,
                       DecodeWorkspace* out) {
    const PageFormat& f = p.table.format;
    int64_t records = 0, pages = 0;
    auto* index = static_cast<int64_t*>(workspace);
    const int64_t rows = p.rows;
    for (int row = 0; row < p.rows; ++row) {
      if (index != nullptr) {
        index[row] = records;
        index[rows + 1 + row] = pages;
      }
      const int64_t most = most_pages(row);
      records += plan.Chunks(most);
      pages += most;
    }
    const auto align = [](size_t bytes) { return (bytes + 63) / 64 * 64; };
    size_t bytes = align(sizeof(int64_t) * 2 * static_cast<size_t>(rows + 1));
    const auto take = [&](int64_t floats) {
      float* at = workspace == nullptr ? nullptr : reinterpret_cast<float*>(static_cast<char*>(workspace) + bytes);
      bytes += align(sizeof(float) * static_cast<size_t>(floats));
      return at;
    };
    DecodeWorkspace w;
    w.records = take(records * f.kv_heads * plan.record_floats);
    w.page_sums = take(p.mass == nullptr ? 0 : pages * p.q_heads);
    w.scores = take(plan.ScoresOnStack() ? 0 : 2 * records * f.kv_heads * kDecodeHeadsPerPass * plan.chunk_slots);
    if (index != nullptr) {
      index[rows] = records;
      index[2 * rows + 1] = pages;
      w.first_record = index;
      w.first_page = index + rows + 1;
      *out = w;
    }
    return bytes;
  }
  // Pages of the row's length, whatever is listed of them.
  static int64_t LengthPages(const AttentionDecodeParams& p, int row) {
    const int page_size = p.table.format.page_size;
    return (int64_t{p.row_len[row]} + page_size - 1) / page_size;
  }
  // Listed ones.
  template <class Mod>
  static int64_t ListedPages(const AttentionDecodeParams& p, int row, const Mod& mod) {
    if (p.selection == nullptr) return DecodeList::Create(p, row, 0, mod).count;
    const int kv_heads = p.table.format.kv_heads;
    const int32_t* counts = p.selection->counts + int64_t{row} * kv_heads;
    return std::min<int64_t>(*std::max_element(counts, counts + kv_heads), LengthPages(p, row));
  }
};

}  // namespace quire

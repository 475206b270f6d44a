// BlockMask: a mask worked out ahead, page by page, for masks that have no State of their own. Kernels given
// WithBlocks(mask, block_mask) skip pages that are masked for all queries of a block of them, and run open ones without
// the test; what lies outside the table, such as pages that came since, is tested key by key. So a table may be kept
// while the cache grows and the mask stays; when the mask changes, it is derived again (in decode: one query a sequence).
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/mods.h"

namespace quire {

// Queries [q_begin, q_end) of one sequence over keys [0, kv_end).
struct BlockMaskSequence {
  int64_t q_begin = 0, q_end = 0, kv_end = 0;
};

// The table as kernels read it; its pointers are valid where they run.
struct BlockMaskView {
  const BlockMaskSequence* sequences = nullptr;  // [seqs]
  const int64_t* begin = nullptr;                // [seqs] first state of the sequence
  const MaskState* states = nullptr;             // of a sequence: [heads][query blocks][pages]
  int seqs = 0;
  int heads = 1;  // 1 where no head differs
  int q_block = 1;
  int page_size = 1;

  QUIRE_HOST_DEVICE int64_t Pages(int seq) const { return (sequences[seq].kv_end + page_size - 1) / page_size; }
  QUIRE_HOST_DEVICE MaskState State(int seq, int head, const MaskRange& r) const {
    if (seq >= seqs) return MaskState::kMixed;
    const BlockMaskSequence& s = sequences[seq];
    if (r.q_begin < s.q_begin || r.q_end > s.q_end || r.kv_end > s.kv_end) return MaskState::kMixed;
    const int64_t pages = Pages(seq), blocks = (s.q_end - s.q_begin + q_block - 1) / q_block;
    const MaskState* from = states + begin[seq] + (heads == 1 ? 0 : head) * blocks * pages;
    const int64_t first_block = (r.q_begin - s.q_begin) / q_block, last_block = (r.q_end - 1 - s.q_begin) / q_block;
    const int64_t first_page = r.kv_begin / page_size, last_page = (r.kv_end - 1) / page_size;
    const MaskState state = from[first_block * pages + first_page];
    for (int64_t b = first_block; b <= last_block; ++b) {
      for (int64_t p = first_page; p <= last_page; ++p) {
        if (from[b * pages + p] != state) return MaskState::kMixed;
      }
    }
    return state;
  }
};

class BlockMask {
 public:
  // Tests every query with every key that it may see (its own and earlier ones unless the mask sees the future); where
  // there is none, the page is masked. heads: of the kernel's call. q_block: queries that share an entry.
  template <class Mask>
  static BlockMask Derive(const Mask& mask, std::span<const BlockMaskSequence> sequences, int heads, int page_size,
                          int q_block = 64) {
    BlockMask out;
    out.sequences_.assign(sequences.begin(), sequences.end());
    out.view_.heads = internal::MaskPerHead<Mask>() ? heads : 1;
    out.view_.q_block = q_block;
    out.view_.page_size = page_size;
    for (int seq = 0; seq < static_cast<int>(sequences.size()); ++seq) {
      const BlockMaskSequence& s = sequences[static_cast<size_t>(seq)];
      out.begin_.push_back(static_cast<int64_t>(out.states_.size()));
      for (int head = 0; head < out.view_.heads; ++head) {
        for (int64_t q = s.q_begin; q < s.q_end; q += q_block) {
          for (int64_t kv = 0; kv < s.kv_end; kv += page_size) {
            out.states_.push_back(Test(mask, seq, head,
                                       {q, std::min(s.q_end, q + q_block), kv, std::min(s.kv_end, kv + page_size)}));
          }
        }
      }
    }
    return out;
  }

  // Valid while the mask lives and isn't assigned to.
  BlockMaskView view() const {
    BlockMaskView view = view_;
    view.sequences = sequences_.data();
    view.begin = begin_.data();
    view.states = states_.data();
    view.seqs = static_cast<int>(sequences_.size());
    return view;
  }

 private:
  template <class Mask>
  static MaskState Test(const Mask& mask, int seq, int head, const MaskRange& r) {
    bool masked = false, open = false;
    for (int64_t q = r.q_begin; q < r.q_end && !(masked && open); ++q) {
      const int64_t end = internal::MaskSeesFuture<Mask>() ? r.kv_end : std::min(r.kv_end, q + 1);
      for (int64_t kv = r.kv_begin; kv < end; ++kv) (mask(seq, head, q, kv) ? open : masked) = true;
    }
    return !open ? MaskState::kMasked : masked ? MaskState::kMixed : MaskState::kOpen;
  }

  BlockMaskView view_;
  std::vector<BlockMaskSequence> sequences_;
  std::vector<int64_t> begin_;
  std::vector<MaskState> states_;
};

// A mask that asks its table first.
template <class Mask>
struct BlockedMask {
  Mask mask;
  BlockMaskView blocks;
  static constexpr bool kPerHead = internal::MaskPerHead<Mask>();
  static constexpr bool kSeesFuture = internal::MaskSeesFuture<Mask>();
  QUIRE_HOST_DEVICE bool operator()(int seq, int head, int64_t q_idx, int64_t kv_idx) const {
    return mask(seq, head, q_idx, kv_idx);
  }
  QUIRE_HOST_DEVICE int64_t FirstKey(int64_t q_idx) const { return internal::FirstKeyOf(mask, q_idx); }
  QUIRE_HOST_DEVICE MaskState State(int seq, int head, const MaskRange& r) const { return blocks.State(seq, head, r); }
};
template <class Mask>
BlockedMask<Mask> WithBlocks(Mask mask, const BlockMask& blocks) {
  return {mask, blocks.view()};
}

}  // namespace quire

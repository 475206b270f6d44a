// What the prefill kernels share: which rows a block takes, what they see, where keys lie, and how a row ends. Device
// code.
#pragma once

#include "kernels/cuda/attention_math.cuh"
#include "kernels/cuda/attention_prefill.h"

namespace quire::cuda {

struct PrefillArgs {
  AttentionPrefillParams p;
  AttentionPrefillConfig c;
  int group = 1;            // query heads per KV head
  uint32_t page_magic = 0;  // DivisionMagic(page_size)
};

// What a kernel with a Mod takes.
template <class Mod>
struct ModPrefillArgs : PrefillArgs {
  Mod mod;
};

inline constexpr int kKeyBlock = AttentionPrefillConfig::kKeyBlock;

// Pairs [first, first + count) of a chunk; pair i is token i / group, head i % group of the KV head's group.
struct PrefillTile {
  PrefillChunk chunk;
  int first, count;  // count 0: nothing to do
};

// Tile `index` of the call, the same in all threads. The latest rows of a chunk see the most keys: they come first, so
// that the last blocks to start are short ones; and blocks of all KV heads come before the next tile's.
QUIRE_DEVICE PrefillTile FindTile(const PrefillArgs& a, int index) {
  for (int base = 0; base < a.p.num_chunks; base += simt::kWarpSize) {
    const int mine = base + simt::Lane();
    const int pairs = mine < a.p.num_chunks ? a.p.chunks[mine].rows * a.group : 0;
    const int tiles = (pairs + a.c.tile_rows - 1) / a.c.tile_rows;
    const int end = simt::WarpInclusiveSum(tiles);
    const int all = simt::ShuffleIndex(simt::kFullMask, end, simt::kWarpSize - 1);
    if (index < all) {
      const int owner = simt::LowestBit(simt::Ballot(simt::kFullMask, index < end));
      const int last = simt::ShuffleIndex(simt::kFullMask, end, owner) - 1;
      PrefillTile tile;
      tile.chunk = a.p.chunks[base + owner];
      tile.first = (last - index) * a.c.tile_rows;
      const int left = tile.chunk.rows * a.group - tile.first;
      tile.count = left < a.c.tile_rows ? left : a.c.tile_rows;
      return tile;
    }
    index -= all;
  }
  return {{}, 0, 0};
}

// Position of a pair of the tile.
QUIRE_DEVICE int PositionOf(const PrefillArgs& a, const PrefillTile& tile, int i) {
  return tile.chunk.start_pos + (tile.first + i) / a.group;
}
// The position after the last key that a pair of the tile sees: its own is the last, but for masks taken at their word.
template <class Mod>
QUIRE_DEVICE int EndOf(const ModPrefillArgs<Mod>& a, const PrefillTile& tile, int i) {
  return Mod::kSeesFuture ? tile.chunk.start_pos + tile.chunk.rows : PositionOf(a, tile, i) + 1;
}
// First key that a row at this position sees.
template <class Mod>
QUIRE_DEVICE int FirstVisible(const ModPrefillArgs<Mod>& a, int position) {
  return position < 0 ? 0 : static_cast<int>(a.mod.FirstKey(position));  // < 0: a row that fills up
}

// The keys of one block of kKeyBlock.
struct KeyBlock {
  const int32_t* ids;  // of the sequence, from the page of the block's first key on
  int offset;          // of that key in its page
  int count;           // keys that may be read: up to the tile's last position
};
QUIRE_DEVICE KeyBlock KeysAt(const PrefillArgs& a, const int32_t* ids, int start, int end) {
  KeyBlock block;
  const int page = start / a.p.table.format.page_size;
  block.ids = ids + page;
  block.offset = start - page * a.p.table.format.page_size;
  block.count = end - start;
  return block;
}
// The physical page of the block's key i, −1 for none; slot: within its page.
QUIRE_DEVICE int PageOf(const PrefillArgs& a, const KeyBlock& block, int i, int* slot) {
  const int x = block.offset + i, page = DivideByMagic(x, a.page_magic);
  *slot = x - page * a.p.table.format.page_size;
  return i < block.count ? block.ids[page] : -1;
}

QUIRE_DEVICE const float* QueryOf(const PrefillArgs& a, const PrefillTile& tile, int kv_head, int i) {
  const int token = (tile.first + i) / a.group, head = (tile.first + i) % a.group;
  return a.p.q + (int64_t{tile.chunk.first_row} + token) * a.p.q_stride +
         (int64_t{kv_head} * a.group + head) * a.p.table.format.k_dim;
}
QUIRE_DEVICE float* OutOf(const PrefillArgs& a, const PrefillTile& tile, int kv_head, int i) {
  const int token = (tile.first + i) / a.group, head = (tile.first + i) % a.group;
  return a.p.out + (int64_t{tile.chunk.first_row} + token) * a.p.out_stride +
         (int64_t{kv_head} * a.group + head) * a.p.table.format.v_dim;
}
// max: of scores to base 2.
QUIRE_DEVICE void WriteLse(const PrefillArgs& a, const PrefillTile& tile, int kv_head, int i, float max, float sum) {
  if (a.p.lse == nullptr) return;
  const int token = (tile.first + i) / a.group, head = (tile.first + i) % a.group;
  a.p.lse[(int64_t{tile.chunk.first_row} + token) * a.p.q_heads + kv_head * a.group + head] =
      sum == 0 ? MinusInfinity() : simt::Fma(max, kLn2, simt::Log(sum));
}

// 0 and −inf for a tile of padding, from all threads of the block.
QUIRE_DEVICE void WriteNothing(const PrefillArgs& a, const PrefillTile& tile, int kv_head) {
  const int v_dim = a.p.table.format.v_dim;
  for (int i = simt::Warp(); i < tile.count; i += simt::BlockThreads() / simt::kWarpSize) {
    float* out = OutOf(a, tile, kv_head, i);
    for (int c = simt::Lane(); c < v_dim; c += simt::kWarpSize) out[c] = 0;
    if (simt::Lane() == 0) WriteLse(a, tile, kv_head, i, 0, 0);
  }
}

// attention_prefill.cu: when tensor cores are used; all but the Mod, and the shape of the launch.
bool TensorPrefillFits(const PageFormat& format);
Status MakePrefillArgs(const AttentionPrefillParams& params, int64_t most_rows, PrefillArgs* args,
                       simt::LaunchShape* shape);

}  // namespace quire::cuda

// Decode attention over tiles, for bf16 pages and groups of three query heads and more: the page layout is the order in
// which AMX wants its B operand for both products, so pages are loaded as they lie.
//
//   scores  C[head][slot]    = Σ_channels A[head][channel] · K[channel / 2][slot][2]
//   sums    C[head][channel] = Σ_slots    A[head][slot]    · V[slot / 2][channel][2]
//
// The f32 operand (queries, weights) is split into two bf16 numbers, x = hi + lo, exact to 2^-17; the tile unit's time goes
// with K and V, so the second half is free: groups of up to 8 heads have hi in rows 0–7 and lo in rows 8–15 of one tile
// ("stacked"); of larger ones, or parts of them, lo has a tile of its own. The caller keeps chunks, softmax and merge; only whole pages come here. Widths that
// are no whole tiles (K by 32, V by 64 channels, pages by 16 slots) are left to vectors. An infinite K or V gives NaN here where
// vectors give infinity, for lo may be 0.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/base/dtype.h"
#include "kernels/cpu/amx_tiles.h"

namespace quire {

inline constexpr int kAmxMinHeads = 3;    // below, vectors read each word for all heads as fast
inline constexpr int kAmxMaxHeads = 16;
inline constexpr int kAmxMaxDim = 256;

// Shapes that the tile kernels take: whole tiles of channels and slots.
inline bool AmxShapeFits(int heads, int page_size, int k_dim, int v_dim) {
  return heads >= kAmxMinHeads && heads <= kAmxMaxHeads && page_size % 16 == 0 && k_dim % 32 == 0 && k_dim <= kAmxMaxDim &&
         v_dim % 64 == 0;
}

// A rows of up to 16 heads by 32 values, hi and lo.
struct alignas(64) AmxOperand {
  BF16 rows[2][kTileRows][32] = {};
};

// Whether hi and lo share a tile: by the model's query heads of a KV head, of which a call may have a part, for the two
// ways round differently.
inline bool AmxStacks(int group) { return group <= kTileRows / 2; }

// Splits x [heads][stride], values [0, n ≤ 32) of each head, into an operand; stacked: of 8 heads at most.
inline void AmxSplit(const float* x, int64_t stride, int heads, int n, bool stacked, AmxOperand* a) {
  *a = AmxOperand{};
  for (int h = 0; h < heads; ++h) {
    for (int i = 0; i < n; ++i) {
      const float value = x[h * stride + i];
      const BF16 hi = ToBF16(value);
      a->rows[0][h][i] = hi;
      // A value beyond bf16's range is all in hi: inf − inf would be no number.
      const BF16 lo = std::isfinite(ToFloat(hi)) ? ToBF16(value - ToFloat(hi)) : BF16{};
      (stacked ? a->rows[0][h + 8][i] : a->rows[1][h][i]) = lo;
    }
  }
}

// The queries of one (row, KV head), split once for all pages: [k_dim / 32] operands.
struct AmxQueries {
  int heads = 0;
  bool stacked = false;
  int steps = 0;  // k_dim / 32
  AmxOperand operands[kAmxMaxDim / 32];

  void Set(const float* q, int q_heads, int k_dim, bool stack) {
    heads = q_heads;
    stacked = stack;
    steps = k_dim / 32;
    for (int s = 0; s < steps; ++s) AmxSplit(q + s * 32, k_dim, heads, 32, stacked, &operands[s]);
  }
};

// Tiles 0 and 1: sums of two neighbouring blocks; 2: A; 4 to 7: B, or sums. Shapes for scores: A 16 × 32, B 16 × 16 pairs.
inline TileConfig AmxScoreConfig() {
  TileConfig c;
  for (int t = 0; t < kTiles; ++t) c.Set(t, kTileRows, kTileBytes);
  return c;
}
// For sums over pages of page_size slots: B has a row per two slots, up to 16.
inline int AmxSumSlots(int page_size) { return page_size % 32 == 0 ? 32 : 16; }
inline TileConfig AmxSumConfig(int page_size) {
  TileConfig c = AmxScoreConfig();
  const int slots = AmxSumSlots(page_size);
  c.Set(4, kTileRows, slots * 2);  // A: 16 heads by `slots` values
  c.Set(5, slots / 2, kTileBytes);
  c.Set(6, slots / 2, kTileBytes);
  c.Set(7, slots / 2, kTileBytes);
  return c;
}

// scores[h * stride + slot] = scale · q_h · k_slot for the page's slots. k: [k_dim / 2][page_size][2]. Tiles are set up by
// AmxScoreConfig. next: the page that comes after, for prefetching; readable, same size.
template <class Tiles>
void AmxScorePage(Tiles& tiles, const AmxQueries& q, const BF16* k, const BF16* next, int page_size, float scale, float* scores,
                  int64_t stride) {
  const int64_t row_bytes = int64_t{page_size} * 4;  // one channel pair of all slots
  alignas(64) float sums[kTileRows][16];
  for (int slot = 0; slot < page_size; slot += 16) {
    tiles.template Zero<0>();
    for (int s = 0; s < q.steps; ++s) {
      const int64_t offset = (int64_t{s} * 16 * page_size + slot) * 2;
      for (int r = 0; r < 16; ++r) __builtin_prefetch(next + offset + int64_t{r} * page_size * 2);
      tiles.template Load<2>(q.operands[s].rows[0], kTileBytes);
      tiles.template Load<4>(k + offset, row_bytes);
      tiles.template Dot<0, 2, 4>();
      if (!q.stacked) {
        tiles.template Load<3>(q.operands[s].rows[1], kTileBytes);
        tiles.template Dot<0, 3, 4>();
      }
    }
    tiles.template Store<0>(sums, kTileBytes);
    for (int h = 0; h < q.heads; ++h) {
      for (int i = 0; i < 16; ++i) {
        const float sum = q.stacked ? sums[h][i] + sums[h + 8][i] : sums[h][i];
        scores[h * stride + slot + i] = sum * scale;
      }
    }
  }
}

// A page to sum over: its V block [page_size / 2][v_dim][2] and the position of its weights in each head's row.
struct AmxPage {
  const BF16* v = nullptr;
  int64_t weights = 0;
};

// acc[h * v_dim + c] += Σ over pages and slots of weights[h * stride + page.weights + slot] · v. Tiles are set up by
// AmxSumConfig(page_size). operands: scratch for [pages * page_size / AmxSumSlots(page_size)].
template <class Tiles>
void AmxSumPages(Tiles& tiles, const AmxPage* pages, int num_pages, int page_size, int v_dim, const float* weights,
                 int64_t stride, int heads, bool stacked, AmxOperand* operands, float* acc) {
  const int slots = AmxSumSlots(page_size);
  const int parts = page_size / slots;
  for (int i = 0; i < num_pages; ++i) {
    for (int part = 0; part < parts; ++part) {
      AmxSplit(weights + pages[i].weights + part * slots, stride, heads, slots, stacked,
               &operands[i * parts + part]);
    }
  }
  alignas(64) float sums[kTileRows][64];
  for (int channel = 0; channel < v_dim; channel += 64) {
    tiles.template Zero<0>();
    tiles.template Zero<1>();
    tiles.template Zero<2>();
    tiles.template Zero<3>();
    for (int i = 0; i < num_pages; ++i) {
      for (int part = 0; part < parts; ++part) {
        const BF16* v = pages[i].v + (int64_t{part} * slots / 2 * v_dim + channel) * 2;
        const int64_t row_bytes = int64_t{v_dim} * 4;
        if (i + 1 < num_pages) {
          const BF16* next = pages[i + 1].v + (int64_t{part} * slots / 2 * v_dim + channel) * 2;
          for (int r = 0; r < slots / 2; ++r) {
            for (int line = 0; line < 4; ++line) __builtin_prefetch(next + (int64_t{r} * v_dim + line * 16) * 2);
          }
        }
        const AmxOperand& a = operands[i * parts + part];
        for (int half = 0; half < (stacked ? 1 : 2); ++half) {
          tiles.template Load<4>(a.rows[half], kTileBytes);
          tiles.template Load<5>(v, row_bytes);
          tiles.template Dot<0, 4, 5>();
          tiles.template Load<6>(v + 32, row_bytes);
          tiles.template Dot<1, 4, 6>();
          tiles.template Load<7>(v + 64, row_bytes);
          tiles.template Dot<2, 4, 7>();
          tiles.template Load<5>(v + 96, row_bytes);
          tiles.template Dot<3, 4, 5>();
        }
      }
    }
    tiles.template Store<0>(&sums[0][0], sizeof(sums[0]));
    tiles.template Store<1>(&sums[0][16], sizeof(sums[0]));
    tiles.template Store<2>(&sums[0][32], sizeof(sums[0]));
    tiles.template Store<3>(&sums[0][48], sizeof(sums[0]));
    for (int h = 0; h < heads; ++h) {
      for (int c = 0; c < 64; ++c) {
        acc[int64_t{h} * v_dim + channel + c] += stacked ? sums[h][c] + sums[h + 8][c] : sums[h][c];
      }
    }
  }
}

}  // namespace quire

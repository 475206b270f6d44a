// How prefill attention cuts its work into tiles, and a worker's scratch. Pure arithmetic; results don't depend on it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/attention_prefill.h"

namespace quire {

inline constexpr int kPrefillKeyBlock = 64;    // keys per block, aligned to absolute positions
inline constexpr int kPrefillTileRows = 96;    // (row, head) pairs per tile; a multiple of the register block's 6
inline constexpr int kPrefillPanelMost = 64;   // the widest panel of any target, in floats

// Pairs [first, first + count) of one chunk and KV head; pair i is row i / group, head i % group of the KV head's group.
struct PrefillTile {
  int chunk = 0;
  int kv_head = 0;
  int first = 0;
  int count = 0;

  static int64_t TilesOf(const AttentionPrefillParams& p, int chunk) {
    const int64_t pairs = int64_t{p.chunks[chunk].rows} * (p.q_heads / p.table.format.kv_heads);
    return (pairs + kPrefillTileRows - 1) / kPrefillTileRows;
  }
  static int64_t Count(const AttentionPrefillParams& p) {
    int64_t tiles = 0;
    for (int c = 0; c < p.num_chunks; ++c) tiles += TilesOf(p, c);
    return tiles * p.table.format.kv_heads;
  }
  // The latest rows of a chunk see the most keys: they come first, so that the last tasks are short ones.
  static PrefillTile At(const AttentionPrefillParams& p, int64_t task) {
    const int kv_heads = p.table.format.kv_heads;
    PrefillTile tile;
    while (task >= TilesOf(p, tile.chunk) * kv_heads) task -= TilesOf(p, tile.chunk++) * kv_heads;
    const int pairs = p.chunks[tile.chunk].rows * (p.q_heads / kv_heads);
    tile.kv_head = static_cast<int>(task % kv_heads);
    tile.first = static_cast<int>((TilesOf(p, tile.chunk) - 1 - task / kv_heads) * kPrefillTileRows);
    tile.count = std::min(kPrefillTileRows, pairs - tile.first);
    return tile;
  }
};

// One worker's floats: the tile's queries, scores, outputs and the block's panels.
struct PrefillScratch {
  float* q = nullptr;       // [tile rows][k_dim]
  float* scores = nullptr;  // [tile rows][64]
  float* out = nullptr;     // [tile rows][v_padded]
  float* max = nullptr;     // [tile rows]
  float* sum = nullptr;     // [tile rows]
  float* k = nullptr;       // panels of 64 keys x k_dim
  float* v = nullptr;       // panels of 64 keys x v_padded
  int v_padded = 0;         // v_dim up to the widest panel

  static int Padded(int v_dim) { return (v_dim + kPrefillPanelMost - 1) / kPrefillPanelMost * kPrefillPanelMost; }
  static size_t Bytes(const PageFormat& f) {
    const int64_t rows = kPrefillTileRows, padded = Padded(f.v_dim);
    const int64_t floats = rows * (Up(f.k_dim) + kPrefillKeyBlock + padded + 2) + kPrefillKeyBlock * (Up(f.k_dim) + padded);
    return static_cast<size_t>(floats) * sizeof(float);
  }
  static PrefillScratch Create(const PageFormat& f, float* at) {
    PrefillScratch s;
    s.v_padded = Padded(f.v_dim);
    const auto take = [&](int64_t floats) {
      float* begin = at;
      at += floats;
      return begin;
    };
    s.k = take(int64_t{kPrefillKeyBlock} * Up(f.k_dim));
    s.v = take(int64_t{kPrefillKeyBlock} * s.v_padded);
    s.q = take(int64_t{kPrefillTileRows} * Up(f.k_dim));
    s.scores = take(int64_t{kPrefillTileRows} * kPrefillKeyBlock);
    s.out = take(int64_t{kPrefillTileRows} * s.v_padded);
    s.max = take(kPrefillTileRows);
    s.sum = take(kPrefillTileRows);
    return s;
  }

 private:
  static int64_t Up(int n) { return (n + 15) / 16 * 16; }  // keeps every part on a cache line
};

}  // namespace quire

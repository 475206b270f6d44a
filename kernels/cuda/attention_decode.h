// Decode attention on the GPU: the contract of kernels/attention_decode.h with its parameter struct, whose pointers are device
// memory here (`selection` itself is read on the host, at the launch). Queries and results are f32; the cache is bf16, f16 or
// f32. A row whose sequence is negative is padding and counts as empty: 0 and −inf.
//
// A list of pages is cut into chunks of slots by its own number of pages alone; a block takes one chunk of one (row, KV head), and
// the last block of a list, or a second kernel, merges the chunks in order. So a head's bits depend on its row, length and list, never on the batch, the other
// heads or the longest row there may be. Groups of four heads and more go over tensor cores; where ranks share a KV head, the
// model's group decides.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

#include "core/base/device.h"
#include "core/base/status.h"
#include "kernels/attention_decode.h"

namespace quire::cuda {

// How decode attention is cut: pure arithmetic on sizes and lengths.
struct AttentionDecodeConfig {
  static constexpr int kLeastChunk = 128, kMostChunk = 1024;

  // Slots of a page with its V words whole.
  static constexpr int PageSlots(const PageFormat& f) { return (f.page_size + f.word - 1) / f.word * f.word; }
  // Up to so many slots of a list its chunks have at most so many. Long lists get longer chunks: fewer partial results, still
  // enough blocks; and from 512 on each warp has four tiles, so that loads of one go under the work on another.
  struct Band {
    int64_t slots;
    int chunk;
  };
  static constexpr Band kBands[] = {{512, kLeastChunk}, {1024, 256}, {64 * 1024, 512}, {INT32_MAX, kMostChunk}};

  // Slots of a chunk for a list of so many pages: whole pages where they fit.
  static constexpr int ChunkSlots(int pages, int page_slots) {
    const int64_t slots = int64_t{pages} * page_slots;
    int chunk = kMostChunk;
    if (slots <= kBands[0].slots) {
      chunk = kBands[0].chunk;
    } else if (slots <= kBands[1].slots) {
      chunk = kBands[1].chunk;
    } else if (slots <= kBands[2].slots) {
      chunk = kBands[2].chunk;
    }
    return page_slots <= chunk ? chunk / page_slots * page_slots : chunk;
  }
  static constexpr int Chunks(int pages, int page_slots) {
    const int chunk = ChunkSlots(pages, page_slots);
    return static_cast<int>((int64_t{pages} * page_slots + chunk - 1) / chunk);
  }

  bool tensor_cores = false;
  int heads_per_pass = 1;  // query heads of a block; larger groups take several blocks
  int passes = 1;
  int threads = 128;
  int parts = 1;        // chunks of the longest list there may be, or of a shorter one that has more
  int chunk_slots = 0;  // of the longest chunk there may be
  bool direct = false;  // lists of one chunk at most: results are written at once, without a merge
  size_t shared_bytes = 0;
  int64_t record_floats = 0;  // of a chunk and KV head: [group][2] maximum (to base 2) and sum, then [group][v_dim]

  // most_pages: of a list, the most there may be. model_group: as in AttentionDecodeParams.
  static AttentionDecodeConfig For(const PageFormat& format, int q_heads, int most_pages, int model_group = 0);
  std::string ToString() const;
};

inline constexpr int kDecodeCounters = 16384;

// Bytes of workspace for these sizes; of params' pointers it matters only whether mass and lse are null.
size_t AttentionDecodeWorkspace(const AttentionDecodeParams& params, int most_pages);

// most_pages: at least every row's listed pages (dense: of its length; a captured graph passes the most there may be). A row
// with more comes back as NaN. workspace: AttentionDecodeWorkspace bytes of device memory, 16-byte aligned.
// counters: kDecodeCounters zeros in device memory, which every call leaves zero and which calls of one stream share: where lists
// have few chunks, the last block of each then merges them. Null: a second kernel does, with the same bits.
// Bytes: listed tokens * kv_heads * (k_dim + v_dim) * element size; attention mass reads the k_dim once more.
Status AttentionDecode(Stream stream, const AttentionDecodeParams& params, int most_pages, void* workspace);
// With a Mod (kernels/mods.h), whose functors are device functions and what they point to device memory. Compiled for
// PlainMod and SoftCapMod; for others include kernels/cuda/flex_attention.cuh where nvcc compiles.
template <class Mod>
Status AttentionDecode(Stream stream, const AttentionDecodeParams& params, int most_pages, const Mod& mod, void* workspace,
                       int32_t* counters = nullptr);

}  // namespace quire::cuda

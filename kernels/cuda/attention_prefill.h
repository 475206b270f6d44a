// Prefill attention on the GPU: the contract of kernels/attention_prefill.h with its parameter struct, whose pointers
// are all device memory here, the chunks too. Queries and results are f32; the cache is bf16, f16 or f32. A chunk whose
// sequence is negative is padding, and a page that has been freed (id −1) counts as not there: a row that sees nothing
// gets 0 and −inf.
//
// A block takes a tile of (token, head) pairs of one chunk and KV head: the heads of a group share the keys they read.
// Keys are walked in blocks that start at absolute positions, and a key block that a row doesn't see leaves its maximum,
// sum and results as they are, bit for bit. So a row's bits depend on its query, its position and the keys it
// sees: neither on the chunk, the tile, the batch, the page ids nor on how many heads are local.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/base/device.h"
#include "core/base/status.h"
#include "kernels/attention_prefill.h"

namespace quire::cuda {

// How prefill attention is cut: pure arithmetic on the format.
struct AttentionPrefillConfig {
  static constexpr int kKeyBlock = 32;  // of the plain kernel; that on tensor cores has its own

  bool tensor_cores = false;
  int tile_rows = 16;  // (token, head) pairs of a block
  int threads = 128;
  size_t shared_bytes = 0;

  static AttentionPrefillConfig For(const PageFormat& format);
  // Blocks per KV head that chunks of `rows` tokens together may need.
  int64_t Tiles(int64_t rows, int num_chunks, int group) const { return rows * group / tile_rows + num_chunks; }
  std::string ToString() const;
};

// most_rows: at least the sum of the chunks' rows; params.chunks is read on the device alone. Rows past it may stay
// unwritten. Tensor cores (bf16 and f16 pages whose size 8 divides, k_dim = v_dim = 64, 96, 128 or 256) round the
// queries and the weights to the cache's type; the sums are f32. There a NaN or infinite V may also show in rows of the
// same sequence that don't see it, within tile_rows positions of those that do; elsewhere never.
//
// FLOPs: 2 · (k_dim + v_dim) for each visible (row, head, key) and up to 64 keys a row more. Bytes: K and V once per
// tile.
Status AttentionPrefill(Stream stream, const AttentionPrefillParams& params, int64_t most_rows);
// With a Mod: as AttentionDecode's. Key blocks that its mask leaves nothing of are skipped.
template <class Mod>
Status AttentionPrefill(Stream stream, const AttentionPrefillParams& params, int64_t most_rows, const Mod& mod);

}  // namespace quire::cuda

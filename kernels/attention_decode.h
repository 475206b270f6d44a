// Decode attention: one query row per sequence against the pages of its cache, all of them or those of a Selection.
// softmax(q·Kᵀ·scale)·V per query head, K and V of the head's KV head, with the log-sum-exp out.
//
// Bytes it must move: (tokens read) * kv_heads * (k_dim + v_dim) * element size. The split of long lists depends on
// the number of listed pages alone, and parts are merged in order by log-sum-exp, so a row's bits depend on the row,
// its length and its selection, never on the batch, the threads or the number of local heads.
#pragma once

#include <cstdint>

#include "core/base/context.h"
#include "kernels/mods.h"
#include "kernels/page_table.h"
#include "kernels/selection.h"

namespace quire {

struct AttentionDecodeParams {
  const float* q = nullptr;  // [rows][q_heads][k_dim], row stride q_stride; rotated already
  int64_t q_stride = 0;
  float* out = nullptr;  // [rows][q_heads][v_dim], row stride out_stride
  int64_t out_stride = 0;
  float* lse = nullptr;  // [rows][q_heads], nullable; −inf where nothing was read (out is 0 there)
  int rows = 0;
  int q_heads = 0;                   // a multiple of table.format.kv_heads; head h reads KV head h / group
  const int32_t* row_seq = nullptr;  // [rows] index into table
  const int32_t* row_len = nullptr;  // [rows] tokens the row sees: positions [0, row_len); 0 is allowed
  LayerPages pages;
  PageTableView table;
  const SelectionView* selection = nullptr;  // null: all pages (dense)
  float scale = 1.0f;
  // Query heads of a KV head in the whole model, where this call has a part of them: bits follow them, and not the number
  // that is here. 0: all are here.
  int model_group = 0;
  // Attention mass out, nullable: [rows][kv_heads][mass_pages] of logical pages, normalised by the final log-sum-exp and
  // summed over the query group; pages that were not read get 0.
  float* mass = nullptr;
  int mass_pages = 0;
  // At least the longest row_len, for a GPU, whose arrays the host can't read. The CPU looks itself.
  int32_t longest = 0;
};

// Scratch bytes that AttentionDecode needs for these sizes (from rows, heads, dims and lengths only).
size_t AttentionDecodeWorkspace(const AttentionDecodeParams& params);  // on the CPU
size_t AttentionDecodeWorkspace(const Context& ctx, const AttentionDecodeParams& params, const ModelMod& mod = {});

// workspace: at least AttentionDecodeWorkspace bytes, 64-byte aligned. Never allocates.
// A row is the query at position row_len − 1. Compiled for PlainMod and SoftCapMod, on the CPU; other Mods through
// kernels/flex_attention.h.
template <typename Mod>
void AttentionDecode(const Context& ctx, const AttentionDecodeParams& params, const Mod& mod, void* workspace);
// On the context's device.
void AttentionDecode(const Context& ctx, const AttentionDecodeParams& params, void* workspace, const ModelMod& mod = {});

}  // namespace quire

// Prefill attention: the rows of chunks of prompts against all earlier tokens of their sequences, causal, over the
// paged cache (the chunk's own K and V are appended before). Keys are walked in blocks whose borders depend on
// positions alone, so a row's bits don't depend on how the prompt was cut into chunks, nor on threads. (A Mod whose mask
// sees the future lets rows see the later ones of their chunk, too.)
#pragma once

#include <cstdint>

#include "core/base/context.h"
#include "kernels/mods.h"
#include "kernels/page_table.h"

namespace quire {

struct PrefillChunk {
  int32_t seq = 0;         // index into table
  int32_t first_row = 0;   // its rows in q and out
  int32_t rows = 0;
  int32_t start_pos = 0;   // position of the first row; row i sees positions [0, start_pos + i]
};

struct AttentionPrefillParams {
  const float* q = nullptr;  // [rows][q_heads][k_dim], row stride q_stride
  int64_t q_stride = 0;
  float* out = nullptr;  // [rows][q_heads][v_dim], row stride out_stride
  int64_t out_stride = 0;
  float* lse = nullptr;  // [rows][q_heads], nullable
  int q_heads = 0;
  const PrefillChunk* chunks = nullptr;
  int num_chunks = 0;
  LayerPages pages;
  PageTableView table;
  float scale = 1.0f;
  // At least the chunks' rows together, for a GPU, whose arrays the host can't read. The CPU looks itself.
  int64_t rows = 0;
};

size_t AttentionPrefillWorkspace(const Context& ctx, const AttentionPrefillParams& params);
// Compiled for PlainMod and SoftCapMod, on the CPU; other Mods through kernels/flex_attention.h.
template <typename Mod>
void AttentionPrefill(const Context& ctx, const AttentionPrefillParams& params, const Mod& mod, void* workspace);
// On the context's device.
void AttentionPrefill(const Context& ctx, const AttentionPrefillParams& params, void* workspace, const ModelMod& mod = {});

}  // namespace quire

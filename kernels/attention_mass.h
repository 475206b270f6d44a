// The attention mass that rows of a prompt give to pages: for policies that choose by the attention paid before
// (kernels/selection/policy.h). A second pass over K, for rows whose log-sum-exp is known; prefill attention itself
// pays nothing for it. (Decode attention writes the mass of its rows itself.)
//
// FLOPs: 2 · k_dim for each (row, query head, key), and an exponential.
#pragma once

#include <cstdint>

#include "core/base/context.h"
#include "kernels/attention_prefill.h"
#include "kernels/mods.h"
#include "kernels/page_table.h"

namespace quire {

struct PrefillMassParams {
  const float* q = nullptr;  // [rows][q_heads][k_dim], row stride q_stride
  int64_t q_stride = 0;
  const float* lse = nullptr;  // [rows][q_heads], as AttentionPrefill writes it
  int q_heads = 0;             // a multiple of table.format.kv_heads
  PrefillChunk chunk;          // the rows, as AttentionPrefill has them
  LayerPages pages;
  PageTableView table;
  float scale = 1.0f;
  // [chunk.rows][kv_heads][mass_pages] out: softmax weights summed over a page's tokens and the query group, 0 for pages
  // that the row doesn't see. mass_pages: at least the pages up to the last row's. Bits depend on the row alone.
  float* mass = nullptr;
  int64_t mass_pages = 0;
  // Softmax weights of each token instead of each page: mass is [chunk.rows][kv_heads][mass_pages] of tokens. For a row
  // whose tokens lie in any order (an evicting sequence's), positions are slots, and the chunk's the one of its last.
  bool by_token = false;
};

// Decode rows, each of another sequence, whose tokens lie in any order: softmax weights of the slots that they attended to.
struct SlotMassParams {
  const float* q = nullptr;  // [rows][q_heads][k_dim], row stride q_stride
  int64_t q_stride = 0;
  const float* lse = nullptr;  // [rows][q_heads], as AttentionDecode writes it
  int rows = 0;
  int q_heads = 0;                   // a multiple of table.format.kv_heads
  const int32_t* row_seq = nullptr;  // [rows] index into table
  const int32_t* row_len = nullptr;  // [rows] the row sees slots [0, row_len)
  LayerPages pages;
  PageTableView table;
  float scale = 1.0f;
  // [rows][kv_heads][mass_slots] out: summed over the query group, 0 for slots that the row doesn't see. mass_slots: at
  // least the longest row_len.
  float* mass = nullptr;
  int64_t mass_slots = 0;
};

size_t PrefillMassWorkspace(const Context& ctx, const PrefillMassParams& params);
size_t SlotMassWorkspace(const Context& ctx, const SlotMassParams& params);
// Compiled for PlainMod and SoftCapMod, on the CPU.
template <typename Mod>
void PrefillMass(const Context& ctx, const PrefillMassParams& params, const Mod& mod, void* workspace);
// On the context's device. mod: of the attention that gave the log-sum-exps.
void PrefillMass(const Context& ctx, const PrefillMassParams& params, void* workspace, const ModelMod& mod = {});
// The same; slots have no window.
void SlotMass(const Context& ctx, const SlotMassParams& params, void* workspace, float softcap = 0);

}  // namespace quire

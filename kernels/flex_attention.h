// Attention with a Mod of the caller's own (kernels/mods.h) over the paged cache, on the CPU: compiled in the file that
// includes this header, for the one SIMD target that its flags allow (-march=native, -mavx2 -mfma …; the library's own
// kernels choose at run time instead). Needs Highway's headers, which quire's CMake package finds. Include it before any
// other header of Highway. Parameters, workspaces and threads are those of AttentionDecode and AttentionPrefill.
#pragma once

#ifndef HWY_COMPILE_ONLY_STATIC
#define HWY_COMPILE_ONLY_STATIC
#endif
#include "core/base/check.h"
#include "kernels/attention_decode.h"
#include "kernels/attention_prefill.h"
#include "kernels/block_mask.h"
#include "kernels/cpu/simd.h"
// After simd.h, which says which targets there are.
#include "hwy/highway.h"
#include "kernels/cpu/attention_decode-inl.h"
#include "kernels/cpu/attention_prefill-inl.h"

namespace quire {

// As AttentionDecode: one query a row, at position row_len − 1.
template <class Mod>
void FlexDecode(const Context& ctx, const AttentionDecodeParams& params, const Mod& mod, void* workspace) {
  if (params.rows == 0) return;
  CHECK_EQ(params.q_heads % params.table.format.kv_heads, 0);
  CHECK_EQ(reinterpret_cast<uintptr_t>(workspace) % 64, size_t{0});
  HWY_STATIC_DISPATCH(decode::Decode)(ctx, params, mod, workspace);
}

// As AttentionPrefill. Rows are causal unless the mask sees the future; then they see all keys up to their chunk's end.
template <class Mod>
void FlexPrefill(const Context& ctx, const AttentionPrefillParams& params, const Mod& mod, void* workspace) {
  if (params.num_chunks == 0) return;
  CHECK_EQ(params.q_heads % params.table.format.kv_heads, 0);
  CHECK_EQ(reinterpret_cast<uintptr_t>(workspace) % 64, size_t{0});
  HWY_STATIC_DISPATCH(prefill::Prefill)(ctx, params, mod, workspace);
}

}  // namespace quire

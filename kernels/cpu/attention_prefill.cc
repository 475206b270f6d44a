// The CPU's prefill attention: run-time dispatch over Highway's targets. The kernel itself is in attention_prefill-inl.h.
#include "kernels/attention_prefill.h"

#include "core/base/check.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_prefill.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/attention_prefill-inl.h"

HWY_BEFORE_NAMESPACE();
namespace quire {
namespace HWY_NAMESPACE {

void PrefillPlain(const Context& ctx, const AttentionPrefillParams& params, const PlainMod& mod, void* workspace) {
  prefill::Prefill(ctx, params, mod, workspace);
}

}  // namespace HWY_NAMESPACE
}  // namespace quire
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quire {

HWY_EXPORT(PrefillPlain);

size_t cpu::AttentionPrefillWorkspace(const Context& ctx, const AttentionPrefillParams& params) {
  return PrefillScratch::Bytes(params.table.format) * static_cast<size_t>(ctx.pool->threads());
}

template <>
void AttentionPrefill<PlainMod>(const Context& ctx, const AttentionPrefillParams& params, const PlainMod& mod,
                                void* workspace) {
  if (params.num_chunks == 0) return;
  CHECK_EQ(params.q_heads % params.table.format.kv_heads, 0);
  CHECK_EQ(reinterpret_cast<uintptr_t>(workspace) % 64, size_t{0});
  HWY_DYNAMIC_DISPATCH(PrefillPlain)(ctx, params, mod, workspace);
}

}  // namespace quire
#endif

// Decode and prefill attention with a soft cap on the scores, for the families that have one: run-time dispatch over
// Highway's targets, as attention_decode.cc and attention_prefill.cc do for plain attention.
#include "kernels/attention_decode.h"
#include "kernels/attention_prefill.h"

#include "core/base/check.h"
#include "kernels/cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_softcap.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/attention_decode-inl.h"
#include "kernels/cpu/attention_prefill-inl.h"

HWY_BEFORE_NAMESPACE();
namespace quire {
namespace HWY_NAMESPACE {

void DecodeSoftCap(const Context& ctx, const AttentionDecodeParams& params, const SoftCapMod& mod, void* workspace) {
  decode::Decode(ctx, params, mod, workspace);
}
void PrefillSoftCap(const Context& ctx, const AttentionPrefillParams& params, const SoftCapMod& mod, void* workspace) {
  prefill::Prefill(ctx, params, mod, workspace);
}

}  // namespace HWY_NAMESPACE
}  // namespace quire
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quire {

HWY_EXPORT(DecodeSoftCap);
HWY_EXPORT(PrefillSoftCap);

template <>
void AttentionDecode<SoftCapMod>(const Context& ctx, const AttentionDecodeParams& params, const SoftCapMod& mod,
                                 void* workspace) {
  if (params.rows == 0) return;
  CHECK_GT(mod.score.cap, 0.0f);
  CHECK_EQ(params.q_heads % params.table.format.kv_heads, 0);
  CHECK_EQ(reinterpret_cast<uintptr_t>(workspace) % 64, size_t{0});
  HWY_DYNAMIC_DISPATCH(DecodeSoftCap)(ctx, params, mod, workspace);
}

template <>
void AttentionPrefill<SoftCapMod>(const Context& ctx, const AttentionPrefillParams& params, const SoftCapMod& mod,
                                  void* workspace) {
  if (params.num_chunks == 0) return;
  CHECK_GT(mod.score.cap, 0.0f);
  CHECK_EQ(params.q_heads % params.table.format.kv_heads, 0);
  CHECK_EQ(reinterpret_cast<uintptr_t>(workspace) % 64, size_t{0});
  HWY_DYNAMIC_DISPATCH(PrefillSoftCap)(ctx, params, mod, workspace);
}

}  // namespace quire
#endif

// The CPU's decode attention: run-time dispatch over Highway's targets. The kernel itself is in attention_decode-inl.h.
#include "kernels/attention_decode.h"

#include "core/base/check.h"
#include "kernels/cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_decode.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/attention_decode-inl.h"

HWY_BEFORE_NAMESPACE();
namespace quire {
namespace HWY_NAMESPACE {

void DecodePlain(const Context& ctx, const AttentionDecodeParams& params, const PlainMod& mod, void* workspace) {
  decode::Decode(ctx, params, mod, workspace);
}

}  // namespace HWY_NAMESPACE
}  // namespace quire
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quire {

HWY_EXPORT(DecodePlain);

template <>
void AttentionDecode<PlainMod>(const Context& ctx, const AttentionDecodeParams& params, const PlainMod& mod,
                               void* workspace) {
  if (params.rows == 0) return;
  CHECK_EQ(params.q_heads % params.table.format.kv_heads, 0);
  CHECK_EQ(reinterpret_cast<uintptr_t>(workspace) % 64, size_t{0});
  HWY_DYNAMIC_DISPATCH(DecodePlain)(ctx, params, mod, workspace);
}

}  // namespace quire
#endif

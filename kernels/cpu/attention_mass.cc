// The CPU's mass of prompt rows: run-time dispatch over Highway's targets. The kernel itself is in
// attention_mass-inl.h.
#include "kernels/attention_mass.h"

#include "core/base/check.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_mass.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/attention_mass-inl.h"

HWY_BEFORE_NAMESPACE();
namespace quire {
namespace HWY_NAMESPACE {

void MassPlain(const Context& ctx, const PrefillMassParams& params, const PlainMod& mod, void* workspace) {
  mass::Mass(ctx, params, mod, workspace);
}
void MassSoftCap(const Context& ctx, const PrefillMassParams& params, const SoftCapMod& mod, void* workspace) {
  mass::Mass(ctx, params, mod, workspace);
}

}  // namespace HWY_NAMESPACE
}  // namespace quire
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quire {

HWY_EXPORT(MassPlain);
HWY_EXPORT(MassSoftCap);

static void CheckMass(const PrefillMassParams& params, const void* workspace) {
  const PageFormat& f = params.table.format;
  CHECK_EQ(params.q_heads % f.kv_heads, 0);
  CHECK_GE(params.mass_pages * (params.by_token ? 1 : f.page_size),
           int64_t{params.chunk.start_pos} + params.chunk.rows);
  CHECK_EQ(reinterpret_cast<uintptr_t>(workspace) % 64, size_t{0});
}

size_t cpu::PrefillMassWorkspace(const Context& ctx, const PrefillMassParams& params) {
  return MassScratch::Bytes(params.table.format) * static_cast<size_t>(ctx.pool->threads());
}

template <>
void PrefillMass<PlainMod>(const Context& ctx, const PrefillMassParams& params, const PlainMod& mod,
                           void* workspace) {
  if (params.chunk.rows == 0) return;
  CheckMass(params, workspace);
  HWY_DYNAMIC_DISPATCH(MassPlain)(ctx, params, mod, workspace);
}

template <>
void PrefillMass<SoftCapMod>(const Context& ctx, const PrefillMassParams& params, const SoftCapMod& mod,
                             void* workspace) {
  if (params.chunk.rows == 0) return;
  CHECK_GT(mod.score.cap, 0.0f);
  CheckMass(params, workspace);
  HWY_DYNAMIC_DISPATCH(MassSoftCap)(ctx, params, mod, workspace);
}

}  // namespace quire
#endif

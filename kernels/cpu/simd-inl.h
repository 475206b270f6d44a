// Per-target pieces shared by the attention kernels: words of 16-bit elements to floats, and exp.
// Every function gives a lane the same bits whatever the vector's width, so that tails may use one-lane tags.
#if defined(QUIRE_KERNELS_CPU_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef QUIRE_KERNELS_CPU_SIMD_INL_H_
#undef QUIRE_KERNELS_CPU_SIMD_INL_H_
#else
#define QUIRE_KERNELS_CPU_SIMD_INL_H_
#endif

#include <cstdint>

#include "core/base/dtype.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace quire {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// A portable one-lane tag: same operations, same bits, for tails.
using OneLane = hn::CappedTag<float, 1>;

template <class D>
using VecF = hn::Vec<D>;

// Asks for a line that is read a few thousand bytes later: into the second-level cache (prefetcht1), for the first
// level's buffers for lines under way are few, and full long before the memory is.
HWY_INLINE void Prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

// Lanes(d) 32-bit words at p hold two elements each (one for float): the element at the lower address to lo.
template <class D>
HWY_INLINE void LoadWords(D d, const float* p, VecF<D>& lo) {
  lo = hn::LoadU(d, p);
}
template <class D>
HWY_INLINE void LoadWords(D d, const BF16* p, VecF<D>& lo, VecF<D>& hi) {
  const hn::RebindToUnsigned<D> du;
  const auto words = hn::LoadU(du, reinterpret_cast<const uint32_t*>(p));
  lo = hn::BitCast(d, hn::ShiftLeft<16>(words));
  hi = hn::BitCast(d, hn::And(words, hn::Set(du, 0xffff0000u)));
}
template <class D>
HWY_INLINE void LoadWords(D d, const F16* p, VecF<D>& lo, VecF<D>& hi) {
  if constexpr (hn::MaxLanes(D()) == 1) {
    lo = hn::Set(d, ToFloat(p[0]));
    hi = hn::Set(d, ToFloat(p[1]));
  } else {
#if HWY_TARGET != HWY_SCALAR  // which has one lane only
    const hn::Rebind<hwy::float16_t, D> dh;
    const auto* h = reinterpret_cast<const hwy::float16_t*>(p);
    const auto a = hn::PromoteTo(d, hn::LoadU(dh, h));
    const auto b = hn::PromoteTo(d, hn::LoadU(dh, h + hn::Lanes(d)));
    lo = hn::ConcatEven(d, b, a);
    hi = hn::ConcatOdd(d, b, a);
#endif
  }
}

// Lanes(d) consecutive elements at p as floats.
template <class D>
HWY_INLINE VecF<D> LoadElements(D d, const float* p) {
  return hn::LoadU(d, p);
}
template <class D>
HWY_INLINE VecF<D> LoadElements(D d, const BF16* p) {
  if constexpr (hn::MaxLanes(D()) == 1) {
    return hn::Set(d, ToFloat(p[0]));
  } else {
    const hn::RebindToUnsigned<D> du;
    const hn::Rebind<uint16_t, D> dh;
    const auto wide = hn::PromoteTo(du, hn::LoadU(dh, reinterpret_cast<const uint16_t*>(p)));
    return hn::BitCast(d, hn::ShiftLeft<16>(wide));
  }
}
template <class D>
HWY_INLINE VecF<D> LoadElements(D d, const F16* p) {
  if constexpr (hn::MaxLanes(D()) == 1) {
    return hn::Set(d, ToFloat(p[0]));
  } else {
    const hn::Rebind<hwy::float16_t, D> dh;
    return hn::PromoteTo(d, hn::LoadU(dh, reinterpret_cast<const hwy::float16_t*>(p)));
  }
}

// e^x for x ≤ 0 (softmax's differences): within 2 ulp down to the smallest normal, 0 below it and for −inf, NaN for NaN.
// e^x = 2^n · e^r, n = round(x / ln 2), |r| ≤ ln 2 / 2; r by Cody and Waite's split of ln 2, e^r by its Taylor polynomial.
template <class D>
HWY_INLINE VecF<D> ExpNonPositive(D d, VecF<D> x) {
  const hn::RebindToSigned<D> di;
  const auto lowest = hn::Set(d, -87.33654f);
  const auto underflow = hn::Lt(x, lowest);
  const auto clamped = hn::IfThenElse(underflow, lowest, x);
  const auto n = hn::Round(hn::Mul(clamped, hn::Set(d, 1.44269504f)));
  auto r = hn::MulAdd(n, hn::Set(d, -0.693145752f), clamped);  // the upper bits of ln 2: exact products
  r = hn::MulAdd(n, hn::Set(d, -1.42860677e-6f), r);
  auto p = hn::Set(d, 1.0f / 5040);
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f / 720));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f / 120));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f / 24));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f / 6));
  p = hn::MulAdd(p, r, hn::Set(d, 0.5f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
  const auto power = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(di, n), hn::Set(di, 127))));
  return hn::IfThenZeroElse(underflow, hn::Mul(p, power));
}

HWY_INLINE float ExpNonPositive(float x) {
  const OneLane d;
  return hn::GetLane(ExpNonPositive(d, hn::Set(d, x)));
}

}  // namespace HWY_NAMESPACE
}  // namespace quire
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard

// Score functors over runs of keys, per Highway target: shipped ones by vectors, others by the compiler's own loop.
#if defined(QUIRE_KERNELS_CPU_MODS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef QUIRE_KERNELS_CPU_MODS_INL_H_
#undef QUIRE_KERNELS_CPU_MODS_INL_H_
#else
#define QUIRE_KERNELS_CPU_MODS_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/mods.h"

HWY_BEFORE_NAMESPACE();
namespace quire {
namespace HWY_NAMESPACE {

// Within 3e-7 of the true value, relative: a Taylor polynomial of degree 11 below 0.3, (1 − t) / (1 + t) with
// t = e^(−2|x|) above. NaN for NaN.
template <class D>
HWY_INLINE VecF<D> Tanh(D d, VecF<D> x) {
  const auto one = hn::Set(d, 1.0f);
  const auto a = hn::Abs(x);
  const auto t = ExpNonPositive(d, hn::Mul(a, hn::Set(d, -2.0f)));
  const auto large = hn::CopySignToAbs(hn::Div(hn::Sub(one, t), hn::Add(one, t)), x);
  const auto x2 = hn::Mul(x, x);
  auto p = hn::Set(d, -1382.0f / 155925);
  p = hn::MulAdd(p, x2, hn::Set(d, 62.0f / 2835));
  p = hn::MulAdd(p, x2, hn::Set(d, -17.0f / 315));
  p = hn::MulAdd(p, x2, hn::Set(d, 2.0f / 15));
  p = hn::MulAdd(p, x2, hn::Set(d, -1.0f / 3));
  p = hn::MulAdd(p, x2, one);
  return hn::IfThenElse(hn::Lt(a, hn::Set(d, 0.3f)), hn::Mul(p, x), large);
}

// s [n], the scores of keys kv … kv + n − 1, become what the functor makes of them. A score's bits don't depend on its
// place in the run.
template <class ScoreMod>
HWY_INLINE void ApplyScore(const ScoreMod& mod, float* HWY_RESTRICT s, int n, int seq, int head, int64_t q, int64_t kv) {
  for (int i = 0; i < n; ++i) s[i] = mod(s[i], seq, head, q, kv + i);
}
HWY_INLINE void ApplyScore(const NoScoreMod&, float*, int, int, int, int64_t, int64_t) {}
HWY_INLINE void ApplyScore(const SoftCap& mod, float* HWY_RESTRICT s, int n, int, int, int64_t, int64_t) {
  const hn::ScalableTag<float> d;
  const OneLane d1;
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(hn::ScalableTag<float>()));
  const float inverse = 1.0f / mod.cap;
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const auto x = hn::Mul(hn::LoadU(d, s + i), hn::Set(d, inverse));
    hn::StoreU(hn::Mul(Tanh(d, x), hn::Set(d, mod.cap)), d, s + i);
  }
  for (; i < n; ++i) {
    const auto x = hn::Mul(hn::Set(d1, s[i]), hn::Set(d1, inverse));
    s[i] = hn::GetLane(hn::Mul(Tanh(d1, x), hn::Set(d1, mod.cap)));
  }
}
template <class First, class Second>
HWY_INLINE void ApplyScore(const ThenScore<First, Second>& mod, float* HWY_RESTRICT s, int n, int seq, int head,
                           int64_t q, int64_t kv) {
  ApplyScore(mod.first, s, n, seq, head, q, kv);
  ApplyScore(mod.second, s, n, seq, head, q, kv);
}

}  // namespace HWY_NAMESPACE
}  // namespace quire
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard

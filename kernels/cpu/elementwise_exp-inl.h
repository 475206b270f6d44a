// exp of a vector of floats, per Highway target: 2^n · P(r) with x = n·ln2 + r, |r| ≤ ln2 / 2, and a Taylor polynomial of
// degree 7 (remainder 6e-9 relative). Within 2 ulp of the true value in [−87.3, 88.3]; below that 0 is given, above it
// the value at 88.3. NaN is the caller's matter.
#if defined(QUIRE_ELEMENTWISE_EXP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef QUIRE_ELEMENTWISE_EXP_INL_H_
#undef QUIRE_ELEMENTWISE_EXP_INL_H_
#else
#define QUIRE_ELEMENTWISE_EXP_INL_H_
#endif

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace quire::cpu {
namespace HWY_NAMESPACE {

template <class D>
HWY_INLINE hwy::HWY_NAMESPACE::Vec<D> Exp(D d, hwy::HWY_NAMESPACE::Vec<D> x) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::RebindToSigned<D> di;
  const auto lowest = hn::Set(d, -87.3f);
  const auto in_range = hn::Ge(x, lowest);
  x = hn::Min(hn::Max(x, lowest), hn::Set(d, 88.3f));
  const auto n = hn::Round(hn::Mul(x, hn::Set(d, 1.44269504f)));
  auto r = hn::NegMulAdd(n, hn::Set(d, 0.693359375f), x);  // ln2 in two parts, the first with a short mantissa
  r = hn::NegMulAdd(n, hn::Set(d, -2.12194440e-4f), r);
  auto p = hn::Set(d, 1.0f / 5040);
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f / 720));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f / 120));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f / 24));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f / 6));
  p = hn::MulAdd(p, r, hn::Set(d, 0.5f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
  const auto power = hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(di, n), hn::Set(di, 127)));
  return hn::IfThenElseZero(in_range, hn::Mul(p, hn::BitCast(d, power)));
}

}  // namespace HWY_NAMESPACE
}  // namespace quire::cpu
HWY_AFTER_NAMESPACE();

#endif  // toggle

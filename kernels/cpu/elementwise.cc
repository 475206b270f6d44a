// Row-wise operations on the CPU: one vector loop each, rows dealt out over the pool in chunks of about kTaskElements.
// They are bound by memory (or by the last-level cache): norms read x twice from L1, the others once.
#include "kernels/elementwise.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/base/check.h"
#include "kernels/cpu/ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/elementwise.cc"
#include "kernels/cpu/simd.h"
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "kernels/cpu/elementwise_exp-inl.h"
#include "kernels/cpu/mods-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace quire::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

// 1 / sqrt(mean(x²) + eps). The order of the sum depends on n alone.
HWY_INLINE float InverseRms(const float* x, int64_t n, float eps) {
  const D d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  V a = hn::Zero(d), b = a;
  int64_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    const V x0 = hn::LoadU(d, x + i), x1 = hn::LoadU(d, x + i + lanes);
    a = hn::MulAdd(x0, x0, a);
    b = hn::MulAdd(x1, x1, b);
  }
  float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(a, b)));
  for (; i < n; ++i) sum += x[i] * x[i];
  return 1.0f / std::sqrt(sum / static_cast<float>(n) + eps);
}

void NormRow(const float* x, const float* weight, float eps, int64_t n, float* out) {
  const D d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const float scale = InverseRms(x, n, eps);
  const V s = hn::Set(d, scale);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    hn::StoreU(hn::Mul(hn::Mul(hn::LoadU(d, x + i), s), hn::LoadU(d, weight + i)), d, out + i);
  }
  for (; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

void AddRow(const float* x, int64_t n, float* y) {
  const D d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) hn::StoreU(hn::Add(hn::LoadU(d, y + i), hn::LoadU(d, x + i)), d, y + i);
  for (; i < n; ++i) y[i] += x[i];
}

HWY_INLINE V Silu(D d, V x) {
  const V one = hn::Set(d, 1.0f);
  return hn::Div(x, hn::Add(one, Exp(d, hn::Neg(x))));
}

// With y = √(2/π) (x + 0.044715 x³), (1 + tanh y) / 2 = 1 / (1 + e^(−2y)).
HWY_INLINE V GeluTanh(D d, V x) {
  const V one = hn::Set(d, 1.0f);
  const V y2 = hn::Mul(hn::Mul(x, hn::Set(d, 1.59576912f)), hn::MulAdd(hn::Mul(x, x), hn::Set(d, 0.044715f), one));
  return hn::Div(x, hn::Add(one, Exp(d, hn::Neg(y2))));
}

struct SiluOp {
  HWY_INLINE V operator()(D d, V x) const { return Silu(d, x); }
};
struct GeluTanhOp {
  HWY_INLINE V operator()(D d, V x) const { return GeluTanh(d, x); }
};

template <class Op>
HWY_INLINE void GatedRow(const Op& op, const float* gate, const float* up, int64_t n, float* out) {
  const D d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    hn::StoreU(hn::Mul(op(d, hn::LoadU(d, gate + i)), hn::LoadU(d, up + i)), d, out + i);
  }
  if (i < n) {  // through a padded vector, so that every element has the same arithmetic
    HWY_ALIGN float last[HWY_MAX_BYTES / sizeof(float)] = {};
    std::copy(gate + i, gate + n, last);
    hn::Store(op(d, hn::Load(d, last)), d, last);
    for (int64_t j = i; j < n; ++j) out[j] = last[j - i] * up[j];
  }
}
void SiluMulRow(const float* gate, const float* up, int64_t n, float* out) { GatedRow(SiluOp(), gate, up, n, out); }
void GeluTanhMulRow(const float* gate, const float* up, int64_t n, float* out) {
  GatedRow(GeluTanhOp(), gate, up, n, out);
}

void ScaleRow(float factor, int64_t n, float* x) {
  for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

void SoftCapRow(float cap, int64_t n, float* x) {
  quire::HWY_NAMESPACE::ApplyScore(SoftCap{cap}, x, static_cast<int>(n), 0, 0, 0, 0);
}

template <typename T>
void WidenRow(const T* from, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = ToFloat(from[i]);
}
void EmbedRow(const void* row, DType dtype, int64_t n, float* out) {
  VisitFloatDType(dtype, [&](auto t) { WidenRow(static_cast<const decltype(t)*>(row), n, out); });
}

// One head; cs [2][half].
void RopeHead(float* x, const float* cs, int64_t half, bool interleaved) {
  const D d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const float* c = cs;
  const float* s = cs + half;
  int64_t i = 0;
  for (; i + lanes <= half; i += lanes) {
    const V ci = hn::LoadU(d, c + i), si = hn::LoadU(d, s + i);
    V a, b;
    if (interleaved) {
      hn::LoadInterleaved2(d, x + 2 * i, a, b);
    } else {
      a = hn::LoadU(d, x + i);
      b = hn::LoadU(d, x + half + i);
    }
    const V rotated_a = hn::Sub(hn::Mul(a, ci), hn::Mul(b, si));
    const V rotated_b = hn::Add(hn::Mul(b, ci), hn::Mul(a, si));
    if (interleaved) {
      hn::StoreInterleaved2(rotated_a, rotated_b, d, x + 2 * i);
    } else {
      hn::StoreU(rotated_a, d, x + i);
      hn::StoreU(rotated_b, d, x + half + i);
    }
  }
  for (; i < half; ++i) {
    float& a = interleaved ? x[2 * i] : x[i];
    float& b = interleaved ? x[2 * i + 1] : x[half + i];
    const float a0 = a, b0 = b;
    a = a0 * c[i] - b0 * s[i];
    b = b0 * c[i] + a0 * s[i];
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace quire::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quire {
namespace cpu {
namespace {
HWY_EXPORT(NormRow);
HWY_EXPORT(AddRow);
HWY_EXPORT(SiluMulRow);
HWY_EXPORT(GeluTanhMulRow);
HWY_EXPORT(ScaleRow);
HWY_EXPORT(SoftCapRow);
HWY_EXPORT(EmbedRow);
HWY_EXPORT(RopeHead);
// The functions for this machine.
auto BestNormRow() {
  return [](auto... args) { return HWY_DYNAMIC_DISPATCH(NormRow)(args...); };
}
auto BestAddRow() {
  return [](auto... args) { return HWY_DYNAMIC_DISPATCH(AddRow)(args...); };
}
auto BestSiluMulRow() {
  return [](auto... args) { return HWY_DYNAMIC_DISPATCH(SiluMulRow)(args...); };
}
auto BestGeluTanhMulRow() {
  return [](auto... args) { return HWY_DYNAMIC_DISPATCH(GeluTanhMulRow)(args...); };
}
auto BestScaleRow() {
  return [](auto... args) { return HWY_DYNAMIC_DISPATCH(ScaleRow)(args...); };
}
auto BestSoftCapRow() {
  return [](auto... args) { return HWY_DYNAMIC_DISPATCH(SoftCapRow)(args...); };
}
auto BestEmbedRow() {
  return [](auto... args) { return HWY_DYNAMIC_DISPATCH(EmbedRow)(args...); };
}
auto BestRopeHead() {
  return [](auto... args) { return HWY_DYNAMIC_DISPATCH(RopeHead)(args...); };
}
}  // namespace
}  // namespace cpu

namespace {

// Elements of one task: some 5–10 µs of work, many times what handing it out costs. Up to one task's worth runs inline.
constexpr int64_t kTaskElements = 16 << 10;

// Calls f(row) for all rows, each some `width` elements of work.
template <typename F>
void ForRows(const Context& ctx, int64_t rows, int64_t width, F&& f) {
  if (rows <= 0) return;
  const int64_t chunk = std::max<int64_t>(1, kTaskElements / std::max<int64_t>(1, width));
  ctx.pool->ParallelFor((rows + chunk - 1) / chunk, [&](int64_t task, int) {
    const int64_t end = std::min(rows, (task + 1) * chunk);
    for (int64_t r = task * chunk; r < end; ++r) f(r);
  });
}

}  // namespace

namespace cpu {

void RmsNorm(const Context& ctx, const float* x, const float* weight, float eps, int64_t rows, int64_t width, float* out) {
  const auto norm = cpu::BestNormRow();
  ForRows(ctx, rows, width, [&](int64_t r) { norm(x + r * width, weight, eps, width, out + r * width); });
}

void AddRmsNorm(const Context& ctx, const float* x, float* residual, const float* weight, float eps, int64_t rows,
                int64_t width, float* out) {
  CHECK(out != x && out != residual);
  const auto add = cpu::BestAddRow();
  const auto norm = cpu::BestNormRow();
  ForRows(ctx, rows, width, [&](int64_t r) {
    add(x + r * width, width, residual + r * width);
    norm(residual + r * width, weight, eps, width, out + r * width);
  });
}

void Add(const Context& ctx, const float* x, int64_t rows, int64_t width, float* y) {
  const auto add = cpu::BestAddRow();
  ForRows(ctx, rows, width, [&](int64_t r) { add(x + r * width, width, y + r * width); });
}

void HeadRmsNorm(const Context& ctx, float* x, int64_t x_stride, const float* weight, float eps, int64_t rows, int heads,
                 int head_dim) {
  const auto norm = cpu::BestNormRow();
  ForRows(ctx, rows, int64_t{heads} * head_dim, [&](int64_t r) {
    for (int h = 0; h < heads; ++h) {
      float* head = x + r * x_stride + int64_t{h} * head_dim;
      norm(head, weight, eps, head_dim, head);
    }
  });
}

namespace {
template <typename F>
void Gated(const Context& ctx, const float* gate_up, int64_t rows, int64_t width, float* out, const F& f) {
  ForRows(ctx, rows, 2 * width, [&](int64_t r) {
    const float* gate = gate_up + r * 2 * width;
    f(gate, gate + width, width, out + r * width);
  });
}
}  // namespace

void SiluMul(const Context& ctx, const float* gate_up, int64_t rows, int64_t width, float* out) {
  Gated(ctx, gate_up, rows, width, out, cpu::BestSiluMulRow());
}
void GeluTanhMul(const Context& ctx, const float* gate_up, int64_t rows, int64_t width, float* out) {
  Gated(ctx, gate_up, rows, width, out, cpu::BestGeluTanhMulRow());
}

void Scale(const Context& ctx, float factor, int64_t rows, int64_t width, float* x) {
  const auto scale = cpu::BestScaleRow();
  ForRows(ctx, rows, width, [&](int64_t r) { scale(factor, width, x + r * width); });
}

void SoftCapRows(const Context& ctx, float cap, int64_t rows, int64_t width, float* x) {
  const auto soft_cap = cpu::BestSoftCapRow();
  ForRows(ctx, rows, 4 * width, [&](int64_t r) { soft_cap(cap, width, x + r * width); });
}

void Embed(const Context& ctx, const void* table, DType dtype, int64_t vocab_begin, int64_t vocab, const int32_t* ids,
           int64_t rows, int64_t width, float* out) {
  const auto embed = cpu::BestEmbedRow();
  const int64_t row_bytes = width * ElementSize(dtype);
  for (int64_t r = 0; r < rows; ++r) CHECK_GE(ids[r], 0);
  ForRows(ctx, rows, width, [&](int64_t r) {
    const int64_t id = ids[r] - vocab_begin;
    if (id < 0 || id >= vocab) {
      std::memset(out + r * width, 0, static_cast<size_t>(width) * sizeof(float));
    } else {
      embed(static_cast<const std::byte*>(table) + id * row_bytes, dtype, width, out + r * width);
    }
  });
}

void RopeTable(const Context& ctx, const int32_t* positions, int64_t rows, const float* inv_freq, int half, float magnitude,
               float* out) {
  // A double sincos costs some 40 times a rotated element.
  ForRows(ctx, rows, int64_t{half} * 40, [&](int64_t r) {
    float* cos_row = out + r * 2 * half;
    for (int i = 0; i < half; ++i) {
      const double angle = static_cast<double>(positions[r]) * inv_freq[i];
      cos_row[i] = static_cast<float>(std::cos(angle) * magnitude);
      cos_row[half + i] = static_cast<float>(std::sin(angle) * magnitude);
    }
  });
}

}  // namespace cpu

void Rope(const Context& ctx, const RopeParams& p) {
  CHECK(p.rows == 0 || p.cos_sin != nullptr);
  CHECK_EQ(p.rotary_dim % 2, 0);
  CHECK_LE(p.rotary_dim, p.head_dim);
  const auto rope = cpu::BestRopeHead();
  const int64_t half = p.rotary_dim / 2;
  ForRows(ctx, p.rows, int64_t{p.heads} * p.rotary_dim, [&](int64_t r) {
    for (int h = 0; h < p.heads; ++h) {
      rope(p.x + r * p.x_stride + int64_t{h} * p.head_dim, p.cos_sin + r * 2 * half, half, p.interleaved);
    }
  });
}

}  // namespace quire
#endif  // HWY_ONCE

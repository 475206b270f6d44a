#include "kernels/elementwise.h"

#include <algorithm>

#include "kernels/cpu/ops.h"
#include "kernels/cuda/elementwise.h"
#include "kernels/dispatch/dispatch.h"

namespace quire {

void RmsNorm(const Context& ctx, const float* x, const float* weight, float eps, int64_t rows, int64_t width,
             ProductRows out) {
  Dispatch(
      ctx, [&] { cpu::RmsNorm(ctx, x, weight, eps, rows, width, out.f32()); },
      [&](Stream stream) {
        return cuda::RmsNorm(stream, DType::kF32, out.dtype, {x, width, nullptr, weight, out.data, width, eps, rows, width});
      });
}

void AddRmsNorm(const Context& ctx, const float* x, float* residual, const float* weight, float eps, int64_t rows,
                int64_t width, ProductRows out) {
  Dispatch(
      ctx, [&] { cpu::AddRmsNorm(ctx, x, residual, weight, eps, rows, width, out.f32()); },
      [&](Stream stream) {
        return cuda::RmsNorm(stream, DType::kF32, out.dtype, {x, width, residual, weight, out.data, width, eps, rows, width});
      });
}

void Add(const Context& ctx, const float* x, int64_t rows, int64_t width, float* y) {
  Dispatch(
      ctx, [&] { cpu::Add(ctx, x, rows, width, y); },
      [&](Stream stream) { return cuda::AddToResidual(stream, DType::kF32, x, y, rows, width); });
}

void HeadRmsNorm(const Context& ctx, float* x, int64_t x_stride, const float* weight, float eps, int64_t rows, int heads,
                 int head_dim) {
  Dispatch(
      ctx, [&] { cpu::HeadRmsNorm(ctx, x, x_stride, weight, eps, rows, heads, head_dim); },
      [&](Stream stream) {
        return cuda::HeadRmsNorm(stream, DType::kF32, {x, x_stride, weight, eps, rows, heads, head_dim});
      });
}

void SiluMul(const Context& ctx, const float* gate_up, int64_t rows, int64_t width, ProductRows out) {
  Dispatch(
      ctx, [&] { cpu::SiluMul(ctx, gate_up, rows, width, out.f32()); },
      [&](Stream stream) { return cuda::SiluMul(stream, DType::kF32, out.dtype, gate_up, out.data, rows, width); });
}

void GeluTanhMul(const Context& ctx, const float* gate_up, int64_t rows, int64_t width, ProductRows out) {
  Dispatch(
      ctx, [&] { cpu::GeluTanhMul(ctx, gate_up, rows, width, out.f32()); },
      [&](Stream stream) { return cuda::GeluTanhMul(stream, DType::kF32, out.dtype, gate_up, out.data, rows, width); });
}

void Scale(const Context& ctx, float factor, int64_t rows, int64_t width, float* x) {
  Dispatch(
      ctx, [&] { cpu::Scale(ctx, factor, rows, width, x); },
      [&](Stream stream) { return cuda::Scale(stream, factor, x, rows * width); });
}

void SoftCapRows(const Context& ctx, float cap, int64_t rows, int64_t width, float* x) {
  Dispatch(
      ctx, [&] { cpu::SoftCapRows(ctx, cap, rows, width, x); },
      [&](Stream stream) { return cuda::SoftCapRows(stream, cap, x, rows * width); });
}

void Embed(const Context& ctx, const void* table, DType dtype, int64_t vocab_begin, int64_t vocab, const int32_t* ids,
           int64_t rows, int64_t width, float* out) {
  Dispatch(
      ctx, [&] { cpu::Embed(ctx, table, dtype, vocab_begin, vocab, ids, rows, width, out); },
      [&](Stream stream) { return cuda::Embed(stream, dtype, {table, vocab_begin, vocab, ids, rows, width, out}); });
}

void RopeCopy(const Context& ctx, const float* from, int64_t from_stride, const RopeParams& p) {
  Dispatch(
      ctx,
      [&] {
        for (int64_t row = 0; row < p.rows; ++row) {
          std::copy_n(from + row * from_stride, int64_t{p.heads} * p.head_dim, p.x + row * p.x_stride);
        }
        Rope(ctx, p);
      },
      [&](Stream stream) {
        return cuda::Rope(stream, {.from = from,
                                   .from_stride = from_stride,
                                   .out = p.x,
                                   .out_stride = p.x_stride,
                                   .rows = p.rows,
                                   .heads = p.heads,
                                   .head_dim = p.head_dim,
                                   .rotary_dim = p.rotary_dim,
                                   .interleaved = p.interleaved,
                                   .cos_sin = p.cos_sin});
      });
}

void RopeTable(const Context& ctx, const int32_t* positions, int64_t rows, const float* inv_freq, int half, float magnitude,
               float* out) {
  Dispatch(
      ctx, [&] { cpu::RopeTable(ctx, positions, rows, inv_freq, half, magnitude, out); },
      [&](Stream stream) { return cuda::RopeTable(stream, {positions, rows, inv_freq, half, magnitude, out}); });
}

}  // namespace quire

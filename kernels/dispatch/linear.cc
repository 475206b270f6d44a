#include "kernels/linear.h"

#include "kernels/cpu/ops.h"
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/matmul.h"
#include "kernels/dispatch/dispatch.h"
#include "kernels/product_rows.h"

namespace quire {
namespace {

// Rows of f32 are rounded to the weight's type where that has 16 bits, as tensor cores want them.
Status LinearOnGpu(const Context& ctx, Stream stream, cuda::MatmulParams p, const void* x, DType x_dtype) {
  p.x = x;
  if (p.dtype != x_dtype) {
    CHECK(x_dtype == DType::kF32);
    const size_t bytes = static_cast<size_t>(p.m * p.cols * ElementSize(p.dtype));
    ASSIGN_OR_RETURN(void* narrow, ctx.session->Scratch(bytes));
    RETURN_IF_ERROR(cuda::Narrow(stream, p.dtype, static_cast<const float*>(x), p.x_stride, p.m, p.cols, narrow));
    p.x = narrow;
    p.x_stride = p.cols;
  }
  return ctx.session->matmul().Run(stream, p);
}

// x: of x_dtype, f32 on the CPU.
void AnyLinear(const Context& ctx, const void* x, DType x_dtype, int64_t x_stride, int64_t m, const Weight& weight,
               const float* bias, float* out, int64_t out_stride, bool accumulate) {
  Dispatch(
      ctx,
      [&] {
        CHECK(x_dtype == DType::kF32);
        cpu::Linear(ctx, static_cast<const float*>(x), x_stride, m, weight, bias, out, out_stride, accumulate);
      },
      [&](Stream stream) -> Status {
        CHECK(!weight.empty());
        if (m <= 0) return OkStatus();
        cuda::MatmulParams p;
        p.dtype = weight.dtype();
        p.x_stride = x_stride;
        p.w = weight.data();
        p.bias = bias;
        p.out = out;
        p.out_stride = out_stride;
        p.m = m;
        p.rows = weight.rows();
        p.cols = weight.cols();
        p.accumulate = accumulate;
        p.batch_invariant = ctx.batch_invariant;
        return LinearOnGpu(ctx, stream, p, x, x_dtype);
      });
}

}  // namespace

Status PrepareWeight(const Context& ctx, Weight& weight) {
  return DispatchValue(
      ctx, [&] { return cpu::PrepareWeight(ctx, weight); }, [&] { return OkStatus(); });
}

DType ProductType(const Context& ctx, const Weight& weight) {
  return DispatchValue(
      ctx, [] { return DType::kF32; }, [&] { return weight.dtype(); });
}

void Linear(const Context& ctx, const float* x, int64_t x_stride, int64_t m, const Weight& weight, const float* bias,
            float* out, int64_t out_stride, bool accumulate) {
  AnyLinear(ctx, x, DType::kF32, x_stride, m, weight, bias, out, out_stride, accumulate);
}

void Linear(const Context& ctx, const ProductRows& x, int64_t x_stride, int64_t m, const Weight& weight,
            const float* bias, float* out, int64_t out_stride, bool accumulate) {
  AnyLinear(ctx, x.data, x.dtype, x_stride, m, weight, bias, out, out_stride, accumulate);
}

}  // namespace quire

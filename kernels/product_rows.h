// Rows on their way into a product: f32, or, where a GPU makes them, of the 16-bit type of the weights that they meet. The
// rounding is the one that the product would do, to nearest even, so the same numbers come out; a kernel less does it.
#pragma once

#include <cstdint>

#include "core/base/check.h"
#include "core/base/context.h"
#include "core/base/dtype.h"

namespace quire {

class Weight;

struct ProductRows {
  void* data = nullptr;
  DType dtype = DType::kF32;

  ProductRows(float* rows) : data(rows) {}  // NOLINT: implicit by design, rows are f32 unless somebody knows more
  ProductRows(void* rows, DType type) : data(rows), dtype(type) {}
  // As what they are on the CPU.
  float* f32() const {
    CHECK(dtype == DType::kF32);
    return static_cast<float*>(data);
  }
};

// The type of rows that meet this weight without another kernel: f32 on the CPU; on a GPU the weight's own, for its tensor cores.
DType ProductType(const Context& ctx, const Weight& weight);

// Linear (kernels/linear.h) of rows that were made for it: of f32 or of ProductType.
void Linear(const Context& ctx, const ProductRows& x, int64_t x_stride, int64_t m, const Weight& weight, const float* bias,
            float* out, int64_t out_stride, bool accumulate = false);

}  // namespace quire

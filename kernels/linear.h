// Matrix products y = x·Wᵀ (+ bias). Weight owns its type and packing, so that quantised weights change no
// caller. Activations are f32; a GPU rounds them to the weight's type for the product, and sums in f32.
//
// Bytes a decode step must move: rows * cols * element size, once. FLOPs: 2 * m * rows * cols.
#pragma once

#include <cstdint>
#include <memory>

#include "core/base/context.h"
#include "core/base/dtype.h"
#include "core/base/status.h"
#include "core/base/tensor.h"

namespace quire {

class Weight;
namespace cpu {
Status PrepareWeight(const Context& ctx, Weight& weight);
}

// A [rows][cols] matrix, rows = output features, cols = input features, row-major in its source.
class Weight {
 public:
  Weight();
  ~Weight();
  Weight(Weight&&) noexcept;
  Weight& operator=(Weight&&) noexcept;

  // Over memory that outlives the weight (a mapped file), of any device. dtype F32, BF16 or F16.
  static Result<Weight> Borrow(const void* data, DType dtype, int64_t rows, int64_t cols);
  // Over a tensor [rows][cols] that the weight takes, of any device. Concat is for the CPU's.
  static Result<Weight> Own(Tensor tensor);
  // Several weights of equal cols and dtype put below each other (q, k, v; gate, up), so that one product serves all.
  // Borrowed parts that lie one behind the other in memory stay borrowed; otherwise they are copied.
  static Result<Weight> Concat(Weight* parts, int count);

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  DType dtype() const { return dtype_; }
  bool empty() const { return rows_ == 0; }
  const void* data() const { return data_; }  // [rows][cols] row-major
  size_t bytes() const { return static_cast<size_t>(rows_ * cols_) * ElementSize(dtype_); }
  bool owned() const;
  // Bytes of packed copies made for the matrix unit, beside bytes().
  size_t packed_bytes() const;

  struct Packed;  // what the back end made of it; defined in kernels/cpu
  Packed* packed() const { return packed_.get(); }

 private:
  friend Status cpu::PrepareWeight(const Context& ctx, Weight& weight);
  const void* data_ = nullptr;
  DType dtype_ = DType::kF32;
  int64_t rows_ = 0, cols_ = 0;
  Tensor storage_;
  std::unique_ptr<Packed> packed_;
};

// Once after loading, before the first Linear: packs for the matrix unit where that pays (oneDNN bf16 with AMX or
// AVX-512), otherwise, and on a GPU, does nothing. Not thread safe.
Status PrepareWeight(const Context& ctx, Weight& weight);

// out [m][rows] (row stride out_stride elements) = x [m][cols] (row stride x_stride) · Wᵀ + bias [rows] (nullable).
// accumulate adds to what out holds instead. With ctx.batch_invariant a row's bits depend on the row, the weight
// and its dtype alone: not on m, not on threads. Allocates nothing per call beyond per-thread scratch kept between calls.
void Linear(const Context& ctx, const float* x, int64_t x_stride, int64_t m, const Weight& weight, const float* bias,
            float* out, int64_t out_stride, bool accumulate = false);

}  // namespace quire

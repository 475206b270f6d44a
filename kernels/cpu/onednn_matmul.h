// Products by oneDNN over weights packed in the order it asks for. One file serves its 2.6 and 3.x interfaces.
//
// oneDNN brings a thread pool of its own (OpenMP); here it runs single-threaded inside the tasks of our pool, one task
// per block of output features and of rows. Products of bf16 weights round x to bf16 on the way in and accumulate in
// f32; those of f32 weights are f32 throughout. Rows are padded to a few fixed counts, so that no product is compiled
// during a step.
#pragma once

#include <cstdint>
#include <memory>

#include "core/base/context.h"
#include "core/base/dtype.h"
#include "core/base/status.h"

namespace quire::cpu {

// What oneDNN multiplies fast here.
enum class MatrixUnit { kNone, kAvx512Bf16, kAmxBf16 };
MatrixUnit DetectMatrixUnit();
const char* MatrixUnitName(MatrixUnit unit);  // "none", "avx512_bf16", "amx_bf16"

// Whether bf16 weights are packed for oneDNN: only where it has instructions for them. Elsewhere it would emulate bf16
// in more work than our own kernels take. f32 and f16 weights stay with ours.
bool OneDnnPays(MatrixUnit unit, DType dtype);

class OneDnnMatmul {
 public:
  // weight [rows][cols] row-major, F32 or BF16; copied. UNIMPLEMENTED where oneDNN has no product of that dtype.
  static Result<std::unique_ptr<OneDnnMatmul>> Create(const Context& ctx, const void* weight, DType dtype, int64_t rows,
                                                      int64_t cols);
  ~OneDnnMatmul();

  size_t packed_bytes() const;

  // As Linear: out [m][rows] = x [m][cols] · Wᵀ + bias. Thread safe over different outputs.
  void Run(const Context& ctx, const float* x, int64_t x_stride, int64_t m, const float* bias, float* out,
           int64_t out_stride, bool accumulate) const;

 private:
  OneDnnMatmul();
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace quire::cpu

// The small row-wise operations of a decoder layer on the GPU: kernels/elementwise.h with rows of any floating type and f32
// inside. Pointers are device memory. A row's bits depend on that row alone: rows are cut among threads by width only.
#pragma once

#include <cstdint>
#include <string>

#include "core/base/device.h"
#include "core/base/dtype.h"
#include "core/base/status.h"

namespace quire::cuda {

// How rows are cut, of the width alone.
struct RowConfig {
  int threads = 32;  // of a block
  static RowConfig For(int64_t width);
  std::string ToString() const;
};

// residual[r] += x[r] where residual is given; out[r] = v / sqrt(mean(v²) + eps) * weight, with v the new residual or x. out is of
// x's type, or of any where x is f32: rounded to nearest even, as Narrow does it.
// Bytes: rows * width * (both element sizes + 8 with a residual). Rows whose addresses and widths are multiples of 16 bytes are
// read by 16 bytes.
struct RmsNormParams {
  const void* x = nullptr;        // [rows][width] of dtype, row stride x_stride
  int64_t x_stride = 0;
  float* residual = nullptr;      // [rows][width], dense, nullable
  const float* weight = nullptr;  // [width]
  void* out = nullptr;            // [rows][width] of out_dtype, row stride out_stride; may be x where that has the same type
  int64_t out_stride = 0;
  float eps = 1e-5f;
  int64_t rows = 0;
  int64_t width = 0;
};
Status RmsNorm(Stream stream, DType dtype, DType out_dtype, const RmsNormParams& params);

// RmsNorm over the last dimension of x [rows][heads][head_dim] (row stride x_stride), in place; weight [head_dim].
struct HeadRmsNormParams {
  void* x = nullptr;
  int64_t x_stride = 0;
  const float* weight = nullptr;
  float eps = 1e-5f;
  int64_t rows = 0;
  int heads = 0;
  int head_dim = 0;
};
Status HeadRmsNorm(Stream stream, DType dtype, const HeadRmsNormParams& params);

// residual[r] += x[r]; x of dtype, residual f32, both dense [rows][width].
Status AddToResidual(Stream stream, DType dtype, const void* x, float* residual, int64_t rows, int64_t width);

// out[r][i] = silu(gate_up[r][i]) * gate_up[r][width + i]; gate_up [rows][2 * width] of dtype, out [rows][width] of out_dtype,
// which are as RmsNorm's.
Status SiluMul(Stream stream, DType dtype, DType out_dtype, const void* gate_up, void* out, int64_t rows, int64_t width);

// The same with gelu's tanh form.
Status GeluTanhMul(Stream stream, DType dtype, DType out_dtype, const void* gate_up, void* out, int64_t rows, int64_t width);

// x[i] *= factor and x[i] = cap · tanh(x[i] / cap) of n floats.
Status Scale(Stream stream, float factor, float* x, int64_t n);
Status SoftCapRows(Stream stream, float cap, float* x, int64_t n);

// out[r][i] = x[r][i] rounded to dtype (nearest even): what products of 16-bit weights multiply with. x row stride x_stride, out
// dense [rows][width].
Status Narrow(Stream stream, DType dtype, const float* x, int64_t x_stride, int64_t rows, int64_t width, void* out);

// out[r] = table[ids[r] − vocab_begin] as f32 (the residual that a decoder starts with); table [vocab][width] of dtype, out
// [rows][width]. Ids outside [vocab_begin, vocab_begin + vocab) give zeros (vocabulary-parallel embedding, padding).
struct EmbedParams {
  const void* table = nullptr;
  int64_t vocab_begin = 0;
  int64_t vocab = 0;
  const int32_t* ids = nullptr;  // [rows]
  int64_t rows = 0;
  int64_t width = 0;
  float* out = nullptr;
};
Status Embed(Stream stream, DType dtype, const EmbedParams& params);

// cos_sin[r] = {cos, sin}(positions[r] * inv_freq[i]) * magnitude, angles in double; out [rows][2][half], inv_freq [half].
struct RopeTableParams {
  const int32_t* positions = nullptr;
  int64_t rows = 0;
  const float* inv_freq = nullptr;
  int half = 0;
  float magnitude = 1.0f;
  float* out = nullptr;
};
Status RopeTable(Stream stream, const RopeTableParams& params);

// out = from, the first rotary_dim channels of each head rotated (kernels/elementwise.h); out is not from. Rows of f32.
struct RopeParams {
  const float* from = nullptr;  // [rows][heads][head_dim], row stride from_stride
  int64_t from_stride = 0;
  float* out = nullptr;  // the same, row stride out_stride
  int64_t out_stride = 0;
  int64_t rows = 0;
  int heads = 0;
  int head_dim = 0;
  int rotary_dim = 0;
  bool interleaved = false;
  const float* cos_sin = nullptr;  // [rows][2][rotary_dim / 2]
};
Status Rope(Stream stream, const RopeParams& params);

}  // namespace quire::cuda

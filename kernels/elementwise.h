// The small row-wise operations of a decoder layer. All rows are f32 (but ProductRows, on a GPU), [rows][width], dense. A row's
// bits depend on that row alone.
#pragma once

#include <cstdint>

#include "core/base/context.h"
#include "core/base/dtype.h"
#include "kernels/product_rows.h"

namespace quire {

// out[r] = x[r] / sqrt(mean(x[r]²) + eps) * weight [width]. out may be x, in f32. Zhang & Sennrich, arXiv 1910.07467.
void RmsNorm(const Context& ctx, const float* x, const float* weight, float eps, int64_t rows, int64_t width,
             ProductRows out);

// residual[r] += x[r]; out[r] = RmsNorm(residual[r]). out may not be x or residual.
void AddRmsNorm(const Context& ctx, const float* x, float* residual, const float* weight, float eps, int64_t rows,
                int64_t width, ProductRows out);

// y[r] += x[r].
void Add(const Context& ctx, const float* x, int64_t rows, int64_t width, float* y);

// RmsNorm over the last dimension of x [rows][heads][head_dim] (row stride x_stride elements), in place; weight [head_dim].
void HeadRmsNorm(const Context& ctx, float* x, int64_t x_stride, const float* weight, float eps, int64_t rows, int heads,
                 int head_dim);

// out[r][i] = silu(gate_up[r][i]) * gate_up[r][width + i];  gate_up [rows][2 * width], out [rows][width].
void SiluMul(const Context& ctx, const float* gate_up, int64_t rows, int64_t width, ProductRows out);

// The same with gelu's tanh form, x / 2 · (1 + tanh(√(2/π) (x + 0.044715 x³))) (Hendrycks & Gimpel, arXiv 1606.08415).
void GeluTanhMul(const Context& ctx, const float* gate_up, int64_t rows, int64_t width, ProductRows out);

// x[r][i] *= factor; x [rows][width].
void Scale(const Context& ctx, float factor, int64_t rows, int64_t width, float* x);

// x[r][i] = cap · tanh(x[r][i] / cap), in place; cap > 0. Of logits, as Gemma-2 has it (arXiv 2408.00118).
void SoftCapRows(const Context& ctx, float cap, int64_t rows, int64_t width, float* x);

// out[r] = table[ids[r]] as f32; table [vocab][width] of dtype. ids are ≥ 0 (CHECKed on the CPU).
// Rows of ids outside [vocab_begin, vocab_begin + vocab) give zeros (vocabulary-parallel embedding). Also takes rows of f32
// by their numbers.
void Embed(const Context& ctx, const void* table, DType dtype, int64_t vocab_begin, int64_t vocab, const int32_t* ids,
           int64_t rows, int64_t width, float* out);

// Rotates the first rotary_dim channels of every head of x [rows][heads][head_dim] (row stride x_stride) in place, by the
// angle positions[r] * inv_freq[i] for pair i; cos and sin are multiplied by magnitude (yarn). inv_freq [rotary_dim / 2].
// interleaved: pairs (2i, 2i + 1); else (i, i + rotary_dim / 2). Su et al., arXiv 2104.09864. Angles are computed in double.
struct RopeParams {
  float* x = nullptr;
  int64_t x_stride = 0;
  int64_t rows = 0;
  int heads = 0;
  int head_dim = 0;
  int rotary_dim = 0;
  bool interleaved = false;
  float magnitude = 1.0f;
  const int32_t* positions = nullptr;  // [rows]
  // One table of cos and sin per position, made once a step by RopeTable and shared by q, k and all layers:
  const float* cos_sin = nullptr;      // [rows][2][rotary_dim / 2]
};
// cos_sin[r] from positions[r] and inv_freq (one row per distinct frequency set; see RopeParams). out [rows][2][half].
void RopeTable(const Context& ctx, const int32_t* positions, int64_t rows, const float* inv_freq, int half, float magnitude,
               float* out);
void Rope(const Context& ctx, const RopeParams& params);  // on the CPU; a GPU rotates as it appends (kv_append.h)
// The same of rows that stay as they are: x becomes `from` rotated. from: as x, with a row stride of its own.
void RopeCopy(const Context& ctx, const float* from, int64_t from_stride, const RopeParams& params);

}  // namespace quire

// The CPU's side of the operations that kernels/dispatch chooses for. What each does is said where quire:: declares it.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/attention_mass.h"
#include "kernels/attention_prefill.h"
#include "kernels/elementwise.h"
#include "kernels/kv_append.h"
#include "kernels/linear.h"
#include "kernels/page_ops.h"
#include "kernels/top_candidates.h"

namespace quire::cpu {

void RmsNorm(const Context& ctx, const float* x, const float* weight, float eps, int64_t rows, int64_t width, float* out);
void AddRmsNorm(const Context& ctx, const float* x, float* residual, const float* weight, float eps, int64_t rows,
                int64_t width, float* out);
void Add(const Context& ctx, const float* x, int64_t rows, int64_t width, float* y);
void HeadRmsNorm(const Context& ctx, float* x, int64_t x_stride, const float* weight, float eps, int64_t rows, int heads,
                 int head_dim);
void SiluMul(const Context& ctx, const float* gate_up, int64_t rows, int64_t width, float* out);
void GeluTanhMul(const Context& ctx, const float* gate_up, int64_t rows, int64_t width, float* out);
void Scale(const Context& ctx, float factor, int64_t rows, int64_t width, float* x);
void SoftCapRows(const Context& ctx, float cap, int64_t rows, int64_t width, float* x);
void Embed(const Context& ctx, const void* table, DType dtype, int64_t vocab_begin, int64_t vocab, const int32_t* ids,
           int64_t rows, int64_t width, float* out);
void RopeTable(const Context& ctx, const int32_t* positions, int64_t rows, const float* inv_freq, int half, float magnitude,
               float* out);
void Linear(const Context& ctx, const float* x, int64_t x_stride, int64_t m, const Weight& weight, const float* bias,
            float* out, int64_t out_stride, bool accumulate);
size_t AttentionPrefillWorkspace(const Context& ctx, const AttentionPrefillParams& params);
size_t PrefillMassWorkspace(const Context& ctx, const PrefillMassParams& params);
void KvAppend(const Context& ctx, const KvAppendParams& params);
void RunPageOps(const Context& ctx, const LayersOfPages& layers, std::span<const PageOp> ops,
                std::span<const int32_t> listed);
void TopCandidates(const Context& ctx, const TopCandidatesParams& params);
void GatherLogits(const Context& ctx, const GatherLogitsParams& params);

}  // namespace quire::cpu

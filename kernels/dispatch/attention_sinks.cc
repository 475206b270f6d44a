// Two calls of decode attention, and a merge by their log-sum-exps.
#include <algorithm>
#include <cmath>

#include "core/base/check.h"
#include "kernels/attention_decode_sinks.h"
#include "kernels/cuda/sinks.h"
#include "kernels/dispatch/dispatch.h"

namespace quire {
namespace {

struct Workspace {
  Workspace(const AttentionSinksParams& p, void* memory) : base(static_cast<char*>(memory)) {
    const int64_t rows = p.decode.rows, heads = p.decode.q_heads;
    lengths = Take<int32_t>(rows);
    out = Take<float>(rows * heads * p.decode.table.format.v_dim);
    lse = Take<float>(rows * heads);
    window_lse = Take<float>(rows * heads);
    kernel = Take<char>(0);
  }
  template <typename T>
  T* Take(int64_t count) {
    T* at = base == nullptr ? nullptr : reinterpret_cast<T*>(base + bytes);
    bytes += (sizeof(T) * static_cast<size_t>(count) + 63) / 64 * 64;
    return at;
  }
  char* base;
  size_t bytes = 0;
  int32_t* lengths;   // [rows] of the sinks
  float* out;         // [rows][q_heads][v_dim] over the sinks
  float* lse;         // [rows][q_heads] of the sinks
  float* window_lse;  // [rows][q_heads]
  void* kernel;
};

AttentionDecodeParams SinksPart(const AttentionSinksParams& p, const Workspace& w) {
  AttentionDecodeParams part = p.decode;
  part.q = p.q_sinks;
  part.q_stride = p.q_sinks_stride;
  part.out = w.out;
  part.out_stride = int64_t{p.decode.q_heads} * p.decode.table.format.v_dim;
  part.lse = w.lse;
  part.row_len = w.lengths;
  part.longest = p.sinks;
  return part;
}

void MergeOnCpu(const Context& ctx, const AttentionDecodeParams& d, const Workspace& w) {
  const int v_dim = d.table.format.v_dim;
  ctx.pool->ParallelFor(int64_t{d.rows} * d.q_heads, [&](int64_t i, int) {
    const float a = w.lse[i], b = w.window_lse[i];
    const float max = std::max(a, b);
    float* out = d.out + i / d.q_heads * d.out_stride + i % d.q_heads * v_dim;
    if (d.lse != nullptr) d.lse[i] = b;
    if (a == -INFINITY) return;  // no sinks: out is the window's
    const float weight_a = std::exp(a - max), weight_b = b == -INFINITY ? 0.0f : std::exp(b - max);
    const float sum = weight_a + weight_b;
    const float* sinks = w.out + i * v_dim;
    for (int c = 0; c < v_dim; ++c) out[c] = (weight_a * sinks[c] + weight_b * out[c]) / sum;
    if (d.lse != nullptr) d.lse[i] = max + std::log(sum);
  });
}

}  // namespace

size_t AttentionSinksWorkspace(const Context& ctx, const AttentionSinksParams& p) {
  const Workspace w(p, nullptr);
  // On the CPU the rows' own lengths are more than the sinks' and the window's.
  return w.bytes + DispatchValue(
                       ctx, [&] { return AttentionDecodeWorkspace(p.decode); },
                       [&] {
                         return std::max(AttentionDecodeWorkspace(ctx, SinksPart(p, w)),
                                         AttentionDecodeWorkspace(ctx, p.decode, {.window = p.window}));
                       });
}

void AttentionDecodeSinks(const Context& ctx, const AttentionSinksParams& p, void* workspace) {
  const AttentionDecodeParams& d = p.decode;
  CHECK(d.selection == nullptr && d.mass == nullptr);
  CHECK_GE(p.window, 1);
  const Workspace w(p, workspace);
  Dispatch(
      ctx,
      [&] {
        for (int row = 0; row < d.rows; ++row) CHECK_LE(int64_t{p.sinks} + p.window, int64_t{d.row_len[row]});
        std::fill_n(w.lengths, d.rows, p.sinks);
      },
      [&](Stream stream) { return cuda::SinkLengths(stream, p.sinks, d.rows, w.lengths); });
  AttentionDecode(ctx, SinksPart(p, w), w.kernel, {.softcap = p.softcap});
  AttentionDecodeParams window = d;
  window.lse = w.window_lse;
  AttentionDecode(ctx, window, w.kernel, {p.softcap, p.window});
  Dispatch(
      ctx, [&] { MergeOnCpu(ctx, d, w); },
      [&](Stream stream) {
        return cuda::MergeSinks(stream, {.sinks = w.out,
                                         .sinks_lse = w.lse,
                                         .window_lse = w.window_lse,
                                         .out = d.out,
                                         .out_stride = d.out_stride,
                                         .lse = d.lse,
                                         .rows = d.rows,
                                         .q_heads = d.q_heads,
                                         .v_dim = d.table.format.v_dim});
      });
}

}  // namespace quire

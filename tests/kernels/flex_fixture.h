// Calls of the CPU's kernels with a Mod, compiled for the static target through kernels/flex_attention.h as a user of the
// installed headers would, and the same by the full matrix of scores. Include before other headers of Highway.
#pragma once

#include "kernels/flex_attention.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/kernels/decode_call.h"
#include "tests/kernels/full_attention.h"
#include "tests/kernels/prefill_call.h"

namespace quire::testing {

struct FlexTest : ::testing::Test {
  FlexTest() { ctx.pool = &pool; }

  template <class Mod>
  void Decode(DecodeCall& call, const Mod& mod) {
    AttentionDecodeParams p = call.Params();
    auto workspace = Buffer::Create(AttentionDecodeWorkspace(p));
    ASSERT_TRUE(workspace.ok());
    FlexDecode(ctx, p, mod, workspace->data());
  }
  template <class Mod>
  void Prefill(PrefillCall& call, const Mod& mod) {
    AttentionPrefillParams p = call.Params();
    auto workspace = Buffer::Create(AttentionPrefillWorkspace(ctx, p));
    ASSERT_TRUE(workspace.ok());
    FlexPrefill(ctx, p, mod, workspace->data());
  }

  ThreadPool pool{2};
  Context ctx;
};

template <class Mod>
void DecodeByMatrix(const PagedCache& cache, DecodeCall& call, const Mod& mod) {
  const AttentionDecodeParams p = call.Params();
  for (int row = 0; row < p.rows; ++row) {
    const int64_t len = p.row_len[row];
    FullAttention(cache.table(), cache.pages(), p.row_seq[row], static_cast<int>(len), {len - 1}, {len},
                  p.q + row * p.q_stride, p.q_stride, p.q_heads, double{p.scale}, mod, p.out + row * p.out_stride,
                  p.out_stride, p.lse + int64_t{row} * p.q_heads);
  }
}

template <class Mod>
void PrefillByMatrix(const PagedCache& cache, PrefillCall& call, const Mod& mod) {
  const AttentionPrefillParams p = call.Params();
  for (const PrefillChunk& c : call.chunks) {
    std::vector<int64_t> positions, ends;
    for (int i = 0; i < c.rows; ++i) {
      positions.push_back(c.start_pos + i);
      ends.push_back(Mod::kSeesFuture ? c.start_pos + c.rows : c.start_pos + i + 1);
    }
    FullAttention(cache.table(), cache.pages(), c.seq, c.start_pos + c.rows, positions, ends,
                  p.q + c.first_row * p.q_stride, p.q_stride, p.q_heads, double{p.scale}, mod,
                  p.out + c.first_row * p.out_stride, p.out_stride, p.lse + int64_t{c.first_row} * p.q_heads);
  }
}

// What the shipped functors point to, for up to 4 sequences of up to 400 tokens and 16 heads.
struct Tables {
  Tables() {
    for (int h = 0; h < 16; ++h) slopes.push_back(AlibiSlope(h, 16));
    bias = RandomFloats(16 * 81, 5);
    for (int s = 0; s < 4; ++s) {
      begin.push_back(400 * s);
      for (int i = 0; i < 400; ++i) document.push_back((i + 7 * s) / (60 + 11 * s));
    }
  }
  Alibi alibi() const { return {slopes.data()}; }
  RelativeBias relative() const { return {bias.data(), 40}; }
  PrefixLmMask prefix_lm() const { return {prefix.data()}; }
  DocumentMask documents() const { return {document.data(), begin.data()}; }

  std::vector<float> slopes, bias;
  std::vector<int32_t> prefix{130, 33, 0, 400}, document;
  std::vector<int64_t> begin;
};

struct Shape {
  DType dtype;
  int page_size, q_heads, kv_heads, dim;
};
inline const Shape kShapes[] = {
    {DType::kF32, 16, 4, 4, 32}, {DType::kBF16, 3, 6, 2, 40}, {DType::kF16, 7, 8, 1, 64},  {DType::kBF16, 16, 9, 3, 64},
    {DType::kF32, 1, 2, 1, 8},   {DType::kF16, 64, 4, 2, 48}, {DType::kBF16, 100, 3, 3, 16}, {DType::kBF16, 32, 8, 2, 80},
};
inline const std::vector<int> kLengths{150, 70, 1, 93};

}  // namespace quire::testing

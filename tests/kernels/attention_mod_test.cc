// The kernels' Mod seam: functors other than the identity, compiled here for the static target from the -inl headers, as a
// user of the installed headers would.
#include <gtest/gtest.h>

#include "core/base/check.h"
#include "kernels/reference/attention.h"
#include "tests/kernels/paged_cache.h"

#define HWY_COMPILE_ONLY_STATIC
#include "kernels/cpu/simd.h"

#include "hwy/highway.h"
#include "kernels/cpu/attention_decode-inl.h"
#include "kernels/cpu/attention_prefill-inl.h"

namespace quire {
namespace {

using testing::PagedCache;
using testing::RandomFloats;
using testing::RelativeError;

// ALiBi's bias per head, a soft cap, and a mask of every third key beside the causal one.
struct TestMod {
  static constexpr bool kIsIdentity = false;
  float Score(float score, int seq, int head, int64_t q_idx, int64_t kv_idx) const {
    return 4.0f * std::tanh(score / 4.0f) - 0.01f * static_cast<float>(head + 1 + seq) * static_cast<float>(q_idx - kv_idx);
  }
  bool Mask(int, int head, int64_t, int64_t kv_idx) const { return (kv_idx + head) % 3 != 0; }
};

// A row whose every key is masked.
struct NothingMod : TestMod {
  bool Mask(int, int, int64_t, int64_t) const { return false; }
};

TEST(AttentionMod, ScoreAndMaskFunctorsAgreeWithTheReference) {
  ThreadPool pool(2);
  Context ctx;
  ctx.pool = &pool;
  const int d = 32, q_heads = 6;
  PagedCache cache(DType::kBF16, 16, 2, d, d, {300, 70}, 1);
  cache.Fill(ctx);
  const std::vector<int32_t> seq{0, 1}, len{300, 70};
  const std::vector<PrefillChunk> chunks{{0, 0, 40, 260}, {1, 40, 60, 10}};
  const std::vector<float> q = RandomFloats(100 * q_heads * d, 2);
  std::vector<float> out(q.size()), expected(q.size());
  AttentionDecodeParams p;
  p.q = q.data();
  p.q_stride = p.out_stride = q_heads * d;
  p.rows = 2;
  p.q_heads = q_heads;
  p.row_seq = seq.data();
  p.row_len = len.data();
  p.pages = cache.pages();
  p.table = cache.table();
  p.scale = 0.2f;
  auto workspace = Buffer::Create(AttentionDecodeWorkspace(p));
  ASSERT_TRUE(workspace.ok());
  p.out = out.data();
  HWY_STATIC_DISPATCH(decode::Decode)(ctx, p, TestMod{}, workspace->data());
  p.out = expected.data();
  reference::AttentionDecode(p, TestMod{});
  EXPECT_LE(RelativeError(out, expected), 3e-6);
  p.out = out.data();
  HWY_STATIC_DISPATCH(decode::Decode)(ctx, p, NothingMod{}, workspace->data());
  for (size_t i = 0; i < 2 * static_cast<size_t>(p.q_stride); ++i) ASSERT_EQ(out[i], 0.0f);

  AttentionPrefillParams f;
  f.q = q.data();
  f.q_stride = f.out_stride = q_heads * d;
  f.q_heads = q_heads;
  f.chunks = chunks.data();
  f.num_chunks = 2;
  f.pages = cache.pages();
  f.table = cache.table();
  f.scale = 0.2f;
  auto scratch = Buffer::Create(AttentionPrefillWorkspace(ctx, f));
  ASSERT_TRUE(scratch.ok());
  f.out = out.data();
  HWY_STATIC_DISPATCH(prefill::Prefill)(ctx, f, TestMod{}, scratch->data());
  f.out = expected.data();
  reference::AttentionPrefill(f, TestMod{});
  EXPECT_LE(RelativeError(out, expected), 3e-6);
  f.out = out.data();
  HWY_STATIC_DISPATCH(prefill::Prefill)(ctx, f, NothingMod{}, scratch->data());
  for (const float x : out) ASSERT_EQ(x, 0.0f);
}

}  // namespace
}  // namespace quire

// Streaming: which pages and tokens a row sees, the kernel against the reference, and that it is what a model sees
// whose cache holds the kept tokens alone, at positions 0, 1, 2, ….
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/attention_decode_sinks.h"
#include "kernels/elementwise.h"
#include "kernels/reference/attention_sinks.h"
#include "tests/kernels/decode_call.h"
#include "tests/kernels/pairwise.h"
#include "tests/kernels/selecting.h"

namespace quire {
namespace {

using namespace quire::testing;  // NOLINT: this file tests nothing else

TEST(Streaming, KeepsTheFirstTokensAndTheLatest) {
  const auto policy = Make("streaming:token_budget=40:dense_layers=1", 16);
  EXPECT_TRUE(policy->IsDense(40, 5, 16));
  EXPECT_FALSE(policy->IsDense(41, 5, 16));
  EXPECT_TRUE(policy->IsDense(41, 0, 16));
  for (const int length : {41, 52, 53, 68, 69, 300}) {
    const SinkWindow w = policy->WindowAt(length);
    EXPECT_EQ(w.sinks, 4);
    EXPECT_EQ(w.window, 36);
    EXPECT_EQ(w.shift, length - 40);
  }
  const auto list = [&](int length) {
    PagedCache cache(DType::kF32, 16, 2, 4, 4, {length}, 1);
    Step step(cache, 2, {0}, {length}, 2);
    const Selected s = Select(*policy, step.p, 1);
    EXPECT_EQ(s.List(0), s.List(1));
    return s.List(0);
  };
  EXPECT_EQ(list(41), (std::vector<int32_t>{0, 1, 2}));  // the window begins at 5, in the sinks' own page
  EXPECT_EQ(list(51), (std::vector<int32_t>{0, 1, 2, 3}));
  EXPECT_EQ(list(52), (std::vector<int32_t>{0, 1, 2, 3}));
  EXPECT_EQ(list(68), (std::vector<int32_t>{0, 2, 3, 4}));
  EXPECT_EQ(list(160), (std::vector<int32_t>{0, 7, 8, 9}));
  const auto no_sinks = Make("streaming:token_budget=32:sink_tokens=0", 16);
  PagedCache cache(DType::kF32, 16, 1, 4, 4, {100}, 1);
  Step step(cache, 1, {0}, {100}, 2);
  EXPECT_EQ(Select(*no_sinks, step.p, 1).List(0), (std::vector<int32_t>{4, 5, 6}));
}

struct SinksCall : DecodeCall {
  SinksCall(const PagedCache& cache, int q_heads, std::vector<int32_t> row_seq, std::vector<int32_t> row_len,
            int sinks_, int window_, uint64_t seed)
      : DecodeCall(cache, q_heads, std::move(row_seq), std::move(row_len), seed, 3, 5) {
    q_sinks = RandomFloats(seq.size() * static_cast<size_t>(q_heads * cache.table().format.k_dim + 7), seed + 1);
    sinks = sinks_;
    window = window_;
  }
  AttentionSinksParams SinksParams() {
    const int64_t stride = static_cast<int64_t>(q_sinks.size() / seq.size());
    return {.decode = Params(),
            .q_sinks = q_sinks.data(),
            .q_sinks_stride = stride,
            .softcap = softcap,
            .sinks = sinks,
            .window = window};
  }
  void Run(int threads) {
    ThreadPool pool(threads);
    Context ctx;
    ctx.pool = &pool;
    const AttentionSinksParams params = SinksParams();
    auto workspace = Buffer::Create(AttentionSinksWorkspace(ctx, params));
    ASSERT_TRUE(workspace.ok());
    std::memset(workspace->data(), 0xff, workspace->size());
    AttentionDecodeSinks(ctx, params, workspace->data());
  }
  std::vector<float> q_sinks;
  int sinks = 0, window = 1;
  float softcap = 0;
};

void RunCase(DType dtype, int n, int page_size, int dim, int q_heads, int kv_heads, int sinks, int window,
             uint64_t seed) {
  SCOPED_TRACE(::testing::Message() << "n " << n << " page " << page_size << " d " << dim << " heads " << q_heads << "/"
                                    << kv_heads << " sinks " << sinks << " window " << window << " "
                                    << DTypeName(dtype));
  const int least = sinks + window;
  PagedCache cache(dtype, page_size, kv_heads, dim, dim, {n, least, least + 9}, seed);
  cache.Fill(TwoThreads());
  SinksCall call(cache, q_heads, {0, 1, 2}, {n, least, least + 9}, sinks, window, seed + 1);
  call.softcap = seed % 3 == 0 ? 0.7f : 0;
  reference::AttentionDecodeSinks(call.SinksParams());
  const SinksCall expected = call;
  // What lies between is never read: pages wholly between may be gone.
  for (int page = (sinks + page_size - 1) / page_size; (page + 1) * page_size <= n - window; ++page) {
    cache.PoisonPage(cache.PageId(0, page));
  }
  call.Run(2);
  EXPECT_LE(RelativeError(call.out, expected.out), 1e-5);
  EXPECT_LE(RelativeError(call.lse, expected.lse), 1e-5);
  const std::vector<float> out = call.out;
  call.Run(1);
  EXPECT_TRUE(SameBits(call.out, out));
  SinksCall alone(cache, q_heads, {2}, {least + 9}, sinks, window, seed + 1);
  const auto row_of = [](const std::vector<float>& all, size_t rows, size_t row) {
    const auto begin = all.begin() + static_cast<int64_t>(all.size() / rows * row);
    return std::vector<float>(begin, begin + static_cast<int64_t>(all.size() / rows));
  };
  alone.softcap = call.softcap;
  alone.q = row_of(call.q, 3, 2);
  alone.q_sinks = row_of(call.q_sinks, 3, 2);
  alone.Run(2);
  EXPECT_TRUE(SameBits(alone.out, row_of(out, 3, 2)));
}

void RunGrid(const std::vector<int>& lengths) {
  const std::vector<int> pages{1, 3, 7, 16, 32, 64}, dims{64, 80, 96, 128, 256}, sinks{0, 1, 4, 16, 33},
      windows{1, 12, 60, 200};
  const std::vector<std::pair<int, int>> heads{{32, 32}, {32, 8}, {9, 3}, {8, 1}};
  const std::vector<DType> dtypes{DType::kF32, DType::kBF16, DType::kF16};
  uint64_t seed = 1;
  for (const std::vector<int>& r : AllPairs({static_cast<int>(lengths.size()), 6, 5, 4, 5, 4, 3})) {
    const auto at = [&](const auto& values, size_t i) { return values[static_cast<size_t>(r[i])]; };
    const int least = at(sinks, 4) + at(windows, 5);
    RunCase(at(dtypes, 6), std::max(at(lengths, 0), least + 1), at(pages, 1), at(dims, 2), at(heads, 3).first,
            at(heads, 3).second, at(sinks, 4), at(windows, 5), seed++);
  }
}

TEST(AttentionDecodeSinks, AgreesWithTheReferenceOnShortLengths) { RunGrid({17, 300}); }
TEST(SlowAttentionDecodeSinks, AgreesWithTheReferenceOnTheWholeGrid) { RunGrid({63, 1110, 4099, 8192, 28837}); }

// Tokens of a long sequence, rotated for their places there, and the same tokens as a short sequence of those that are
// kept: dense attention to the latter is streaming attention to the former.
TEST(AttentionDecodeSinks, IsDenseAttentionOverACacheOfWhatIsKept) {
  constexpr int kDim = 64, kLength = 900, kSinks = 4, kWindow = 60, kKept = kSinks + kWindow, kHeads = 4;
  const auto policy = Make("streaming:token_budget=" + std::to_string(kKept), 16);
  const std::vector<float> key = RandomFloats(kLength * kDim, 1), value = RandomFloats(kLength * kDim, 2);
  const std::vector<float> query = RandomFloats(kHeads * kDim, 3);
  std::vector<float> inv_freq;
  for (int i = 0; i < kDim / 2; ++i) inv_freq.push_back(std::pow(10000.0f, -2.0f * i / kDim));
  const Context ctx = TwoThreads();
  const auto rotate = [&](std::vector<float> x, int heads, const std::vector<int32_t>& positions) {
    std::vector<float> table(positions.size() * kDim);
    RopeTable(ctx, positions.data(), static_cast<int64_t>(positions.size()), inv_freq.data(), kDim / 2, 1.0f,
              table.data());
    Rope(ctx, {.x = x.data(),
               .x_stride = heads * kDim,
               .rows = static_cast<int64_t>(positions.size()),
               .heads = heads,
               .head_dim = kDim,
               .rotary_dim = kDim,
               .positions = positions.data(),
               .cos_sin = table.data()});
    return x;
  };
  // A cache of the given tokens, token i rotated for position i.
  const auto fill = [&](PagedCache& cache, const std::vector<int>& tokens) {
    std::vector<float> k, v;
    std::vector<int32_t> seq(tokens.size(), 0), pos(tokens.size());
    std::iota(pos.begin(), pos.end(), 0);
    for (const int t : tokens) {
      k.insert(k.end(), key.begin() + t * kDim, key.begin() + (t + 1) * kDim);
      v.insert(v.end(), value.begin() + t * kDim, value.begin() + (t + 1) * kDim);
    }
    k = rotate(k, 1, pos);
    for (int page = 0; page < cache.Pages(0); ++page)
      ZeroPage(cache.pages(), cache.table().format, cache.PageId(0, page));
    KvAppend(ctx, {.pages = cache.pages(),
                   .table = cache.table(),
                   .k = k.data(),
                   .k_stride = kDim,
                   .v = v.data(),
                   .v_stride = kDim,
                   .row_seq = seq.data(),
                   .row_pos = pos.data(),
                   .rows = static_cast<int64_t>(tokens.size())});
  };
  std::vector<int> all(kLength), kept;
  std::iota(all.begin(), all.end(), 0);
  for (const int t : all) {
    if (t < kSinks || t >= kLength - kWindow) kept.push_back(t);
  }
  PagedCache small(DType::kF32, 16, 1, kDim, kDim, {kKept}, 4), large(DType::kF32, 16, 1, kDim, kDim, {kLength}, 5);
  fill(small, kept);
  fill(large, all);

  DecodeCall dense(small, kHeads, {0}, {kKept}, 1);
  dense.q = rotate(query, kHeads, {kKept - 1});
  dense.RunReference();
  SinksCall streaming(large, kHeads, {0}, {kLength}, kSinks, kWindow, 1);
  streaming.p.q_stride = kHeads * kDim;
  streaming.p.out_stride = kHeads * kDim;
  streaming.out.resize(kHeads * kDim);
  streaming.q = rotate(query, kHeads, {kLength - 1});
  streaming.q_sinks = rotate(streaming.q, kHeads, {static_cast<int32_t>(-policy->WindowAt(kLength).shift)});
  streaming.Run(2);
  EXPECT_LE(RelativeError(streaming.out, dense.out), 1e-4);
  // Queries that are not turned see something else.
  streaming.q_sinks = streaming.q;
  streaming.Run(2);
  EXPECT_GT(RelativeError(streaming.out, dense.out), 1e-2);
}

}  // namespace
}  // namespace quire

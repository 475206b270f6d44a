// Prefill attention against the reference, and the identities of chunking: however a prompt is cut, whatever rows share a
// tile and however many threads run, a row's bits stay.
#include "kernels/attention_prefill.h"

#include <gtest/gtest.h>

#include "tests/kernels/pairwise.h"
#include "tests/kernels/prefill_call.h"

namespace quire {
namespace {

using testing::PagedCache;
using testing::RandomFloats;
using testing::RelativeError;
using testing::SameBits;

Context OneThread() {
  static ThreadPool pool(1);
  Context ctx;
  ctx.pool = &pool;
  return ctx;
}

struct Prefill : testing::PrefillCall {
  using PrefillCall::PrefillCall;
  void Run(int threads) {
    ThreadPool pool(threads);
    Context ctx;
    ctx.pool = &pool;
    const AttentionPrefillParams params = Params();
    auto workspace = Buffer::Create(AttentionPrefillWorkspace(ctx, params));
    ASSERT_TRUE(workspace.ok());
    std::memset(workspace->data(), 0xff, workspace->size());  // NaN, so that nothing relies on zeroes
    AttentionPrefill(ctx, params, workspace->data(), mod);
  }
  // Every chunk cut into pieces of the given lengths, over and over, one call a piece.
  void RunCut(const std::vector<int>& pieces, int threads) {
    const std::vector<PrefillChunk> whole = chunks;
    size_t next = 0;
    for (const PrefillChunk& c : whole) {
      for (int at = 0; at < c.rows;) {
        const int n = std::min(pieces[next++ % pieces.size()], c.rows - at);
        chunks = {{c.seq, c.first_row + at, n, c.start_pos + at}};
        Run(threads);
        at += n;
      }
    }
    chunks = whole;
  }
};

constexpr double kTolerance = 3e-6;

struct Case {
  int n, page_size, dim, q_heads, kv_heads, tail, window;
  DType dtype;
};

void RunCase(const Case& c, uint64_t seed) {
  SCOPED_TRACE(::testing::Message() << "n " << c.n << " page " << c.page_size << " d " << c.dim << " heads " << c.q_heads << "/"
                                    << c.kv_heads << " tail " << c.tail << " window " << c.window << " "
                                    << DTypeName(c.dtype) << " seed " << seed);
  PagedCache cache(c.dtype, c.page_size, c.kv_heads, c.dim, c.dim, {c.n, 20, 1}, seed);
  cache.Fill(OneThread());
  const int tail = c.tail == 0 ? c.n : std::min(c.n, c.tail);
  for (int s = 0; s < 3; ++s) {
    const int n = cache.lengths()[static_cast<size_t>(s)];
    for (int pos = n; pos < cache.Pages(s) * c.page_size; ++pos) cache.PoisonSlot(s, pos);
  }
  if (c.window > 0) {
    // The window has freed the pages that no queried row sees.
    for (int page = 0; (page + 1) * c.page_size <= c.n - tail - c.window + 1; ++page) cache.PageId(0, page) = -1;
  }
  Prefill call(cache, c.q_heads, {tail, 13, 1}, seed + 1);
  call.mod.window = c.window;
  call.RunReference();
  const Prefill expected = call;
  call.Run(2);
  EXPECT_LE(RelativeError(call.out, expected.out), kTolerance);
  EXPECT_LE(RelativeError(call.lse, expected.lse), kTolerance);
}

void RunGrid(const std::vector<int>& lengths) {
  const std::vector<int> pages{1, 3, 7, 16, 32, 64}, dims{64, 80, 96, 128, 256}, tails{0, 5, 40}, windows{0, 45, 200};
  const std::vector<std::pair<int, int>> heads{{32, 32}, {32, 8}, {9, 3}, {8, 1}};
  const std::vector<DType> dtypes{DType::kF32, DType::kBF16, DType::kF16};
  uint64_t seed = 100;
  for (const std::vector<int>& r : testing::AllPairs({static_cast<int>(lengths.size()), 6, 5, 4, 3, 3, 3})) {
    const auto at = [&](const auto& values, size_t i) { return values[static_cast<size_t>(r[i])]; };
    const int n = at(lengths, 0);
    // The reference walks n · tail pairs: whole prompts only while they are short.
    const int tail = n > 200 && at(tails, 4) == 0 ? 70 : at(tails, 4);
    RunCase({n, at(pages, 1), at(dims, 2), at(heads, 3).first, at(heads, 3).second, n > 2000 ? std::min(tail, 5) : tail,
             at(windows, 5), at(dtypes, 6)},
            seed++);
  }
}

TEST(AttentionPrefill, AgreesWithTheReferenceOnShortPrompts) {
  for (const int n : {1, 15, 64, 65}) {
    RunCase({n, 16, 64, 8, 2, 0, 0, DType::kBF16}, 1);
    RunCase({n, 7, 80, 3, 1, 0, 9, DType::kF16}, 2);
    RunCase({n, 3, 128, 2, 2, 0, 0, DType::kF32}, 3);
  }
  RunCase({300, 16, 96, 4, 1, 0, 0, DType::kBF16}, 4);
  RunCase({300, 5, 64, 4, 2, 90, 77, DType::kBF16}, 5);
  RunCase({1110, 64, 64, 9, 3, 7, 200, DType::kF16}, 6);
  RunCase({1110, 16, 256, 1, 1, 7, 0, DType::kBF16}, 7);
}
TEST(SlowAttentionPrefill, AgreesWithTheReferenceOnTheWholeGrid) {
  RunGrid({1, 15, 16, 17, 63, 127, 1110, 4099, 8192, 28837});
}

TEST(AttentionPrefill, TakesSmallAndOddWidthsAndLargeGroups) {
  for (const int dim : {2, 6, 8, 16, 18, 34}) {
    RunCase({131, 16, dim, 3, 1, 0, 0, DType::kBF16}, 20);
    RunCase({131, 5, dim, 4, 2, 50, 70, DType::kF32}, 21);
  }
  for (const int group : {5, 7, 16, 17, 40, 120}) RunCase({70, 16, 16, group, 1, 30, 0, DType::kBF16}, 22);
}

TEST(AttentionPrefill, BitsDependNeitherOnTheCutsNorThreadsNorPages) {
  for (const int window : {0, 100}) {
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      PagedCache cache(dtype, 16, 2, 64, 64, {400, 90}, 1);
      cache.Fill(OneThread());
      Prefill whole(cache, 6, {400, 90}, 2);
      whole.mod.window = window;
      whole.Run(1);
      const std::vector<std::vector<int>> cuts{{7}, {1}, {64}, {1, 100, 3, 33}, {1000}};
      for (const auto& cut : cuts) {
        Prefill pieces = whole;
        std::fill(pieces.out.begin(), pieces.out.end(), -7.0f);
        pieces.RunCut(cut, cut[0] == 1 ? 1 : 2);
        EXPECT_TRUE(SameBits(pieces.out, whole.out)) << cut[0];
        EXPECT_TRUE(SameBits(pieces.lse, whole.lse)) << cut[0];
      }
      Prefill again = whole;
      for (const int threads : {2, 3}) {
        again.Run(threads);
        EXPECT_TRUE(SameBits(again.out, whole.out));
      }
      cache.PermutePages();
      again.p.table = cache.table();
      again.Run(2);
      EXPECT_TRUE(SameBits(again.out, whole.out));
    }
  }
}

TEST(AttentionPrefill, LaterTokensInTheCacheDontShow) {
  // The same query rows over a cache that already holds what follows them.
  PagedCache cache(DType::kBF16, 16, 1, 64, 64, {300}, 1);
  cache.Fill(OneThread());
  Prefill call(cache, 4, {300}, 2);
  call.Run(1);
  Prefill early = call;
  early.chunks = {{0, 0, 130, 0}};
  std::fill(early.out.begin(), early.out.end(), -7.0f);
  early.Run(1);
  EXPECT_EQ(std::memcmp(early.out.data(), call.out.data(), 130 * 256 * sizeof(float)), 0);
  for (size_t i = 130 * 256; i < early.out.size(); ++i) ASSERT_EQ(early.out[i], -7.0f);
}

}  // namespace
}  // namespace quire

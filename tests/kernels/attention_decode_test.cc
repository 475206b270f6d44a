// Decode attention against the reference on ALGORITHMS.md's grid (all pairs of its factors), and the identities a sparse,
// batched, paged kernel must keep: everything outside the selection is NaN in every case here.
#include "kernels/attention_decode.h"

#include <gtest/gtest.h>

#include "kernels/cpu/amx.h"
#include "kernels/cpu/attention_decode_plan.h"
#include "tests/kernels/decode_call.h"
#include "tests/kernels/pairwise.h"

namespace quire {
namespace {

using testing::PagedCache;
using testing::RandomFloats;
using testing::RandomPages;
using testing::RelativeError;
using testing::SameBits;
using testing::Selection;

struct Decode : testing::DecodeCall {
  using DecodeCall::DecodeCall;
  void Run(int threads) {
    ThreadPool pool(threads);
    Context ctx;
    ctx.pool = &pool;
    const AttentionDecodeParams params = Params();
    auto workspace = Buffer::Create(AttentionDecodeWorkspace(params));
    ASSERT_TRUE(workspace.ok());
    std::memset(workspace->data(), 0xff, workspace->size());  // NaN, so that nothing relies on zeroes
    AttentionDecode(ctx, params, workspace->data(), mod);
  }
};

Context OneThread() {
  static ThreadPool pool(1);
  Context ctx;
  ctx.pool = &pool;
  return ctx;
}

// f32 arithmetic over the same rounded cache: the error is that of f32 sums, whatever the cache's dtype.
// Over AMX tiles f32 operands are split in two bf16 numbers, exact to 2^-17.
double Tolerance() { return HasAmx() ? 2e-5 : 3e-6; }

struct Case {
  int n, page_size, budget_pages, dim, q_heads, kv_heads, batch, window;
  DType dtype;
};

void RunCase(const Case& c, uint64_t seed) {
  SCOPED_TRACE(::testing::Message() << "n " << c.n << " page " << c.page_size << " budget " << c.budget_pages << " d " << c.dim
                                    << " heads " << c.q_heads << "/" << c.kv_heads << " batch " << c.batch << " window "
                                    << c.window << " " << DTypeName(c.dtype) << " seed " << seed);
  std::mt19937_64 random(seed);
  // batch 0: ragged, each row its own length; else one row of n tokens among short ones.
  const int rows = c.batch == 0 ? 5 : c.batch;
  std::vector<int> lengths(static_cast<size_t>(rows));
  std::vector<int32_t> seq, len;
  for (int r = 0; r < rows; ++r) {
    const int cap = std::min(c.n, 200);
    lengths[static_cast<size_t>(r)] = r == 0 ? c.n : c.batch == 0 ? static_cast<int>(random() % (cap + 1)) : cap;
    seq.push_back(r);
    len.push_back(lengths[static_cast<size_t>(r)]);
  }
  PagedCache cache(c.dtype, c.page_size, c.kv_heads, c.dim, c.dim, lengths, seed);
  cache.Fill(OneThread());
  Decode call(cache, c.q_heads, seq, len, seed + 1);
  call.mod.window = c.window;
  Selection selection(rows, c.kv_heads, std::max(1, std::max(c.budget_pages, cache.Pages(0))));
  std::vector<std::vector<char>> read(static_cast<size_t>(rows * c.kv_heads));
  for (int r = 0; r < rows; ++r) {
    for (int h = 0; h < c.kv_heads; ++h) {
      const size_t list = static_cast<size_t>(r * c.kv_heads + h);
      const int pages = cache.Pages(r);
      selection.Set(list, RandomPages(pages, c.budget_pages == 0 ? pages : c.budget_pages, random));
      for (int page = 0; page < pages; ++page) {
        const auto ids = selection.Get(list);
        if (!std::binary_search(ids.begin(), ids.end(), page)) cache.Poison(cache.PageId(r, page), h);
      }
    }
    for (int pos = len[static_cast<size_t>(r)]; pos < cache.Pages(r) * c.page_size; ++pos) cache.PoisonSlot(r, pos);
  }
  call.p.selection = c.budget_pages == 0 ? nullptr : &selection.view;
  call.mass.assign(static_cast<size_t>(rows * c.kv_heads * cache.Pages(0)), -7.0f);
  call.p.mass_pages = cache.Pages(0);
  call.RunReference();
  const Decode expected = call;
  call.Run(2);
  EXPECT_LE(RelativeError(call.out, expected.out), Tolerance());
  EXPECT_LE(RelativeError(call.lse, expected.lse), Tolerance());
  EXPECT_LE(RelativeError(call.mass, expected.mass), 1e-5);  // both sides add a page up in f32
  if (c.budget_pages == 0) {
    // A selection of all pages is dense, bit for bit; so is every thread count.
    const Decode dense = call;
    call.p.selection = &selection.view;
    call.Run(3);
    EXPECT_TRUE(SameBits(call.out, dense.out));
    EXPECT_TRUE(SameBits(call.lse, dense.lse));
    EXPECT_TRUE(SameBits(call.mass, dense.mass));
  }
}

void RunGrid(const std::vector<int>& lengths) {
  const std::vector<int> pages{1, 3, 7, 16, 32, 64}, budgets{1, 4, 16, 64, 0}, dims{64, 80, 96, 128, 256};
  const std::vector<std::pair<int, int>> heads{{32, 32}, {32, 8}, {9, 3}, {8, 1}};
  const std::vector<int> batches{1, 3, 17, 0}, windows{0, 45};
  const std::vector<DType> dtypes{DType::kF32, DType::kBF16, DType::kF16};
  const auto rows = testing::AllPairs({static_cast<int>(lengths.size()), 6, 5, 5, 4, 4, 3, 2});
  uint64_t seed = 1;
  for (const std::vector<int>& r : rows) {
    const auto at = [&](const auto& values, size_t i) { return values[static_cast<size_t>(r[i])]; };
    RunCase({at(lengths, 0), at(pages, 1), at(budgets, 2), at(dims, 3), at(heads, 4).first, at(heads, 4).second,
             at(batches, 5), at(windows, 7), at(dtypes, 6)},
            seed++);
  }
}

TEST(AttentionDecode, AgreesWithTheReferenceOnShortLengths) { RunGrid({1, 15, 16, 17, 63, 127}); }
TEST(SlowAttentionDecode, AgreesWithTheReferenceOnTheWholeGrid) {
  RunGrid({1, 15, 16, 17, 63, 127, 1110, 4099, 8192, 28837});
}

// The path over AMX tiles, whatever this processor has.
TEST(AttentionDecode, SoftwareTilesAgreeWithTheReference) {
  UseSoftwareTilesForTesting(true);
  uint64_t seed = 900;
  for (int n : {1, 31, 100, 700}) {
    for (int page_size : {16, 32, 64}) {
      for (const auto& [q_heads, kv_heads] : {std::pair{9, 3}, {8, 1}, {17, 1}}) {
        for (int budget : {0, 3}) {
          RunCase({n, page_size, budget, 64, q_heads, kv_heads, 2, n == 100 ? 40 : 0, DType::kBF16}, ++seed);
        }
      }
    }
  }
  UseSoftwareTilesForTesting(false);
}

TEST(AttentionDecode, LongRowsSplitIntoChunksAgreeWithTheReference) {
  RunCase({4099, 16, 0, 64, 4, 1, 1, 0, DType::kBF16}, 1);
  RunCase({4099, 16, 64, 128, 8, 2, 1, 0, DType::kBF16}, 2);
  RunCase({1110, 3, 0, 80, 9, 3, 3, 0, DType::kF16}, 3);
  RunCase({2000, 700, 0, 64, 4, 1, 1, 0, DType::kBF16}, 4);  // a page larger than a chunk
  RunCase({2000, 701, 2, 64, 20, 1, 1, 0, DType::kF32}, 5);
}

TEST(AttentionDecode, TakesSmallAndOddWidthsAndLargeGroups) {
  for (const int dim : {2, 6, 8, 16, 18, 34}) {
    RunCase({131, 16, 0, dim, 3, 1, 3, 0, DType::kBF16}, 20);
    RunCase({131, 5, 4, dim, 4, 2, 3, 0, DType::kF32}, 21);
  }
  for (const int group : {1, 2, 5, 6, 7, 12, 16, 17, 32, 40}) RunCase({300, 16, 3, 64, group, 1, 1, 0, DType::kBF16}, 22);
}

TEST(AttentionDecode, EmptySelectionAndEmptyRowGiveZeroAndMinusInfinity) {
  PagedCache cache(DType::kBF16, 16, 2, 64, 64, {40, 5}, 1);
  cache.Fill(OneThread());
  Decode call(cache, 4, {0, 1}, {40, 0}, 2);
  Selection selection(2, 2, 3);
  selection.Set(0, {1, 2});
  call.p.selection = &selection.view;
  call.Run(2);
  for (int head = 0; head < 8; ++head) {
    const bool read = head < 2;
    EXPECT_EQ(std::isfinite(call.lse[static_cast<size_t>(head)]), read);
    if (read) continue;
    EXPECT_EQ(call.lse[static_cast<size_t>(head)], -std::numeric_limits<float>::infinity());
    for (int c = 0; c < 64; ++c) EXPECT_EQ(call.out[static_cast<size_t>(head * 64 + c)], 0.0f);
  }
}

TEST(AttentionDecode, ChangingOneHeadsSetChangesThatHeadOnly) {
  PagedCache cache(DType::kBF16, 16, 3, 64, 64, {500}, 1);
  cache.Fill(OneThread());
  Decode call(cache, 9, {0}, {500}, 2);
  Selection selection(1, 3, 32);
  for (size_t h = 0; h < 3; ++h) selection.Set(h, {0, 5, 9, 31});
  call.p.selection = &selection.view;
  call.Run(2);
  const std::vector<float> before = call.out;
  selection.Set(1, {0, 6, 9, 31});
  call.Run(2);
  for (int head = 0; head < 9; ++head) {
    const bool same = std::memcmp(&before[static_cast<size_t>(head * 64)], &call.out[static_cast<size_t>(head * 64)], 256) == 0;
    EXPECT_EQ(same, head / 3 != 1) << head;
  }
}

TEST(AttentionDecode, BitsDependNeitherOnPagesNorThreadsNorBatchNorHeads) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    PagedCache cache(dtype, 16, 4, 64, 64, {1000, 333, 2050}, 1);
    cache.Fill(OneThread());
    Decode batch(cache, 16, {0, 1, 2, 1}, {1000, 333, 2050, 100}, 2);
    batch.Run(1);
    Decode again = batch;
    for (const int threads : {2, 3}) {
      again.Run(threads);
      EXPECT_TRUE(SameBits(again.out, batch.out));
      EXPECT_TRUE(SameBits(again.lse, batch.lse));
    }
    const size_t width = 16 * 64;
    for (size_t r = 0; r < 4; ++r) {
      Decode alone(cache, 16, {batch.seq[r]}, {batch.len[r]}, 9);
      std::copy(batch.q.begin() + static_cast<int64_t>(r * width), batch.q.begin() + static_cast<int64_t>((r + 1) * width),
                alone.q.begin());
      alone.Run(2);
      EXPECT_EQ(std::memcmp(alone.out.data(), &batch.out[r * width], width * 4), 0) << r;
    }
    cache.PermutePages();
    again.p.table = cache.table();
    again.Run(2);
    EXPECT_TRUE(SameBits(again.out, batch.out));
  }
}

TEST(AttentionDecode, FreedPagesOfAWindowAreNeverTouched) {
  PagedCache cache(DType::kF16, 16, 1, 64, 64, {200}, 1);
  cache.Fill(OneThread());
  Decode call(cache, 2, {0}, {200}, 2);
  call.mod.window = 70;
  call.RunReference();
  const Decode expected = call;
  for (int page = 0; page < 8; ++page) cache.PageId(0, page) = -1;  // positions 0 … 127; the window is 130 … 199
  call.Run(1);
  EXPECT_LE(RelativeError(call.out, expected.out), Tolerance());
  // Without a window the freed pages count as not there.
  call.mod.window = 0;
  call.RunReference();
  const Decode holes = call;
  call.Run(1);
  EXPECT_LE(RelativeError(call.out, holes.out), Tolerance());
}

TEST(AttentionDecode, SlotMaskAndSparqsCorrectionAgreeWithTheReference) {
  testing::ExpectSlotMaskAndSparqsCorrection<Decode>(OneThread(), Tolerance());
}

TEST(AttentionDecode, NanInAReadPageShows) {
  PagedCache cache(DType::kBF16, 16, 1, 64, 64, {600}, 1);
  cache.Fill(OneThread());
  cache.PoisonSlot(0, 300);
  Decode call(cache, 1, {0}, {600}, 2);
  call.Run(1);
  EXPECT_TRUE(std::isnan(call.out[0]));
}

TEST(DecodePlan, ChunksDependOnListedPagesAlone) {
  const auto plan_of = [](int kv_heads, int group) {
    AttentionDecodeParams p;
    p.table.format = *PageFormat::Create(DType::kBF16, 16, kv_heads, 128, 128);
    p.q_heads = kv_heads * group;
    return DecodePlan::Create(p);
  };
  const DecodePlan plan = plan_of(8, 4);
  EXPECT_EQ(plan.chunk_pages, 16);
  EXPECT_EQ(plan.Chunks(0), 0);
  EXPECT_EQ(plan.Chunks(128), 8);
  EXPECT_EQ(plan.Chunks(129), 9);
  EXPECT_TRUE(plan.ScoresOnStack());
  for (const int kv_heads : {1, 2, 8}) EXPECT_EQ(plan_of(kv_heads, 8).chunk_pages, plan.chunk_pages);
}

}  // namespace
}  // namespace quire

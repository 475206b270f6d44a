// The mass that rows of a prompt give to pages, against the reference; and that a row's bits depend on the row alone.
#include "kernels/attention_mass.h"

#include <gtest/gtest.h>

#include "kernels/reference/attention_mass.h"
#include "tests/kernels/pairwise.h"
#include "tests/kernels/prefill_call.h"

namespace quire {
namespace {

using namespace quire::testing;  // NOLINT: this file tests nothing else

// The last rows of sequence 0, with the log-sum-exps that prefill attention gives.
struct MassCall {
  MassCall(const PagedCache& cache, int q_heads, int tail, uint64_t seed) : prefill(cache, q_heads, {tail}, seed, 3) {
    ThreadPool pool(2);
    Context ctx;
    ctx.pool = &pool;
    const AttentionPrefillParams params = prefill.Params();
    auto workspace = Buffer::Create(AttentionPrefillWorkspace(ctx, params));
    EXPECT_TRUE(workspace.ok());
    AttentionPrefill(ctx, params, workspace->data());
  }
  PrefillMassParams Params(std::vector<float>* mass, int64_t spare_pages = 0, bool by_token = false) {
    PrefillMassParams p;
    p.q = prefill.q.data();
    p.q_stride = prefill.p.q_stride;
    p.lse = prefill.lse.data();
    p.q_heads = prefill.p.q_heads;
    p.chunk = prefill.chunks[0];
    p.pages = prefill.p.pages;
    p.table = prefill.p.table;
    p.scale = prefill.p.scale;
    p.by_token = by_token;
    const int unit = by_token ? 1 : p.table.format.page_size;
    p.mass_pages = (p.chunk.start_pos + p.chunk.rows + unit - 1) / unit;
    p.mass_pages += spare_pages;
    mass->assign(static_cast<size_t>(p.chunk.rows * p.table.format.kv_heads * p.mass_pages), -7.0f);
    p.mass = mass->data();
    return p;
  }
  static void Run(const PrefillMassParams& p, int threads) {
    ThreadPool pool(threads);
    Context ctx;
    ctx.pool = &pool;
    auto workspace = Buffer::Create(PrefillMassWorkspace(ctx, p));
    ASSERT_TRUE(workspace.ok());
    std::memset(workspace->data(), 0xff, workspace->size());
    PrefillMass(ctx, p, workspace->data());
  }
  PrefillCall prefill;
};

Context OneThread() {
  static ThreadPool pool(1);
  Context ctx;
  ctx.pool = &pool;
  return ctx;
}

void RunCase(DType dtype, int n, int page_size, int dim, int q_heads, int kv_heads, int tail, uint64_t seed) {
  SCOPED_TRACE(::testing::Message() << "n " << n << " page " << page_size << " d " << dim << " heads " << q_heads << "/"
                                    << kv_heads << " tail " << tail << " " << DTypeName(dtype) << " seed " << seed);
  PagedCache cache(dtype, page_size, kv_heads, dim, dim, {n}, seed);
  cache.Fill(OneThread());
  for (int pos = n; pos < cache.Pages(0) * page_size; ++pos) cache.PoisonSlot(0, pos);
  MassCall call(cache, q_heads, std::min(n, tail), seed + 1);
  std::vector<float> mass, expected;
  MassCall::Run(call.Params(&mass, 2), 2);
  reference::PrefillMass(call.Params(&expected, 2), PlainMod{});
  EXPECT_LE(RelativeError(mass, expected), 1e-5);
  std::vector<float> by_token, expected_by_token;
  MassCall::Run(call.Params(&by_token, 2, true), 2);
  reference::PrefillMass(call.Params(&expected_by_token, 2, true), PlainMod{});
  EXPECT_EQ(by_token.size(), expected_by_token.size());
  EXPECT_LE(RelativeError(by_token, expected_by_token), 1e-5);
  const int64_t pages = call.Params(&expected, 2).mass_pages;
  const int rows = call.prefill.rows;
  for (int row = 0; row < rows; ++row) {
    for (int head = 0; head < kv_heads; ++head) {
      const float* m = mass.data() + (int64_t{row} * kv_heads + head) * pages;
      double sum = 0;
      for (int64_t page = 0; page < pages; ++page) sum += m[page];
      ASSERT_NEAR(sum, q_heads / kv_heads, 1e-4 * q_heads);  // a weight of 1 each head
      for (int64_t page = (n - rows + row) / page_size + 1; page < pages; ++page) ASSERT_EQ(m[page], 0.0f);
    }
  }
}

void RunGrid(const std::vector<int>& lengths) {
  const std::vector<int> pages{1, 3, 7, 16, 32, 64, 300}, dims{64, 80, 96, 128, 256}, tails{1, 5, 40};
  const std::vector<std::pair<int, int>> heads{{32, 32}, {32, 8}, {9, 3}, {8, 1}};
  const std::vector<DType> dtypes{DType::kF32, DType::kBF16, DType::kF16};
  uint64_t seed = 1;
  for (const std::vector<int>& r : AllPairs({static_cast<int>(lengths.size()), 7, 5, 4, 3, 3})) {
    const auto at = [&](const auto& values, size_t i) { return values[static_cast<size_t>(r[i])]; };
    const int n = at(lengths, 0);
    RunCase(at(dtypes, 5), n, at(pages, 1), at(dims, 2), at(heads, 3).first, at(heads, 3).second,
            n > 2000 ? std::min(4, at(tails, 4)) : at(tails, 4), seed++);
  }
}

TEST(PrefillMass, AgreesWithTheReferenceOnShortPrompts) {
  RunGrid({1, 17, 300});
  RunCase(DType::kBF16, 200, 16, 64, 4, 2, 200, 91);   // a whole prompt
  RunCase(DType::kF32, 70, 5, 18, 120, 1, 70, 92);     // a group larger than a tile
  RunCase(DType::kBF16, 1500, 700, 16, 4, 2, 30, 93);  // a page of several runs
}
TEST(SlowPrefillMass, AgreesWithTheReferenceOnTheWholeGrid) {
  RunGrid({1, 15, 16, 17, 63, 127, 1110, 4099, 8192, 28837});
}

TEST(PrefillMass, BitsDependNeitherOnTheCutsNorThreadsNorPages) {
  for (const int page_size : {3, 16, 300}) {
    PagedCache cache(DType::kBF16, page_size, 2, 64, 64, {700}, 1);
    cache.Fill(OneThread());
    MassCall call(cache, 6, 500, 2);
    std::vector<float> whole, again;
    const PrefillMassParams p = call.Params(&whole);
    MassCall::Run(p, 1);
    MassCall::Run(call.Params(&again), 3);
    EXPECT_TRUE(SameBits(again, whole));
    for (const int piece : {1, 7, 64, 170}) {
      std::vector<float> part;
      for (int begin = 0; begin < p.chunk.rows; begin += piece) {
        PrefillMassParams cut = p;
        const int rows = std::min(piece, p.chunk.rows - begin);
        cut.chunk = {0, begin, rows, p.chunk.start_pos + begin};
        cut.mass_pages = (cut.chunk.start_pos + rows + page_size - 1) / page_size;
        part.assign(static_cast<size_t>(rows * 2 * cut.mass_pages), -7.0f);
        cut.mass = part.data();
        MassCall::Run(cut, 2);
        for (int64_t list = 0; list < rows * 2; ++list) {
          ASSERT_EQ(std::memcmp(part.data() + list * cut.mass_pages, whole.data() + (begin * 2 + list) * p.mass_pages,
                                sizeof(float) * static_cast<size_t>(cut.mass_pages)),
                    0);
        }
      }
    }
    cache.PermutePages();
    call.prefill.p.table = cache.table();
    MassCall::Run(call.Params(&again), 2);
    EXPECT_TRUE(SameBits(again, whole));
  }
}

TEST(PrefillMass, FreedPagesAndRowsThatSawNothingGiveZero) {
  PagedCache cache(DType::kF32, 16, 1, 32, 32, {200}, 1);
  cache.Fill(OneThread());
  MassCall call(cache, 2, 20, 2);
  cache.PageId(0, 3) = -1;
  call.prefill.lse[2 * 5] = -INFINITY;  // head 0 of row 5
  std::vector<float> mass;
  const PrefillMassParams p = call.Params(&mass);
  MassCall::Run(p, 2);
  for (int row = 0; row < 20; ++row) {
    EXPECT_EQ(mass[static_cast<size_t>(row * p.mass_pages + 3)], 0.0f);
    double sum = 0;
    for (int64_t page = 0; page < p.mass_pages; ++page) sum += mass[static_cast<size_t>(row * p.mass_pages + page)];
    EXPECT_GT(sum, 0);
    if (row == 5) {
      EXPECT_LT(sum, 1.001);
    }
  }
}

TEST(PrefillMass, HonoursASoftCapAndAWindow) {
  PagedCache cache(DType::kF32, 16, 2, 32, 32, {150}, 1);
  cache.Fill(OneThread());
  PrefillCall prefill(cache, 4, {40}, 2);
  for (float& q : prefill.q) q *= 6;  // so that it matters
  const SoftCapMod mod{SoftCap{3.0f}, WindowMask{61}};
  reference::AttentionPrefill(prefill.Params(), mod);
  PrefillMassParams p;
  p.q = prefill.q.data();
  p.q_stride = prefill.p.q_stride;
  p.lse = prefill.lse.data();
  p.q_heads = 4;
  p.chunk = prefill.chunks[0];
  p.pages = cache.pages();
  p.table = cache.table();
  p.scale = prefill.p.scale;
  p.mass_pages = 10;
  std::vector<float> mass(40 * 2 * 10), expected(mass.size()), uncapped(mass.size());
  auto workspace = Buffer::Create(PrefillMassWorkspace(OneThread(), p));
  ASSERT_TRUE(workspace.ok());
  p.mass = mass.data();
  PrefillMass(OneThread(), p, mod, workspace->data());
  p.mass = expected.data();
  reference::PrefillMass(p, mod);
  p.mass = uncapped.data();
  reference::PrefillMass(p, PlainMod{});
  EXPECT_LE(RelativeError(mass, expected), 1e-5);
  EXPECT_GT(RelativeError(mass, uncapped), 0.1);
}

// The last row of a prompt pays what a decode row at its place pays.
TEST(PrefillMass, IsWhatDecodeAttentionGives) {
  PagedCache cache(DType::kBF16, 16, 2, 64, 64, {333}, 1);
  cache.Fill(OneThread());
  MassCall call(cache, 6, 3, 2);
  std::vector<float> mass;
  const PrefillMassParams p = call.Params(&mass);
  MassCall::Run(p, 2);
  std::vector<float> decode_mass(static_cast<size_t>(2 * p.mass_pages)), out(6 * 64);
  const int32_t seq = 0, len = 333;
  AttentionDecodeParams d;
  d.q = p.q + 2 * p.q_stride;
  d.q_stride = p.q_stride;
  d.out = out.data();
  d.out_stride = 6 * 64;
  d.rows = 1;
  d.q_heads = 6;
  d.row_seq = &seq;
  d.row_len = &len;
  d.pages = p.pages;
  d.table = p.table;
  d.scale = p.scale;
  d.mass = decode_mass.data();
  d.mass_pages = static_cast<int>(p.mass_pages);
  auto workspace = Buffer::Create(AttentionDecodeWorkspace(d));
  ASSERT_TRUE(workspace.ok());
  AttentionDecode(OneThread(), d, workspace->data());
  mass.erase(mass.begin(), mass.end() - 2 * p.mass_pages);
  EXPECT_LE(RelativeError(mass, decode_mass), 1e-4);
}

}  // namespace
}  // namespace quire

// Decode attention on the GPU under the emulator, against the reference on ALGORITHMS.md's grid (all pairs of its factors) and
// the identities a sparse, batched, paged kernel must keep. Everything outside the selection is NaN in every case.
#include "kernels/cuda/attention_decode.h"

#include <gtest/gtest.h>

#include "tests/kernels/cuda/emulator/options.h"
#include "tests/kernels/decode_call.h"
#include "tests/kernels/pairwise.h"

namespace quire {
namespace {

using cuda::AttentionDecodeConfig;
using testing::PagedCache;
using testing::RandomFloats;
using testing::RandomPages;
using testing::RelativeError;
using testing::SameBits;
using testing::Selection;

Context Pool() {
  static ThreadPool pool(2);
  Context ctx;
  ctx.pool = &pool;
  return ctx;
}

struct Decode : testing::DecodeCall {
  Decode(const PagedCache& cache, int q_heads, std::vector<int32_t> row_seq, std::vector<int32_t> row_len, uint64_t seed)
      : DecodeCall(cache, q_heads, std::move(row_seq), std::move(row_len), seed, /*q_padding=*/3, /*out_padding=*/5) {}
  int MostPages() const {
    const int longest = *std::max_element(len.begin(), len.end()), size = p.table.format.page_size;
    return (longest + size - 1) / size;
  }
  void Run(uint64_t seed, int most_pages = -1) {
    emulator::Options options;
    options.seed = seed;
    const emulator::ScopedOptions scoped(options);
    if (most_pages < 0) most_pages = MostPages();
    const AttentionDecodeParams params = Params();
    // NaN, so that nothing relies on zeroes; of the exact size.
    std::vector<float> workspace(cuda::AttentionDecodeWorkspace(params, most_pages) / sizeof(float),
                                 std::numeric_limits<float>::quiet_NaN());
    // Either way of merging: bits are the same, as BothWaysOfMergingGiveTheSameBits shows.
    std::vector<int32_t> counters(cuda::kDecodeCounters);
    const Status status = WithModelMod(mod, [&](const auto& with) {
      return cuda::AttentionDecode(Stream{}, params, most_pages, with, workspace.data(),
                                   seed % 2 == 0 ? nullptr : counters.data());
    });
    ASSERT_TRUE(status.ok()) << status.ToString();
    ASSERT_EQ(std::count(counters.begin(), counters.end(), 0), std::ssize(counters));
  }
};

// f32 arithmetic over the same rounded cache. Tensor cores take q and the weights in two parts of the cache's type.
double Tolerance(DType dtype) { return dtype == DType::kBF16 ? 3e-5 : 3e-6; }

struct Case {
  int n, page_size, budget_pages, dim, q_heads, kv_heads, batch, window;
  DType dtype;
};

void RunCase(const Case& c, uint64_t seed) {
  SCOPED_TRACE(::testing::Message() << "n " << c.n << " page " << c.page_size << " budget " << c.budget_pages << " d " << c.dim
                                    << " heads " << c.q_heads << "/" << c.kv_heads << " batch " << c.batch << " window "
                                    << c.window << " " << DTypeName(c.dtype) << " seed " << seed);
  std::mt19937_64 random(seed);
  const int rows = c.batch == 0 ? 4 : c.batch;
  std::vector<int> lengths(static_cast<size_t>(rows));
  std::vector<int32_t> seq, len;
  for (int r = 0; r < rows; ++r) {
    // batch 0: ragged; else one row of n tokens among short ones.
    const int cap = std::min(c.n, c.batch == 0 ? 200 : 40);
    lengths[static_cast<size_t>(r)] = r == 0 ? c.n : c.batch == 0 ? static_cast<int>(random() % (cap + 1)) : cap;
    seq.push_back(r);
    len.push_back(lengths[static_cast<size_t>(r)]);
  }
  PagedCache cache(c.dtype, c.page_size, c.kv_heads, c.dim, c.dim, lengths, seed);
  cache.Fill(Pool());
  Decode call(cache, c.q_heads, seq, len, seed + 1);
  call.mod.window = c.window;
  Selection selection(rows, c.kv_heads, std::max(1, std::max(c.budget_pages, cache.Pages(0))));
  for (int r = 0; r < rows; ++r) {
    for (int h = 0; h < c.kv_heads; ++h) {
      const size_t list = static_cast<size_t>(r * c.kv_heads + h);
      const int pages = cache.Pages(r);
      selection.Set(list, RandomPages(pages, c.budget_pages == 0 ? pages : c.budget_pages, random));
      const auto ids = selection.Get(list);
      for (int page = 0; page < pages; ++page) {
        if (!std::binary_search(ids.begin(), ids.end(), page)) cache.Poison(cache.PageId(r, page), h);
      }
    }
    for (int pos = len[static_cast<size_t>(r)]; pos < cache.Pages(r) * c.page_size; ++pos) cache.PoisonSlot(r, pos);
  }
  call.p.selection = c.budget_pages == 0 ? nullptr : &selection.view;
  call.RunReference();
  const Decode expected = call;
  call.Run(seed, c.budget_pages == 0 ? -1 : std::min(c.budget_pages, cache.Pages(0)));
  EXPECT_LE(RelativeError(call.out, expected.out), Tolerance(c.dtype));
  EXPECT_LE(RelativeError(call.lse, expected.lse), Tolerance(c.dtype));
  if (c.budget_pages == 0 && c.n <= 2000) {
    // A selection of all pages is dense, bit for bit, also among longer rows.
    const Decode dense = call;
    call.p.selection = &selection.view;
    call.Run(seed + 5, call.MostPages() + 300);
    EXPECT_TRUE(SameBits(call.out, dense.out));
    EXPECT_TRUE(SameBits(call.lse, dense.lse));
  }
}

void RunGrid(const std::vector<int>& lengths, const std::vector<int>& batches) {
  const std::vector<int> pages{1, 3, 7, 16, 32, 64}, budgets{1, 4, 16, 64, 0}, dims{64, 80, 96, 128, 256};
  const std::vector<std::pair<int, int>> heads{{32, 32}, {32, 8}, {9, 3}, {8, 1}};
  const std::vector<int> windows{0, 45};
  const std::vector<DType> dtypes{DType::kBF16, DType::kF16, DType::kF32};
  const auto rows = testing::AllPairs({static_cast<int>(lengths.size()), 6, 5, 5, 4, static_cast<int>(batches.size()), 3, 2});
  uint64_t seed = 1;
  for (const std::vector<int>& r : rows) {
    const auto at = [&](const auto& values, size_t i) { return values[static_cast<size_t>(r[i])]; };
    RunCase({at(lengths, 0), at(pages, 1), at(budgets, 2), at(dims, 3), at(heads, 4).first, at(heads, 4).second,
             at(batches, 5), at(windows, 7), at(dtypes, 6)},
            seed++);
  }
}

TEST(SlowCudaAttentionDecode, AgreesWithTheReferenceOnShortLengths) { RunGrid({1, 15, 16, 17, 63, 127}, {1, 3, 17, 0}); }
TEST(SlowCudaAttentionDecode, AgreesWithTheReferenceOnTheWholeGrid) {
  RunGrid({1, 15, 16, 17, 63, 127, 1110, 4099, 8192, 28837}, {1, 3, 17, 0});
}

TEST(CudaAttentionDecode, AgreesWithTheReferenceOnNamedCorners) {
  uint64_t seed = 100;
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
    RunCase({1, 16, 0, 64, 4, 1, 1, 0, dtype}, ++seed);
    RunCase({127, 16, 4, 128, 8, 2, 1, 0, dtype}, ++seed);
    RunCase({300, 32, 0, 64, 8, 1, 0, 0, dtype}, ++seed);
    RunCase({500, 64, 3, 96, 9, 3, 1, 45, dtype}, ++seed);
    RunCase({63, 7, 0, 80, 2, 2, 3, 0, dtype}, ++seed);
    RunCase({200, 3, 16, 64, 3, 1, 1, 45, dtype}, ++seed);
    RunCase({33, 1, 0, 64, 1, 1, 0, 0, dtype}, ++seed);
    RunCase({150, 16, 0, 256, 4, 1, 1, 0, dtype}, ++seed);
  }
}

TEST(CudaAttentionDecode, LongListsAreCutAndPagesMayBeLargerThanAChunk) {
  RunCase({1110, 16, 0, 64, 4, 1, 1, 0, DType::kBF16}, 1);
  RunCase({1110, 16, 40, 64, 2, 1, 1, 0, DType::kF16}, 2);
  RunCase({4300, 16, 0, 64, 1, 1, 1, 0, DType::kBF16}, 3);
  RunCase({1500, 700, 0, 64, 4, 1, 1, 0, DType::kBF16}, 4);
  RunCase({1500, 701, 2, 64, 5, 1, 1, 0, DType::kF32}, 5);
  RunCase({700, 704, 0, 64, 4, 1, 1, 0, DType::kF16}, 6);
  RunCase({4300, 16, 0, 64, 4, 1, 1, 0, DType::kBF16}, 7);  // a warp takes several tiles of a chunk
}

TEST(SlowCudaAttentionDecode, EveryBandOfChunksAgreesWithTheReference) {
  RunCase({20000, 16, 0, 64, 4, 1, 1, 0, DType::kBF16}, 1);
  RunCase({70000, 64, 0, 64, 1, 1, 1, 0, DType::kBF16}, 2);
  RunCase({70000, 32, 0, 64, 8, 1, 1, 0, DType::kF16}, 3);
}

TEST(CudaAttentionDecode, TakesSmallAndOddWidthsAndLargeGroups) {
  for (const int dim : {2, 6, 8, 18, 34}) {
    RunCase({70, 16, 0, dim, 3, 1, 3, 0, DType::kBF16}, 20);
    RunCase({70, 5, 4, dim, 4, 2, 3, 0, DType::kF32}, 21);
  }
  RunCase({40, 16, 0, 640, 2, 1, 1, 0, DType::kBF16}, 23);
  for (const int group : {1, 2, 3, 5, 7, 12, 16, 17, 40}) RunCase({100, 16, 3, 64, group, 1, 1, 0, DType::kBF16}, 22);
}

TEST(CudaAttentionDecode, TensorCoresTakeEveryWidthPageSizeAndGroupTheyShould) {
  uint64_t seed = 300;
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    for (const int dim : {64, 96, 128, 256}) RunCase({140, 16, 0, dim, 5, 1, 1, 0, dtype}, ++seed);
    for (const int group : {4, 8, 9, 16, 17}) RunCase({300, 16, 5, 128, group, 1, 1, 0, dtype}, ++seed);
    for (const int page_size : {8, 24, 32, 64, 200}) RunCase({250, page_size, 0, 64, 12, 1, 0, 77, dtype}, ++seed);
  }
}

TEST(CudaAttentionDecode, ConfigurationsAreOfSizesAndLengthsAlone) {
  using Config = AttentionDecodeConfig;
  const auto text = [](DType dtype, int page_size, int dim, int q_heads, int kv_heads, int most_pages) {
    return Config::For(*PageFormat::Create(dtype, page_size, kv_heads, dim, dim), q_heads, most_pages).ToString();
  };
  EXPECT_EQ(text(DType::kBF16, 16, 128, 32, 8, 2048),
            "tensor cores, 1 passes of 8 heads, 128 threads, at most 64 chunks of at most 512 slots, 102660 B shared");
  EXPECT_EQ(text(DType::kBF16, 16, 128, 32, 32, 2048),
            "plain, 1 passes of 1 heads, 128 threads, at most 64 chunks of at most 512 slots, 4888 B shared");
  EXPECT_EQ(text(DType::kF16, 32, 64, 32, 2, 4),
            "tensor cores, 1 passes of 16 heads, 128 threads, at most 1 chunks of at most 128 slots, no merge, 53764 B shared");
  EXPECT_EQ(text(DType::kBF16, 16, 256, 16, 1, 64),
            "tensor cores, 2 passes of 8 heads, 128 threads, at most 4 chunks of at most 256 slots, 139524 B shared");
  // What tensor cores don't fit: f32, odd pages, other widths, small groups.
  EXPECT_TRUE(Config::For(*PageFormat::Create(DType::kBF16, 16, 1, 128, 128), 4, 9).tensor_cores);
  EXPECT_FALSE(Config::For(*PageFormat::Create(DType::kBF16, 16, 1, 128, 128), 3, 9).tensor_cores);
  EXPECT_FALSE(Config::For(*PageFormat::Create(DType::kF32, 16, 1, 128, 128), 4, 9).tensor_cores);
  EXPECT_FALSE(Config::For(*PageFormat::Create(DType::kBF16, 12, 1, 128, 128), 4, 9).tensor_cores);
  EXPECT_FALSE(Config::For(*PageFormat::Create(DType::kBF16, 16, 1, 80, 80), 4, 9).tensor_cores);
  EXPECT_FALSE(Config::For(*PageFormat::Create(DType::kBF16, 16, 1, 128, 64), 4, 9).tensor_cores);
  // The cut doesn't know the local heads.
  EXPECT_EQ(Config::For(*PageFormat::Create(DType::kBF16, 16, 8, 128, 128), 32, 999).parts,
            Config::For(*PageFormat::Create(DType::kBF16, 16, 1, 128, 128), 4, 999).parts);
}

TEST(CudaAttentionDecode, EmptyListsEmptyRowsAndPaddingGiveZeroAndMinusInfinity) {
  for (const int q_heads : {4, 16}) {
    for (const int most_pages : {3, 100}) {
      PagedCache cache(DType::kBF16, 16, 2, 64, 64, {40, 5}, 1);
      cache.Fill(Pool());
      Decode call(cache, q_heads, {0, 1, -1}, {40, 0, 30}, 2);
      Selection selection(3, 2, 3);
      selection.Set(0, {1, 2});
      selection.counts[4] = 3;  // of the padding row: not to be looked at
      call.p.selection = &selection.view;
      call.Run(2, most_pages);
      const int group = q_heads / 2;
      for (int row = 0; row < 3; ++row) {
        for (int head = 0; head < q_heads; ++head) {
          const bool read = row == 0 && head < group;
          const float lse = call.lse[static_cast<size_t>(row * q_heads + head)];
          EXPECT_EQ(std::isfinite(lse), read);
          if (read) continue;
          EXPECT_EQ(lse, -std::numeric_limits<float>::infinity());
          for (int c = 0; c < 64; ++c) EXPECT_EQ(call.out[static_cast<size_t>(row * call.p.out_stride + head * 64 + c)], 0.0f);
        }
      }
    }
  }
}

TEST(CudaAttentionDecode, ChangingOneHeadsSetChangesThatHeadOnly) {
  for (const int group : {3, 5}) {
    PagedCache cache(DType::kBF16, 16, 3, 64, 64, {500}, 1);
    cache.Fill(Pool());
    Decode call(cache, 3 * group, {0}, {500}, 2);
    Selection selection(1, 3, 32);
    for (size_t h = 0; h < 3; ++h) selection.Set(h, {0, 5, 9, 31});
    call.p.selection = &selection.view;
    call.Run(2);
    const std::vector<float> before = call.out;
    selection.Set(1, {0, 6, 9, 31});
    call.Run(3);
    for (int head = 0; head < 3 * group; ++head) {
      const bool same = std::memcmp(&before[static_cast<size_t>(head * 64)], &call.out[static_cast<size_t>(head * 64)], 256) == 0;
      EXPECT_EQ(same, head / group != 1) << head;
    }
  }
}

TEST(CudaAttentionDecode, BitsDependNeitherOnPagesNorOrderNorBatchNorHeads) {
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    for (const int group : {2, 4}) {
      PagedCache cache(dtype, 16, 2, 64, 64, {600, 333}, 1);
      cache.Fill(Pool());
      Decode batch(cache, 2 * group, {0, 1, 1}, {600, 333, 100}, 2);
      batch.Run(1);
      Decode again = batch;
      again.Run(77, 400);
      EXPECT_TRUE(SameBits(again.out, batch.out));
      EXPECT_TRUE(SameBits(again.lse, batch.lse));
      const auto width = static_cast<size_t>(2 * group * 64);
      for (size_t r = 0; r < 3; ++r) {
        Decode alone(cache, 2 * group, {batch.seq[r]}, {batch.len[r]}, 9);
        std::copy_n(batch.q.begin() + static_cast<int64_t>(r) * batch.p.q_stride, width, alone.q.begin());
        alone.Run(2);  // row 2 is one chunk, alone
        EXPECT_EQ(std::memcmp(alone.out.data(), &batch.out[r * static_cast<size_t>(batch.p.out_stride)], width * 4), 0) << r;
      }
      cache.PermutePages();
      again.p.table = cache.table();
      again.Run(3);
      EXPECT_TRUE(SameBits(again.out, batch.out));

      // A rank that holds the second KV head alone.
      PagedCache one(dtype, 16, 1, 64, 64, {600}, 5);
      const PageFormat &f = cache.table().format, &g = one.table().format;
      for (int page = 0; page < cache.Pages(0); ++page) {
        const auto copy = [&](void* to, const void* from, int64_t to_stride, int64_t from_stride, int64_t head) {
          std::memcpy(static_cast<BF16*>(to) + one.PageId(0, page) * to_stride,
                      static_cast<const BF16*>(from) + cache.PageId(0, page) * from_stride + head, static_cast<size_t>(head) * 2);
        };
        copy(one.pages().k, cache.pages().k, g.k_page_stride, f.k_page_stride, f.k_head_stride);
        copy(one.pages().v, cache.pages().v, g.v_page_stride, f.v_page_stride, f.v_head_stride);
      }
      Decode local(one, group, {0}, {600}, 9);
      std::copy_n(batch.q.begin() + group * 64, group * 64, local.q.begin());
      local.Run(4);
      EXPECT_EQ(std::memcmp(local.out.data(), &batch.out[static_cast<size_t>(group * 64)], static_cast<size_t>(group) * 256), 0);
    }
  }
}

TEST(CudaAttentionDecode, FreedPagesOfAWindowAreNeverTouched) {
  for (const int group : {2, 4}) {
    PagedCache cache(DType::kF16, 16, 1, 64, 64, {200}, 1);
    cache.Fill(Pool());
    Decode call(cache, group, {0}, {200}, 2);
    call.mod.window = 70;
    call.RunReference();
    const Decode expected = call;
    for (int page = 0; page < 8; ++page) cache.PageId(0, page) = -1;  // positions 0 … 127; the window is 130 … 199
    call.Run(1);
    EXPECT_LE(RelativeError(call.out, expected.out), Tolerance(DType::kF16));
    // Without a window the freed pages count as not there.
    call.mod.window = 0;
    call.RunReference();
    const Decode holes = call;
    call.Run(1);
    EXPECT_LE(RelativeError(call.out, holes.out), Tolerance(DType::kF16));
  }
}

TEST(CudaAttentionDecode, SlotMaskAndSparqsCorrectionAgreeWithTheReference) {
  testing::ExpectSlotMaskAndSparqsCorrection<Decode>(Pool(), Tolerance(DType::kBF16));
}

TEST(CudaAttentionDecode, NanInAReadPageShows) {
  for (const int group : {1, 4}) {
    PagedCache cache(DType::kBF16, 16, 1, 64, 64, {600}, 1);
    cache.Fill(Pool());
    cache.PoisonSlot(0, 300);
    Decode call(cache, group, {0}, {600}, 2);
    call.Run(1);
    EXPECT_TRUE(std::isnan(call.out[0]));
    EXPECT_TRUE(std::isnan(call.lse[0]));
  }
}

TEST(CudaAttentionDecode, ARowLongerThanTheMostComesBackAsNan) {
  for (const int group : {2, 8}) {
    PagedCache cache(DType::kBF16, 16, 1, 64, 64, {330, 16}, 1);
    cache.Fill(Pool());
    for (const int most_pages : {4, 20}) {  // one chunk and several
      Decode call(cache, group, {0, 1}, {330, 16}, 2);
      call.Run(1, most_pages);
      for (int head = 0; head < group; ++head) {
        EXPECT_TRUE(std::isnan(call.lse[static_cast<size_t>(head)]));
        EXPECT_TRUE(std::isfinite(call.lse[static_cast<size_t>(group + head)]));
        EXPECT_TRUE(std::isnan(call.out[static_cast<size_t>(head * 64 + 63)]));
      }
    }
  }
}

// The mass that a call writes and the reference's, each [rows][kv_heads][mass_pages], with −7 before.
struct Masses {
  Masses(Decode& call, int mass_pages, bool with_lse, uint64_t seed)
      : got(static_cast<size_t>(call.p.rows * call.p.table.format.kv_heads * mass_pages), -7.0f), expected(got) {
    call.p.mass_pages = mass_pages;
    call.p.mass = expected.data();
    call.RunReference();
    call.p.mass = got.data();
    emulator::Options options;
    options.seed = seed;
    const emulator::ScopedOptions scoped(options);
    AttentionDecodeParams p = call.Params();
    if (!with_lse) p.lse = nullptr;
    std::vector<float> workspace(cuda::AttentionDecodeWorkspace(p, call.MostPages()) / sizeof(float),
                                 std::numeric_limits<float>::quiet_NaN());
    const Status status = WithModelMod(call.mod, [&](const auto& with) {
      return cuda::AttentionDecode(Stream{}, p, call.MostPages(), with, workspace.data());
    });
    EXPECT_TRUE(status.ok()) << status.ToString();
  }
  double Worst() const {
    double worst = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      if (got[i] == expected[i]) continue;
      const double off = std::abs(double{got[i]} - expected[i]) / std::max(1e-4, double{expected[i]});
      worst = off <= worst ? worst : off;  // NaN counts
    }
    return worst;
  }
  std::vector<float> got, expected;
};
constexpr double kMassTolerance = 2e-4;

TEST(CudaAttentionDecode, MassPerPageAgreesWithTheReference) {
  for (const auto& [dtype, page_size] : {std::pair{DType::kBF16, 16}, std::pair{DType::kF16, 7}, std::pair{DType::kF32, 80}}) {
    for (const int group : {1, 6}) {
      SCOPED_TRACE(::testing::Message() << DTypeName(dtype) << " page " << page_size << " group " << group);
      PagedCache cache(dtype, page_size, 2, 64, 64, {333, 90}, 1);
      cache.Fill(Pool());
      for (int pos = 333; pos < cache.Pages(0) * page_size; ++pos) cache.PoisonSlot(0, pos);
      Decode call(cache, 2 * group, {0, 1, 0}, {333, 0, 200}, 2);
      // Dense, in a window with a freed page, without and with a place for the log-sum-exp; more pages than there are.
      call.mod.window = group == 1 ? 0 : 150;
      cache.PageId(0, 190 / page_size) = -1;
      const Masses dense(call, cache.Pages(0) + 40, group == 1, 3);
      EXPECT_LE(dense.Worst(), kMassTolerance);
      double sum = 0;
      for (int i = 0; i < call.p.mass_pages; ++i) sum += dense.got[static_cast<size_t>(i)];
      EXPECT_NEAR(sum, group, 1e-4 * group);

      const int pages = cache.Pages(0) * 5 / 8;  // of the smallest: over two blocks
      Selection selection(3, 2, 40);
      for (size_t list : {0, 1, 4, 5}) selection.Set(list, RandomPages(cache.Pages(0), pages, cache.random()));
      const int words = (page_size + 63) / 64;
      std::vector<uint64_t> mask(3 * 2 * 40 * static_cast<size_t>(words));
      for (uint64_t& m : mask) m = cache.random()();
      selection.view.slot_mask = mask.data();
      selection.view.mask_words = words;
      call.p.selection = &selection.view;
      EXPECT_LE(Masses(call, cache.Pages(0), group == 6, 4).Worst(), kMassTolerance);
    }
  }
}

TEST(CudaAttentionDecode, BitsOfMassDependNeitherOnPagesNorBatchNorOrder) {
  PagedCache cache(DType::kBF16, 16, 1, 64, 64, {700, 60}, 1);
  cache.Fill(Pool());
  Decode batch(cache, 6, {1, 0}, {60, 700}, 2);
  const Masses first(batch, 44, true, 1);
  Decode alone(cache, 6, {0}, {700}, 2);
  std::copy_n(batch.q.begin() + batch.p.q_stride, 6 * 64, alone.q.begin());
  cache.PermutePages();
  alone.p.table = cache.table();
  const Masses second(alone, 44, false, 9);
  EXPECT_EQ(std::memcmp(second.got.data(), &first.got[44], 44 * sizeof(float)), 0);
}

TEST(CudaAttentionDecode, RefusesPagesThatItCannotIndex) {
  AttentionDecodeParams p;
  p.table.format = *PageFormat::Create(DType::kBF16, 40000, 1, 64, 64);
  p.q_heads = 1;
  const Status status = cuda::AttentionDecode(Stream{}, p, 1, nullptr);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.ToString().find("40000"), std::string::npos);
}

TEST(CudaAttentionDecode, BothWaysOfMergingGiveTheSameBits) {
  for (const int group : {4, 8, 12}) {
    const PagedCache cache(DType::kBF16, 16, 2, 64, 64, {5000, 3, 700, 40}, 5);
    Decode blocks(cache, 2 * group, {0, 1, -1, 2, 3}, {5000, 3, 9, 700, 0}, 6);
    Decode kernel(cache, 2 * group, {0, 1, -1, 2, 3}, {5000, 3, 9, 700, 0}, 6);
    blocks.Run(7);
    kernel.Run(8);
    EXPECT_EQ(std::memcmp(blocks.out.data(), kernel.out.data(), blocks.out.size() * sizeof(float)), 0) << group;
    EXPECT_EQ(std::memcmp(blocks.lse.data(), kernel.lse.data(), blocks.lse.size() * sizeof(float)), 0) << group;
  }
}

// A rank that holds a part of a KV head's queries gets the bits of one that holds them all: the model's group decides
// whether tensor cores are used.
TEST(CudaAttentionDecode, BitsDontDependOnHowManyHeadsOfAGroupAreHere) {
  for (const int group : {3, 6, 12}) {
    const PagedCache cache(DType::kBF16, 16, 1, 64, 64, {700}, 5);
    Decode whole(cache, group, {0}, {700}, 6);
    whole.Run(7);
    for (int count = 1; count < group; count += count < 4 ? 1 : 4) {
      const int first = (group - count) / 2;
      Decode part(cache, count, {0}, {700}, 6);
      std::copy_n(whole.q.begin() + first * 64, count * 64, part.q.begin());
      part.p.model_group = group;
      part.Run(8);
      EXPECT_EQ(std::memcmp(part.out.data(), &whole.out[static_cast<size_t>(first) * 64], static_cast<size_t>(count) * 256), 0)
          << count << " of " << group;
    }
  }
}

TEST(CudaAttentionDecode, ChunksDependOnListedPagesAlone) {
  using Config = AttentionDecodeConfig;
  EXPECT_EQ(Config::ChunkSlots(1, 16), 128);
  EXPECT_EQ(Config::ChunkSlots(32, 16), 128);
  EXPECT_EQ(Config::ChunkSlots(33, 16), 256);
  EXPECT_EQ(Config::ChunkSlots(65, 16), 512);
  EXPECT_EQ(Config::ChunkSlots(1025, 16), 512);
  EXPECT_EQ(Config::ChunkSlots(4097, 16), 1024);
  EXPECT_EQ(Config::ChunkSlots(3, 6), 126);
  EXPECT_EQ(Config::ChunkSlots(3, 700), 512);
  EXPECT_EQ(Config::Chunks(0, 16), 0);
  EXPECT_EQ(Config::Chunks(128, 16), 4);
  EXPECT_EQ(Config::Chunks(129, 16), 5);
  // The most chunks of any list up to so many pages, though a longer list may have fewer.
  for (const int page_size : {1, 3, 16, 64, 700}) {
    const PageFormat f = *PageFormat::Create(DType::kBF16, page_size, 8, 128, 128);
    const int slots = Config::PageSlots(f);
    int parts = 1, chunk = 0;
    for (int pages = 0; pages <= 9000; ++pages) {
      parts = std::max(parts, Config::Chunks(pages, slots));
      chunk = std::max(chunk, Config::ChunkSlots(pages, slots));
      if (pages % 100 != 0) continue;
      EXPECT_EQ(Config::For(f, 32, pages).parts, parts) << pages;
      EXPECT_GE(Config::For(f, 32, pages).chunk_slots, chunk) << pages;
    }
  }
}

}  // namespace
}  // namespace quire

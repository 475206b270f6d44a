// Prefill attention on the GPU under the emulator, against the reference on ALGORITHMS.md's grid (all pairs of its
// factors) and the identities of chunking. Whatever no queried row sees is NaN in every case.
#include "kernels/cuda/attention_prefill.h"

#include <gtest/gtest.h>

#include "tests/kernels/cuda/emulator/options.h"
#include "tests/kernels/pairwise.h"
#include "tests/kernels/prefill_call.h"

namespace quire {
namespace {

using cuda::AttentionPrefillConfig;
using testing::PagedCache;
using testing::RandomFloats;
using testing::SameBits;

constexpr float kInf = std::numeric_limits<float>::infinity();

Context Pool() {
  static ThreadPool pool(2);
  Context ctx;
  ctx.pool = &pool;
  return ctx;
}

struct Prefill : testing::PrefillCall {
  // Queries are numbers of the cache's type.
  Prefill(const PagedCache& cache, int q_heads, const std::vector<int>& tails, uint64_t seed)
      : PrefillCall(cache, q_heads, tails, seed, /*q_padding=*/3, /*out_padding=*/5) {
    VisitFloatDType(cache.table().format.dtype, [&](auto t) {
      for (float& x : q) x = ToFloat(FromFloat<decltype(t)>(x));
    });
  }
  int64_t ChunkRows() const {
    int64_t sum = 0;
    for (const PrefillChunk& c : chunks) sum += c.rows;
    return sum;
  }
  void Run(uint64_t seed, int64_t more_rows = 0) {
    emulator::Options options;
    options.seed = seed;
    const emulator::ScopedOptions scoped(options);
    const Status status = WithModelMod(
        mod, [&](const auto& with) { return cuda::AttentionPrefill(Stream{}, Params(), ChunkRows() + more_rows, with); });
    ASSERT_TRUE(status.ok()) << status.ToString();
  }
  float* Out(int row, int head) { return &out[static_cast<size_t>(row * p.out_stride + head * p.table.format.v_dim)]; }
};

// Of the worst (row, head), ‖a − b‖ / ‖b‖; infinite where one is not finite and the other not the same, or where a
// wrote between rows.
double WorstRow(const Prefill& a, const Prefill& b) {
  const int v_dim = a.p.table.format.v_dim;
  double worst = 0;
  for (int row = 0; row < a.rows; ++row) {
    for (int head = 0; head < a.p.q_heads; ++head) {
      const auto begin = static_cast<int64_t>(row) * a.p.out_stride + head * v_dim;
      const std::vector<float> x(a.out.begin() + begin, a.out.begin() + begin + v_dim);
      const std::vector<float> y(b.out.begin() + begin, b.out.begin() + begin + v_dim);
      worst = std::max(worst, testing::RelativeError(x, y));
    }
    for (int64_t i = a.p.q_heads * v_dim; i < a.p.out_stride; ++i) {
      if (a.out[static_cast<size_t>(row * a.p.out_stride + i)] != -7.0f) return kInf;
    }
  }
  return worst;
}
double WorstLse(const Prefill& a, const Prefill& b) {
  double worst = 0;
  for (size_t i = 0; i < a.lse.size(); ++i) {
    if (std::isfinite(a.lse[i]) && std::isfinite(b.lse[i])) {
      worst = std::max(worst, std::abs(double{a.lse[i]} - b.lse[i]) / std::max(1.0, std::abs(double{b.lse[i]})));
    } else if (a.lse[i] != b.lse[i]) {
      return kInf;
    }
  }
  return worst;
}

// Tensor cores round the weights, to nearest; nothing else here is rounded but sums in f32.
double Tolerance(const PageFormat& f) {
  if (!AttentionPrefillConfig::For(f).tensor_cores) return 1e-5;
  return f.dtype == DType::kBF16 ? 5e-3 : 7e-4;
}
constexpr double kLseTolerance = 3e-6;

void ExpectClose(const Prefill& got, const Prefill& expected) {
  EXPECT_LE(WorstRow(got, expected), Tolerance(got.p.table.format));
  EXPECT_LE(WorstLse(got, expected), kLseTolerance);
}

struct Case {
  int n, page_size, dim, q_heads, kv_heads, tail, window;
  DType dtype;
};

void RunCase(const Case& c, uint64_t seed) {
  SCOPED_TRACE(::testing::Message() << "n " << c.n << " page " << c.page_size << " d " << c.dim << " heads "
                                    << c.q_heads << "/" << c.kv_heads << " tail " << c.tail << " window " << c.window
                                    << " " << DTypeName(c.dtype) << " seed " << seed);
  PagedCache cache(c.dtype, c.page_size, c.kv_heads, c.dim, c.dim, {c.n, 20, 1}, seed);
  cache.Fill(Pool());
  const int tail = c.tail == 0 ? c.n : std::min(c.n, c.tail);
  for (int s = 0; s < 3; ++s) {
    for (int pos = cache.lengths()[static_cast<size_t>(s)]; pos < cache.Pages(s) * c.page_size; ++pos)
      cache.PoisonSlot(s, pos);
  }
  if (c.window > 0) {
    const int hidden = c.n - tail - c.window + 1;  // positions that no queried row sees
    for (int pos = 0; pos < hidden; ++pos) cache.PoisonSlot(0, pos);
    for (int page = 0; (page + 1) * c.page_size <= hidden; page += 2) cache.PageId(0, page) = -1;
  }
  Prefill call(cache, c.q_heads, {tail, 13, 1}, seed + 1);
  call.mod.window = c.window;
  call.RunReference();
  const Prefill expected = call;
  call.Clear();
  call.Run(seed, static_cast<int64_t>(seed % 3) * 50);
  ExpectClose(call, expected);
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
    const int most = n > 10000 ? 1 : n > 2000 ? 3 : n > 200 ? 70 : n;
    const int tail = std::min(at(tails, 4) == 0 ? most : at(tails, 4), most);
    RunCase(
        {n, at(pages, 1), at(dims, 2), at(heads, 3).first, at(heads, 3).second, tail, at(windows, 5), at(dtypes, 6)},
        seed++);
  }
}

TEST(SlowCudaAttentionPrefill, AgreesWithTheReferenceOnShortLengths) { RunGrid({1, 15, 16, 17, 63, 127}); }
TEST(SlowCudaAttentionPrefill, AgreesWithTheReferenceOnTheWholeGrid) {
  RunGrid({1, 15, 16, 17, 63, 127, 1110, 4099, 8192, 28837});
}
TEST(SlowCudaAttentionPrefill, WholePromptsAgreeWithTheReference) {
  RunCase({700, 16, 64, 4, 1, 0, 0, DType::kBF16}, 1);
  RunCase({700, 16, 128, 8, 2, 0, 100, DType::kF16}, 2);
  RunCase({500, 24, 256, 2, 1, 0, 0, DType::kBF16}, 3);
  RunCase({400, 64, 96, 3, 1, 0, 0, DType::kBF16}, 4);
  RunCase({300, 5, 80, 6, 2, 0, 70, DType::kF32}, 5);
}

TEST(CudaAttentionPrefill, AgreesWithTheReferenceOnNamedCorners) {
  RunCase({1, 16, 64, 4, 1, 0, 0, DType::kBF16}, 101);
  RunCase({33, 16, 64, 2, 2, 0, 0, DType::kF16}, 102);
  RunCase({150, 16, 64, 4, 1, 40, 0, DType::kBF16}, 103);
  RunCase({100, 32, 128, 3, 1, 20, 45, DType::kBF16}, 104);
  RunCase({70, 7, 80, 2, 1, 9, 0, DType::kF32}, 105);
  RunCase({50, 1, 64, 1, 1, 5, 9, DType::kF16}, 106);
}

TEST(CudaAttentionPrefill, ThePlainKernelTakesAnyWidthPageSizeAndGroup) {
  RunCase({40, 16, 2, 3, 1, 20, 0, DType::kBF16}, 20);
  RunCase({70, 5, 34, 4, 2, 9, 40, DType::kF32}, 21);
  RunCase({40, 12, 18, 17, 1, 3, 0, DType::kF16}, 22);
  RunCase({40, 700, 576, 2, 1, 3, 0, DType::kBF16}, 23);
}
TEST(SlowCudaAttentionPrefill, ThePlainKernelTakesEveryDTypeWidthAndGroup) {
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
    for (const int dim : {2, 6, 8, 18, 34, 80}) RunCase({70, 5, dim, 4, 2, 50, 40, dtype}, 21);
    for (const int group : {5, 16, 40, 120}) RunCase({50, 12, 16, group, 1, 7, 0, dtype}, 22);
  }
}

TEST(CudaAttentionPrefill, TensorCoresTakeEveryWidthTheyShould) {
  uint64_t seed = 300;
  for (const int dim : {96, 128, 256})
    RunCase({75, 16, dim, 5, 1, 14, dim == 128 ? 40 : 0, dim == 96 ? DType::kF16 : DType::kBF16}, ++seed);
}
TEST(CudaAttentionPrefill, TensorCoresTakeEveryPageSizeAndGroupTheyShould) {
  uint64_t seed = 310;
  for (const int group : {1, 40}) RunCase({70, 16, 64, group, 1, 6, 0, DType::kBF16}, ++seed);
  for (const int page_size : {8, 24, 200}) RunCase({130, page_size, 64, 3, 1, 12, 77, DType::kF16}, ++seed);
}
// A warp of one token alone, at every place in a block of keys.
TEST(CudaAttentionPrefill, EdgesOfBlocksAreRightForEveryPosition) {
  RunCase({71, 16, 64, 32, 1, 35, 0, DType::kBF16}, 330);
  RunCase({71, 16, 64, 32, 1, 35, 34, DType::kBF16}, 331);
}
TEST(SlowCudaAttentionPrefill, TensorCoresTakeAllOfThem) {
  uint64_t seed = 320;
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    for (const int dim : {64, 96, 128, 256}) RunCase({130, 16, dim, 6, 2, 50, 0, dtype}, ++seed);
    for (const int group : {1, 4, 7, 8, 16, 40}) RunCase({140, 16, 64, group, 1, 40, 60, dtype}, ++seed);
    for (const int page_size : {8, 24, 32, 64, 200}) RunCase({330, page_size, 64, 3, 1, 80, 77, dtype}, ++seed);
  }
}

TEST(CudaAttentionPrefill, QueriesInF32StayWithinTheTypesTolerance) {
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    PagedCache cache(dtype, 16, 1, 64, 64, {90}, 1);
    cache.Fill(Pool());
    Prefill call(cache, 4, {20}, 2);
    call.q = RandomFloats(call.q.size(), 3);
    call.RunReference();
    const Prefill expected = call;
    call.Run(1);
    EXPECT_LE(testing::RelativeError(call.out, expected.out), dtype == DType::kBF16 ? 1e-2 : 1e-3);
    EXPECT_LE(WorstLse(call, expected), dtype == DType::kBF16 ? 1e-2 : 1e-3);
  }
}

TEST(CudaAttentionPrefill, AnyScaleAndLargeScoresAgreeWithTheReference) {
  for (const int page_size : {16, 12}) {
    PagedCache cache(DType::kF16, page_size, 1, 64, 64, {80}, 1);
    cache.Fill(Pool());
    for (const float scale : {-0.2f, 0.0f, 4.0f}) {
      Prefill call(cache, 2, {9}, 2);
      call.p.scale = scale;
      call.RunReference();
      const Prefill expected = call;
      call.Clear();
      call.Run(1);
      EXPECT_LE(WorstRow(call, expected), Tolerance(cache.table().format)) << scale;
      EXPECT_LE(WorstLse(call, expected), 2e-5) << scale;
    }
  }
}

// bf16 with pages of 16: tensor cores; of 12: plain. n: tokens of the first sequence.
void CompareBits(int n, int group, const std::vector<int>& cuts, const std::vector<int>& windows) {
  for (const int page_size : {16, 12}) {
    for (const int window : windows) {
      PagedCache cache(DType::kBF16, page_size, 2, 64, 64, {n, 45}, 1);
      cache.Fill(Pool());
      Prefill whole(cache, 2 * group, {n, 11}, 2);
      whole.mod.window = window;
      whole.Run(1);
      // Other cuts, in one call and in an order of their own, with padding and empty chunks between.
      Prefill pieces = whole;
      pieces.chunks.clear();
      for (const PrefillChunk& c : whole.chunks) {
        for (int at = 0, next = 0; at < c.rows; ++next) {
          const int rows = std::min(cuts[static_cast<size_t>(next) % cuts.size()], c.rows - at);
          pieces.chunks.insert(pieces.chunks.begin(), {c.seq, c.first_row + at, rows, c.start_pos + at});
          pieces.chunks.push_back({c.seq, 0, 0, 5});
          at += rows;
        }
      }
      pieces.Clear();
      pieces.Run(77, 100);
      EXPECT_TRUE(SameBits(pieces.out, whole.out));
      EXPECT_TRUE(SameBits(pieces.lse, whole.lse));
      cache.PermutePages();
      Prefill moved = whole;
      moved.p.table = cache.table();
      moved.chunks = {whole.chunks[1]};  // alone
      moved.Clear();
      moved.Run(3);
      const auto from = static_cast<size_t>(n * whole.p.out_stride);
      EXPECT_EQ(std::memcmp(&moved.out[from], &whole.out[from], static_cast<size_t>(11 * whole.p.out_stride) * 4), 0);

      // A rank that holds the second KV head alone.
      PagedCache one(DType::kBF16, page_size, 1, 64, 64, {n}, 5);
      const PageFormat &f = cache.table().format, &g = one.table().format;
      for (int page = 0; page < cache.Pages(0); ++page) {
        const auto copy = [&](void* to, const void* src, int64_t to_stride, int64_t from_stride, int64_t head) {
          std::memcpy(static_cast<BF16*>(to) + one.PageId(0, page) * to_stride,
                      static_cast<const BF16*>(src) + cache.PageId(0, page) * from_stride + head,
                      static_cast<size_t>(head) * 2);
        };
        copy(one.pages().k, cache.pages().k, g.k_page_stride, f.k_page_stride, f.k_head_stride);
        copy(one.pages().v, cache.pages().v, g.v_page_stride, f.v_page_stride, f.v_head_stride);
      }
      constexpr int kLocal = 5;
      Prefill local(one, group, {kLocal}, 9);
      local.mod.window = window;
      for (int row = 0; row < kLocal; ++row) {
        const int64_t from_row = n - kLocal + row;
        std::copy_n(whole.q.begin() + from_row * whole.p.q_stride + group * 64, group * 64,
                    local.q.begin() + row * local.p.q_stride);
      }
      local.Run(4);
      for (int row = 0; row < kLocal; ++row) {
        const size_t bytes = static_cast<size_t>(group) * 64 * 4;
        EXPECT_EQ(std::memcmp(local.Out(row, 0), whole.Out(n - kLocal + row, group), bytes), 0) << row;
      }
    }
  }
}
TEST(CudaAttentionPrefill, BitsDependNeitherOnCutsNorBatchNorPagesNorOrderNorHeads) {
  CompareBits(50, 3, {7, 30}, {33});
}
TEST(SlowCudaAttentionPrefill, BitsOfLongerPromptsDependOnNothingElse) {
  CompareBits(200, 3, {1, 33, 7, 50}, {0, 50, 90});
}

TEST(CudaAttentionPrefill, LaterTokensInTheCacheDontShow) {
  for (const int page_size : {16, 12}) {
    PagedCache cache(DType::kF16, page_size, 1, 64, 64, {100}, 1);
    cache.Fill(Pool());
    Prefill call(cache, 4, {70}, 2);
    call.chunks[0].rows = 20;
    call.Run(1);
    const Prefill early = call;
    for (int pos = 50; pos < 100; ++pos) cache.PoisonSlot(0, pos);
    call.Clear();
    call.Run(2);
    EXPECT_TRUE(SameBits(early.out, call.out));
    EXPECT_TRUE(std::isfinite(call.Out(19, 3)[63]));
    EXPECT_EQ(call.Out(20, 0)[0], -7.0f);
  }
}

TEST(CudaAttentionPrefill, NanInAKeyShowsInTheRowsThatSeeItAndInNoOther) {
  for (const int page_size : {16, 12}) {
    PagedCache cache(DType::kBF16, page_size, 1, 64, 64, {200}, 1);
    cache.Fill(Pool());
    Prefill call(cache, 3, {200}, 2);
    call.chunks = {{0, 20, 6, 20}, {0, 85, 30, 85}, {0, 163, 20, 163}};
    call.mod.window = 10;
    cache.PoisonSlot(0, 90);
    call.Run(1);
    for (int row = 0; row < 200; ++row) {
      const bool sees = row >= 90 && row < 90 + 10;
      for (int head = 0; head < 3; ++head) {
        if (call.lse[static_cast<size_t>(row * 3 + head)] == -7.0f) continue;  // not queried
        EXPECT_EQ(std::isnan(call.lse[static_cast<size_t>(row * 3 + head)]), sees) << row;
        // On tensor cores rows beside those may get 0 · NaN.
        const bool beside = page_size == 16 && !sees && row >= 90 - 64 && row < 99 + 64;
        EXPECT_TRUE(beside || std::isnan(call.Out(row, head)[17]) == sees) << row;
      }
    }
  }
}

TEST(CudaAttentionPrefill, FreedPagesCountAsNotThereAndRowsThatSeeNothingGiveZeroAndMinusInfinity) {
  for (const int page_size : {16, 8, 12}) {
    PagedCache cache(DType::kBF16, page_size, 1, 64, 64, {100, 40}, 1);
    cache.Fill(Pool());
    // Positions 0 … 47 are gone: rows up to there see nothing. So is a page further on.
    for (int page = 0; page < 48 / page_size; ++page) cache.PageId(0, page) = -1;
    cache.PageId(0, 72 / page_size) = -1;
    Prefill call(cache, 3, {70, 5}, 2);
    call.chunks.push_back({-1, 75, 20, 7});  // padding
    call.rows += 20;
    call.q.resize(static_cast<size_t>(call.rows * call.p.q_stride), std::numeric_limits<float>::quiet_NaN());
    call.Clear();
    const std::vector<PrefillChunk> all = call.chunks;
    call.chunks.pop_back();
    call.RunReference();
    Prefill expected = call;
    for (int row = 75; row < 95; ++row) {
      std::fill_n(expected.Out(row, 0), 3 * 64, 0.0f);
      std::fill_n(&expected.lse[static_cast<size_t>(row * 3)], 3, -kInf);
    }
    EXPECT_EQ(expected.lse[17 * 3], -kInf);
    EXPECT_TRUE(std::isfinite(expected.lse[18 * 3]));
    call.chunks = all;
    call.Clear();
    call.Run(1);
    ExpectClose(call, expected);
    EXPECT_EQ(call.Out(17, 2)[63], 0.0f);
  }
}

TEST(CudaAttentionPrefill, ManyChunksInOneCallFindTheirTiles) {
  for (const int page_size : {16, 12}) {
    std::vector<int> lengths, tails;
    for (int s = 0; s < 36; ++s) {
      lengths.push_back(1 + s * 7 % 23);
      tails.push_back(s % 9 == 4 ? 0 : 1 + s % std::min(3, lengths.back()));
      tails.back() = std::min(tails.back(), lengths.back());
    }
    lengths[34] = tails[34] = 40;  // several tiles
    PagedCache cache(DType::kF16, page_size, 1, 64, 64, lengths, 1);
    cache.Fill(Pool());
    Prefill call(cache, 4, tails, 2);
    call.RunReference();
    const Prefill expected = call;
    call.Clear();
    call.Run(1);
    ExpectClose(call, expected);
  }
}

TEST(CudaAttentionPrefill, LogSumExpMayBeLeftOutAndNoChunksAreNoWork) {
  PagedCache cache(DType::kBF16, 16, 1, 64, 64, {20}, 1);
  cache.Fill(Pool());
  Prefill call(cache, 2, {20}, 2);
  AttentionPrefillParams p = call.Params();
  p.lse = nullptr;
  ASSERT_TRUE(cuda::AttentionPrefill(Stream{}, p, 20).ok());
  EXPECT_TRUE(std::isfinite(call.Out(19, 1)[0]));
  EXPECT_EQ(call.lse[0], -7.0f);
  call.Clear();
  p.num_chunks = 0;
  ASSERT_TRUE(cuda::AttentionPrefill(Stream{}, p, 20).ok());
  EXPECT_EQ(call.Out(0, 0)[0], -7.0f);
}

TEST(CudaAttentionPrefill, ConfigurationsAreOfTheFormatAlone) {
  const auto config = [](DType dtype, int page_size, int k_dim, int v_dim) {
    return AttentionPrefillConfig::For(*PageFormat::Create(dtype, page_size, 3, k_dim, v_dim));
  };
  EXPECT_EQ(config(DType::kBF16, 16, 128, 128).ToString(),
            "tensor cores, tiles of 128 rows, 128 threads, 82472 B shared");
  EXPECT_EQ(config(DType::kF16, 8, 256, 256).ToString(),
            "tensor cores, tiles of 64 rows, 128 threads, 82216 B shared");
  EXPECT_EQ(config(DType::kF32, 16, 128, 128).ToString(), "plain, tiles of 16 rows, 128 threads, 19456 B shared");
  EXPECT_TRUE(config(DType::kF16, 16, 64, 64).tensor_cores);
  EXPECT_TRUE(config(DType::kF16, 16, 96, 96).tensor_cores);
  EXPECT_FALSE(config(DType::kBF16, 12, 128, 128).tensor_cores);
  EXPECT_FALSE(config(DType::kBF16, 16, 80, 80).tensor_cores);
  EXPECT_FALSE(config(DType::kBF16, 16, 128, 64).tensor_cores);
  // Enough tiles for any cut: each chunk may leave one partly filled.
  const AttentionPrefillConfig c = config(DType::kBF16, 16, 128, 128);
  EXPECT_EQ(c.Tiles(32, 1, 4), 2);
  EXPECT_EQ(c.Tiles(2 * 33, 2, 4), 4);
}

TEST(CudaAttentionPrefill, RefusesWhatItCannotRun) {
  AttentionPrefillParams p;
  p.q_heads = 1;
  p.table.format = *PageFormat::Create(DType::kBF16, 40000, 1, 64, 64);
  Status status = cuda::AttentionPrefill(Stream{}, p, 1);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.ToString().find("40000"), std::string::npos);
  p.table.format = *PageFormat::Create(DType::kF32, 16, 1, 1024, 1024);
  status = cuda::AttentionPrefill(Stream{}, p, 1);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.ToString().find("1024"), std::string::npos);
  p.table.format = *PageFormat::Create(DType::kF32, 16, 2, 64, 64);
  EXPECT_EQ(cuda::AttentionPrefill(Stream{}, p, 1).code(), StatusCode::kInternal);
}

}  // namespace
}  // namespace quire

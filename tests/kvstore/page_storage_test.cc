#include "kvstore/page_storage.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <numeric>

#include "kernels/kv_append.h"
#include "tests/kvstore/test_cache.h"

namespace quire {
namespace {

TEST(PageStorage, LayersOfACacheGroupLieApart) {
  const CacheConfig config = TestCache::Config(3, 5);
  const std::vector<GroupCapacity> capacity = {{4, 2}, {6, 3}};
  const PageStorage storage = PageStorage::Create(config, capacity).value();
  EXPECT_EQ(storage.CacheGroupOf(0), 0);
  EXPECT_EQ(storage.CacheGroupOf(1), 1);
  EXPECT_EQ(storage.CacheGroupOf(2), 0);
  const PageFormat& f = storage.format(0);
  const auto distance = [&](void* LayerPages::*member) {
    return static_cast<std::byte*>(storage.Layer(2).*member) - static_cast<std::byte*>(storage.Layer(0).*member);
  };
  EXPECT_EQ(distance(&LayerPages::k), 4 * f.k_page_stride * 2);
  EXPECT_EQ(distance(&LayerPages::v), 4 * f.v_page_stride * 2);
  EXPECT_EQ(distance(&LayerPages::meta), 2 * f.meta_group_stride * 2);
  EXPECT_EQ(distance(&LayerPages::over), 2 * f.over_group_stride * 2);
  EXPECT_EQ(storage.Layer(2).codes - storage.Layer(0).codes, 2 * f.meta_group_stride);
  EXPECT_EQ(storage.kv_bytes() + storage.metadata_bytes(), CacheBytes(config, capacity));
}

TEST(PageStorage, WithoutMetadataThereIsNoMemoryForIt) {
  const PageStorage storage = PageStorage::Create(TestCache::Config(3, 5, false), {{4, 2}, {6, 3}}).value();
  EXPECT_EQ(storage.Layer(1).meta, nullptr);
  EXPECT_EQ(storage.Layer(1).over, nullptr);
  EXPECT_EQ(storage.Layer(1).codes, nullptr);
  EXPECT_EQ(storage.metadata_bytes(), 0);
}

TEST(PageStorage, MoreThanTheMachineHasIsAStatus) {
  CacheConfig config = TestCache::Config(64, 0);
  config.groups[0].k_dim = 1 << 20;
  EXPECT_EQ(PageStorage::Create(config, {{INT32_MAX, 1}, {1, 1}}).status().code(), StatusCode::kResourceExhausted);
}

TEST(PageStorageDeathTest, AnIdOutsideTheCapacityIsABug) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  PageStorage storage = PageStorage::Create(TestCache::Config(3, 5), {{4, 2}, {6, 3}}).value();
  ThreadPool pool(1);
  Context ctx;
  ctx.pool = &pool;
  const auto execute = [&](const CacheOp& op) { storage.Execute(ctx, {.ops = {op}, .pages = {1}}); };
  using Kind = CacheOp::Kind;
  EXPECT_DEATH(execute({.kind = Kind::kZeroPage, .cache_group = 0, .to = 4}), "CHECK");
  EXPECT_DEATH(execute({.kind = Kind::kZeroPage, .cache_group = 2, .to = 0}), "CHECK");
  EXPECT_DEATH(execute({.kind = Kind::kCopyPage, .cache_group = 1, .from = -1, .to = 0}), "CHECK");
  EXPECT_DEATH(execute({.kind = Kind::kCopyGroup, .cache_group = 1, .from = 0, .to = 1, .columns = 17}), "CHECK");
  EXPECT_DEATH(execute({.kind = Kind::kRecomputeMetadata, .to = 0, .columns = 2, .slots = 1}), "CHECK");
  EXPECT_DEATH((void)storage.Layer(3), "CHECK");
}

TEST(PageStorage, ForksAndTruncatesKeepEveryonesTokens) {
  // A story through partial pages and groups: page size 3, so that a group is 48 tokens.
  TestCache cache(TestCache::Config(3, 0, true, DType::kF32), {{80, 12}, {80, 12}}, 64, 2);
  std::map<SeqId, std::vector<uint32_t>> all;
  const auto append = [&](SeqId seq, int n) {
    const std::vector<uint32_t> tokens = cache.NewTokens(n);
    ASSERT_TRUE(cache.Append(seq, tokens).ok());
    all[seq].insert(all[seq].end(), tokens.begin(), tokens.end());
  };
  const auto check = [&](const char* when) {
    cache.Run();
    for (const auto& [seq, tokens] : all) ASSERT_TRUE(cache.Holds(seq, tokens)) << when << ", sequence " << seq;
    cache.books.CheckInvariants();
  };
  const SeqId a = cache.books.AddSequence(0).value();
  append(a, 50);
  check("a group and a partial page");
  const SeqId b = cache.books.Fork(a, 0).value();
  const SeqId c = cache.books.Fork(a, 0).value();
  all[b] = all[c] = all[a];
  append(b, 1);
  append(c, 7);
  check("forks written in one step");
  ASSERT_TRUE(cache.books.Truncate(b, 20).ok());
  all[b].resize(20);
  check("truncate into a shared page");
  append(b, 40);
  append(a, 2);
  check("written again");
  ASSERT_TRUE(cache.books.Truncate(a, 48).ok());
  all[a].resize(48);
  check("truncate to a group's end");
  cache.Free(c);
  all.erase(c);
  const SeqId d = cache.books.AddSequence(0).value();
  append(d, 60);
  append(a, 1);
  check("reused pages");
}

TEST(PageStorage, ANewPageIsZeroBeyondItsTokens) {
  TestCache cache(TestCache::Config(7, 0), {{4, 4}, {4, 4}}, 64);
  const SeqId a = cache.books.AddSequence(0).value();
  ASSERT_TRUE(cache.Append(a, cache.NewTokens(9)).ok());
  cache.Run();
  cache.Free(a);
  cache.Run();  // spoils what a has left
  const SeqId b = cache.books.AddSequence(0).value();
  ASSERT_TRUE(cache.Append(b, cache.NewTokens(1)).ok());
  cache.Run();
  const PageFormat& f = cache.storage.format(0);
  const LayerPages layer = cache.storage.Layer(2);
  const int32_t page = cache.books.Table(b, 0).pages[0];
  for (int h = 0; h < f.kv_heads; ++h) {
    const BF16* k = static_cast<const BF16*>(layer.k) + page * f.k_page_stride + h * f.k_head_stride;
    const BF16* v = static_cast<const BF16*>(layer.v) + page * f.v_page_stride + h * f.v_head_stride;
    for (int slot = 1; slot < 7; ++slot) {
      for (int c = 0; c < f.k_dim; ++c) EXPECT_EQ(k[f.KOffset(slot, c)].bits, 0);
      for (int c = 0; c < f.v_dim; ++c) EXPECT_EQ(v[f.VOffset(slot, c)].bits, 0);
    }
  }
}

// Reads what FillRandom has written, in logical order.
struct Filled {
  std::vector<float> k, v;  // [token][kv_head][dim]
};

Filled ReadAll(const PageStorage& storage, int layer, const std::vector<int32_t>& pages, int64_t length) {
  const PageFormat& f = storage.format(storage.CacheGroupOf(layer));
  const LayerPages memory = storage.Layer(layer);
  Filled filled;
  VisitFloatDType(f.dtype, [&]<typename T>(T) {
    for (int64_t t = 0; t < length; ++t) {
      const int64_t page = pages[static_cast<size_t>(t / f.page_size)];
      const int slot = static_cast<int>(t % f.page_size);
      for (int h = 0; h < f.kv_heads; ++h) {
        const T* k = static_cast<const T*>(memory.k) + page * f.k_page_stride + h * f.k_head_stride;
        const T* v = static_cast<const T*>(memory.v) + page * f.v_page_stride + h * f.v_head_stride;
        for (int c = 0; c < f.k_dim; ++c) filled.k.push_back(ToFloat(k[f.KOffset(slot, c)]));
        for (int c = 0; c < f.v_dim; ++c) filled.v.push_back(ToFloat(v[f.VOffset(slot, c)]));
      }
    }
  });
  return filled;
}

CacheConfig FillConfig(int page_size, DType dtype) {
  CacheConfig config;
  config.page_size = page_size;
  config.codes = true;
  config.groups = {{.layers = {1, 4}, .kv_heads = 2, .k_dim = 8, .v_dim = 6, .window = 0, .dtype = dtype}};
  return config;
}

// The ops of a rank without heads: ids are checked, and nothing is there to be written.
TEST(PageStorage, WithoutKvHeadsOpsAreObeyedAndTakeNoMemory) {
  CacheConfig config = FillConfig(4, DType::kBF16);
  config.groups[0].kv_heads = 0;
  PageStorage storage = PageStorage::Create(config, {{INT32_MAX, 1 << 20}}).value();
  ThreadPool pool(2);
  Context ctx;
  ctx.pool = &pool;
  using Kind = CacheOp::Kind;
  CacheOps ops;
  ops.pages = {3, 5};
  for (const Kind kind :
       {Kind::kZeroPage, Kind::kCopyPage, Kind::kResetGroup, Kind::kCopyGroup, Kind::kRecomputeMetadata}) {
    CacheOp op;
    op.kind = kind;
    op.from = 3;
    op.to = 5;
    op.columns = 2;
    op.slots = 1;
    ops.ops.push_back(op);
  }
  storage.Execute(ctx, ops);
  EXPECT_TRUE(storage.FillRandom(ctx, 0, std::vector<int32_t>{3, 5}, std::vector<int32_t>{7}, 8, 1).ok());
  EXPECT_EQ(storage.kv_bytes(), 0);
  EXPECT_EQ(storage.metadata_bytes(), 0);
  EXPECT_EQ(storage.format(0).kv_heads, 0);
  EXPECT_EQ(storage.Layer(4).k, nullptr);
  ops.ops[0].to = -1;
  EXPECT_DEATH(storage.Execute(ctx, ops), "CHECK");
}

TEST(FillRandom, IsStandardNormalAndDiffersBetweenLayersAndSeeds) {
  const int64_t length = 5000;
  const CacheConfig config = FillConfig(16, DType::kF32);
  PageStorage storage = PageStorage::Create(config, CapacityFor(config, length, 1, 1)).value();
  ThreadPool pool(2);
  Context ctx;
  ctx.pool = &pool;
  std::vector<int32_t> pages(313), groups(20);
  std::iota(pages.begin(), pages.end(), 0);
  std::iota(groups.begin(), groups.end(), 0);
  ASSERT_TRUE(storage.FillRandom(ctx, 0, pages, groups, length, 7).ok());
  const Filled first = ReadAll(storage, 1, pages, length), other = ReadAll(storage, 4, pages, length);
  for (const std::vector<float>* values : {&first.k, &first.v, &other.k, &other.v}) {
    double sum = 0, squares = 0, fourth = 0;
    for (float x : *values) {
      sum += x;
      squares += x * x;
      fourth += x * x * x * x;
    }
    const double n = static_cast<double>(values->size());
    EXPECT_NEAR(sum / n, 0, 5 / std::sqrt(n));
    EXPECT_NEAR(squares / n, 1, 8 / std::sqrt(n));
    EXPECT_NEAR(fourth / n, 3, 60 / std::sqrt(n));
  }
  const auto correlation = [](const std::vector<float>& a, const std::vector<float>& b) {
    return std::inner_product(a.begin(), a.end(), b.begin(), 0.0) / static_cast<double>(a.size());
  };
  EXPECT_LT(std::abs(correlation(first.k, other.k)), 5 / std::sqrt(80000.0));
  ASSERT_TRUE(storage.FillRandom(ctx, 0, pages, groups, length, 8).ok());
  EXPECT_LT(std::abs(correlation(first.k, ReadAll(storage, 1, pages, length).k)), 5 / std::sqrt(80000.0));
}

TEST(FillRandom, DependsOnNeitherIdsNorThreads) {
  const int64_t length = 133;
  const CacheConfig config = FillConfig(3, DType::kBF16);
  std::vector<Filled> filled;
  for (int run = 0; run < 2; ++run) {
    PageStorage storage = PageStorage::Create(config, {{60, 9}}).value();
    ThreadPool pool(run + 1);
    Context ctx;
    ctx.pool = &pool;
    std::vector<int32_t> pages(45), groups(3);
    std::iota(pages.begin(), pages.end(), run * 13);
    std::iota(groups.begin(), groups.end(), run * 4);
    if (run == 1) std::reverse(pages.begin(), pages.end());
    ASSERT_TRUE(storage.FillRandom(ctx, 0, pages, groups, length, 99).ok());
    filled.push_back(ReadAll(storage, 4, pages, length));
  }
  EXPECT_EQ(filled[0].k, filled[1].k);
  EXPECT_EQ(filled[0].v, filled[1].v);
}

TEST(FillRandom, HeadsOfARankAreThoseOfTheWholeModel) {
  CacheConfig config = FillConfig(4, DType::kF16);
  PageStorage whole = PageStorage::Create(config, {{5, 1}}).value();
  config.groups[0].kv_heads = 1;
  PageStorage rank = PageStorage::Create(config, {{5, 1}}).value();
  ThreadPool pool(1);
  Context ctx;
  ctx.pool = &pool;
  const std::vector<int32_t> pages = {0, 1, 2, 3, 4}, groups = {0};
  ASSERT_TRUE(whole.FillRandom(ctx, 0, pages, groups, 18, 3).ok());
  ASSERT_TRUE(rank.FillRandom(ctx, 0, pages, groups, 18, 3, /*first_kv_head=*/1).ok());
  const Filled all = ReadAll(whole, 1, pages, 18), local = ReadAll(rank, 1, pages, 18);
  for (size_t t = 0; t < 18; ++t) {
    for (size_t c = 0; c < 8; ++c) EXPECT_EQ(local.k[t * 8 + c], all.k[(t * 2 + 1) * 8 + c]);
  }
}

TEST(FillRandom, LeavesTheMetadataThatAppendingWould) {
  // Appends the same values to a second cache and compares the bits of everything a sequence of that length owns.
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (int page_size : {1, 3, 16}) {
      const int64_t length = 17 * page_size + std::min(2, page_size);
      const CacheConfig config = FillConfig(page_size, dtype);
      ThreadPool pool(2);
      Context ctx;
      ctx.pool = &pool;
      PageStorage filled = PageStorage::Create(config, {{24, 3}}).value();
      PageStorage appended = PageStorage::Create(config, {{24, 3}}).value();
      const int64_t num_pages = (length + page_size - 1) / page_size;
      std::vector<int32_t> pages(static_cast<size_t>(num_pages)), groups = {2, 0};
      std::iota(pages.rbegin(), pages.rend(), 1);
      ASSERT_TRUE(filled.FillRandom(ctx, 0, pages, groups, length, 5).ok());
      const PageFormat& f = filled.format(0);
      for (int layer : {1, 4}) {
        const Filled values = ReadAll(filled, layer, pages, length);
        const std::vector<int32_t> page_begin = {0, static_cast<int32_t>(num_pages)}, group_begin = {0, 2};
        std::vector<int32_t> row_seq(static_cast<size_t>(length), 0), row_pos(static_cast<size_t>(length));
        std::iota(row_pos.begin(), row_pos.end(), 0);
        KvAppendParams params;
        params.pages = appended.Layer(layer);
        params.table = {f, pages.data(), page_begin.data(), groups.data(), group_begin.data(), 1};
        params.k = values.k.data();
        params.k_stride = f.kv_heads * f.k_dim;
        params.v = values.v.data();
        params.v_stride = f.kv_heads * f.v_dim;
        params.row_seq = row_seq.data();
        params.row_pos = row_pos.data();
        params.rows = length;
        KvAppend(ctx, params);
        VisitFloatDType(dtype, [&]<typename T>(T) {
          const auto at = [](const void* base, int64_t i) { return ToFloat(static_cast<const T*>(base)[i]); };
          const LayerPages x = filled.Layer(layer), y = appended.Layer(layer);
          for (size_t g = 0; g < groups.size(); ++g) {
            for (int h = 0; h < f.kv_heads; ++h) {
              const int64_t meta = groups[g] * f.meta_group_stride + h * f.meta_head_stride;
              const int64_t over = groups[g] * f.over_group_stride + h * f.over_head_stride;
              const int columns = g == 0 ? 16 : static_cast<int>(num_pages) - 16;
              for (int which = 0; which < 2; ++which) {
                for (int c = 0; c < f.k_dim; ++c) {
                  EXPECT_EQ(at(x.over, over + f.OverOffset(which, c)), at(y.over, over + f.OverOffset(which, c)));
                  for (int column = 0; column < columns; ++column) {
                    const int64_t i = meta + f.MetaOffset(which, c, column);
                    ASSERT_EQ(at(x.meta, i), at(y.meta, i)) << "page " << g * 16 + static_cast<size_t>(column);
                    if (g == 0) {
                      ASSERT_EQ(x.codes[i], y.codes[i]) << "page " << column;
                    }
                  }
                }
              }
            }
          }
        });
        const size_t k_bytes = static_cast<size_t>(24 * f.k_page_stride * ElementSize(dtype));
        EXPECT_EQ(std::memcmp(filled.Layer(layer).k, appended.Layer(layer).k, k_bytes), 0);
        const size_t v_bytes = static_cast<size_t>(24 * f.v_page_stride * ElementSize(dtype));
        EXPECT_EQ(std::memcmp(filled.Layer(layer).v, appended.Layer(layer).v, v_bytes), 0);
      }
    }
  }
}

}  // namespace
}  // namespace quire

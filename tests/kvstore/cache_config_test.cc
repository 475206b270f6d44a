#include "kvstore/cache_config.h"

#include <gtest/gtest.h>

#include <string>

namespace quire {
namespace {

CacheConfig SmolLm() {
  CacheConfig config;
  config.groups = {{.layers = {}, .kv_heads = 3, .k_dim = 64, .v_dim = 64, .window = 0, .dtype = DType::kBF16}};
  for (int layer = 0; layer < 30; ++layer) config.groups[0].layers.push_back(layer);
  return config;
}

// A Gemma-like one: every third layer sees everything, the others a window.
CacheConfig Mixed(int page_size, int window) {
  CacheConfig config;
  config.page_size = page_size;
  config.groups = {
      {.layers = {2, 5}, .kv_heads = 1, .k_dim = 4, .v_dim = 6, .window = 0, .dtype = DType::kF32},
      {.layers = {0, 1, 3, 4}, .kv_heads = 2, .k_dim = 8, .v_dim = 8, .window = window, .dtype = DType::kF16}};
  return config;
}

TEST(CacheConfig, BytesOfAPage) {
  // 30 layers, 3 KV heads, 16 slots, 64 + 64 channels of 2 bytes; metadata: 2 bounds of 64 channels, 16 columns and 1
  // over.
  EXPECT_EQ(PageBytes(SmolLm(), 0), 30 * 3 * 16 * 128 * 2);
  EXPECT_EQ(MetadataGroupBytes(SmolLm(), 0), 30 * 3 * 2 * 64 * (16 + 1) * 2);
  CacheConfig config = SmolLm();
  config.codes = true;
  EXPECT_EQ(MetadataGroupBytes(config, 0), 30 * 3 * 2 * 64 * ((16 + 1) * 2 + 16));
  config.metadata = false;
  EXPECT_EQ(MetadataGroupBytes(config, 0), 0);
  // Three slots of V in bf16 take two words a channel.
  config.page_size = 3;
  EXPECT_EQ(PageBytes(config, 0), 30 * 3 * (3 * 64 + 4 * 64) * 2);
}

TEST(CacheConfig, RefusesWhatCannotBe) {
  const auto message = [](auto change) {
    CacheConfig config = Mixed(16, 32);
    change(config);
    const Status status = ValidateCacheConfig(config);
    return status.code() == StatusCode::kInvalidArgument ? status.message() : "accepted";
  };
  EXPECT_TRUE(ValidateCacheConfig(Mixed(16, 32)).ok());
  EXPECT_NE(message([](CacheConfig& c) { c.groups.clear(); }).find("without cache groups"), std::string::npos);
  EXPECT_NE(message([](CacheConfig& c) { c.groups[0].layers.clear(); }).find("no layers"), std::string::npos);
  EXPECT_NE(message([](CacheConfig& c) { c.groups[0].layers = {1}; }).find("layer 1"), std::string::npos);
  EXPECT_NE(message([](CacheConfig& c) { c.groups[0].layers = {-1}; }).find("layer -1"), std::string::npos);
  EXPECT_NE(message([](CacheConfig& c) { c.groups[1].window = -5; }).find("window -5"), std::string::npos);
  EXPECT_NE(message([](CacheConfig& c) { c.groups[1].dtype = DType::kI8; }).find("float32"), std::string::npos);
  EXPECT_NE(message([](CacheConfig& c) { c.page_size = 0; }).find("page size 0"), std::string::npos);
  EXPECT_NE(message([](CacheConfig& c) { c.groups[1].k_dim = 7; }).find("multiple of 2"), std::string::npos);
}

TEST(CacheConfig, AWindowBoundsWhatASequenceHolds) {
  const CacheConfig config = Mixed(16, 32);
  EXPECT_EQ(MaxLivePages(config, 0, 1000, 8), 63);
  EXPECT_EQ(MaxLivePages(config, 1, 1000, 8), (32 + 8 - 1 + 15) / 16 + 1);
  EXPECT_EQ(MaxLivePages(config, 1, 20, 8), 2);
  EXPECT_EQ(MaxLiveMetadataGroups(config, 0, 1000, 8), 4);
  EXPECT_EQ(MaxLiveMetadataGroups(config, 1, 1000, 8), 2);
}

TEST(PlanCapacity, TakesAllThatFitsAndNoMore) {
  const CacheConfig config = SmolLm();
  for (int64_t bytes : {int64_t{40} << 20, int64_t{1} << 30, int64_t{100} << 30}) {
    const Result<std::vector<GroupCapacity>> plan = PlanCapacity(config, bytes, 16, 512);
    ASSERT_TRUE(plan.ok()) << plan.status().ToString();
    EXPECT_LE(CacheBytes(config, *plan), bytes);
    EXPECT_EQ((*plan)[0].metadata_groups, MetadataGroupsFor(config, 0, (*plan)[0].pages, 16));
    std::vector<GroupCapacity> more = *plan;
    ++more[0].pages;
    more[0].metadata_groups = MetadataGroupsFor(config, 0, more[0].pages, 16);
    EXPECT_GT(CacheBytes(config, more), bytes);
  }
}

TEST(PlanCapacity, WindowedGroupsStopGrowingAtTheirWindows) {
  const CacheConfig config = Mixed(16, 64);
  const Result<std::vector<GroupCapacity>> plan = PlanCapacity(config, 64 << 20, 4, 32);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ((*plan)[1].pages, 4 * MaxLivePages(config, 1, INT32_MAX, 32));
  EXPECT_GT((*plan)[0].pages, 10000);
  EXPECT_LE(CacheBytes(config, *plan), 64 << 20);
  // With little memory both kinds get the same.
  const Result<std::vector<GroupCapacity>> small = PlanCapacity(config, 100000, 4, 32);
  ASSERT_TRUE(small.ok());
  EXPECT_EQ((*small)[0].pages, (*small)[1].pages);
}

TEST(PlanCapacity, TooLittleMemoryIsAStatusWithNumbers) {
  const Result<std::vector<GroupCapacity>> plan = PlanCapacity(SmolLm(), 1000, 1, 512);
  EXPECT_EQ(plan.status().code(), StatusCode::kResourceExhausted);
  EXPECT_NE(plan.status().message().find("1000"), std::string::npos);
  EXPECT_EQ(PlanCapacity(SmolLm(), 1 << 30, 0, 512).status().code(), StatusCode::kInvalidArgument);
}

// A rank without heads must never be the one with the least room.
TEST(PlanCapacity, WithoutKvHeadsPagesTakeNothingAndIdsAreTheOnlyLimit) {
  CacheConfig config = Mixed(16, 64);
  for (CacheGroupConfig& group : config.groups) group.kv_heads = 0;
  ASSERT_TRUE(ValidateCacheConfig(config).ok());
  for (int g = 0; g < 2; ++g) {
    EXPECT_EQ(PageBytes(config, g), 0);
    EXPECT_EQ(MetadataGroupBytes(config, g), 0);
  }
  for (const int64_t bytes : {int64_t{0}, int64_t{1} << 40}) {
    const Result<std::vector<GroupCapacity>> plan = PlanCapacity(config, bytes, 4, 32);
    ASSERT_TRUE(plan.ok()) << plan.status().ToString();
    const std::vector<GroupCapacity> others = *PlanCapacity(Mixed(16, 64), int64_t{1} << 40, 4, 32);
    for (size_t g = 0; g < 2; ++g) {
      EXPECT_GE((*plan)[g].pages, others[g].pages);
      EXPECT_GE((*plan)[g].metadata_groups, others[g].metadata_groups);
    }
    EXPECT_EQ(CacheBytes(config, *plan), 0);
  }
  config.groups[0].kv_heads = -1;
  EXPECT_FALSE(ValidateCacheConfig(config).ok());
}

TEST(CapacityFor, HoldsExactlyTheSequencesAskedFor) {
  EXPECT_EQ(CapacityFor(Mixed(16, 32), 1000, 3, 8),
            (std::vector<GroupCapacity>{{.pages = 3 * 63, .metadata_groups = 3 * 4},
                                        {.pages = 3 * 4, .metadata_groups = 3 * 2}}));
}

}  // namespace
}  // namespace quire

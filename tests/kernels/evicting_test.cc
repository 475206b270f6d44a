// Which slot an evicting policy gives up, from its map alone.
#include "kernels/selection/evicting.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

namespace quire {
namespace {

std::unique_ptr<AttentionPolicy> Make(const std::string& spec) {
  return MakePolicy(AttentionSpec::Parse(spec).value(), 16).value();
}

struct Map {
  Map(int kv_heads, int64_t capacity) : positions(kv_heads * capacity), weights(kv_heads * capacity) {
    map = {positions.data(), weights.data(), kv_heads, capacity};
    for (int head = 0; head < kv_heads; ++head) std::iota(map.Positions(head), map.Positions(head) + capacity, 0);
  }
  std::vector<int32_t> positions;
  std::vector<float> weights;
  SlotMap map;
};

TEST(EvictingPolicy, TheLightestTokenLeavesThatIsNeitherASinkNorRecent) {
  const auto policy = Make("tova:evict=true:token_budget=8:sink_tokens=2:recent_tokens=2");
  Map m(2, 8);
  m.weights = {0, 0, .5, .2, .3, .2, 0, 0, /* head 1 */ 9, 9, 3, 4, 2, 5, 0, 0};
  EXPECT_EQ(policy->Evict(8, 0, &m.map), 3);  // of the equal ones the earlier; 6 and 7 are recent
  EXPECT_EQ(policy->Evict(8, 1, &m.map), 4);
  EXPECT_EQ(m.map.Positions(0)[3], 8);
  EXPECT_EQ(m.map.Positions(1)[4], 8);
  EXPECT_EQ(m.map.Positions(1)[3], 3);
  EXPECT_EQ(m.weights[3], 0.0f);
  m.weights[5] = m.weights[6] = .2f;
  EXPECT_EQ(policy->Evict(9, 0, &m.map), 5);  // 6 may leave now, but 5 is earlier
  // The order of slots is not that of positions: slot 3 holds 8 and slot 5 holds 9.
  m.weights = {0, 0, .5, .1, .3, .1, .4, .1, 0, 0, 0, 0, 0, 0, 0, 0};
  EXPECT_EQ(policy->Evict(12, 0, &m.map), 7);  // position 7, in front of 8 and 9
  EXPECT_EQ(policy->Evict(13, 0, &m.map), 3);
}

TEST(EvictingPolicy, NansLeaveLast) {
  const auto policy = Make("h2o:evict=true:token_budget=4:sink_tokens=0:recent_tokens=1");
  Map m(1, 4);
  m.weights = {NAN, 5, 7, 0};
  EXPECT_EQ(policy->Evict(4, 0, &m.map), 1);
  m.weights = {NAN, NAN, NAN, NAN};
  m.positions = {6, 4, 5, 3};
  EXPECT_EQ(policy->Evict(7, 0, &m.map), 3);
}

TEST(EvictingPolicy, H2oAddsUpAndTovaLooksAtTheLastRow) {
  const auto h2o = Make("h2o:evict=true:token_budget=8:sink_tokens=0"), tova = Make("tova:evict=true:token_budget=8");
  EXPECT_EQ(h2o->Declare().history_rows, 0);
  EXPECT_EQ(tova->Declare().history_rows, 1);
  const std::vector<float> first = {.5, .25, .25}, second = {.125, .5, 0, .25};
  Map a(2, 8), b(2, 8);
  for (const auto& [policy, m] : {std::pair{h2o.get(), &a}, std::pair{tova.get(), &b}}) {
    policy->RememberSlots(first.data(), 3, 1, &m->map);
    policy->RememberSlots(second.data(), 4, 1, &m->map);
    for (int slot = 0; slot < 8; ++slot) EXPECT_EQ(m->map.Weights(0)[slot], 0.0f);
  }
  EXPECT_EQ(std::vector<float>(a.map.Weights(1), a.map.Weights(1) + 5), (std::vector<float>{.625, .75, .25, .25, 0}));
  EXPECT_EQ(std::vector<float>(b.map.Weights(1), b.map.Weights(1) + 5), (std::vector<float>{.125, .5, 0, .25, 0}));
}

TEST(EvictingPolicy, StreamingWritesOverItsRing) {
  const auto policy = Make("streaming:evict=true:token_budget=10:sink_tokens=3");
  EXPECT_EQ(policy->capacity(), 10);
  EXPECT_TRUE(policy->CountsInside());
  EXPECT_FALSE(policy->Declare().slot_map);
  std::vector<int64_t> held(10);
  std::iota(held.begin(), held.end(), 0);
  for (int64_t position = 10; position < 100; ++position) {
    const int32_t slot = policy->Evict(position, 0, nullptr);
    ASSERT_GE(slot, 3);
    ASSERT_LT(slot, 10);
    ASSERT_EQ(held[static_cast<size_t>(slot)], std::max<int64_t>(3, position - 7)) << "the oldest leaves";
    held[static_cast<size_t>(slot)] = position;
    EXPECT_EQ(policy->WindowAt(position + 1).shift, position + 1 - 10);
    EXPECT_EQ(policy->WindowAt(position + 1).sinks, 3);
    EXPECT_EQ(policy->WindowAt(position + 1).window, 7);
  }
  EXPECT_EQ(policy->Evict((int64_t{1} << 30) - 1, 0, nullptr), 3 + ((int64_t{1} << 30) - 4) % 7);
}

TEST(EvictingPolicy, DefaultsAreThePapersAndSinks) {
  for (const char* name : {"h2o", "tova"}) {
    const auto policy = Make(std::string(name) + ":evict=true:token_budget=12");
    EXPECT_EQ(policy->capacity(), 12);
    EXPECT_FALSE(policy->CountsInside());
    EXPECT_TRUE(policy->IsDense(12, 0, 16));
    EXPECT_FALSE(policy->IsDense(13, 0, 16));
    Map m(1, 12);
    EXPECT_EQ(policy->Evict(12, 0, &m.map), 4);  // four sinks; h2o: 6 … 11 are recent
    m.weights.assign(12, 1);
    m.weights[11] = 0;
    EXPECT_EQ(policy->Evict(13, 0, &m.map), std::string(name) == "h2o" ? 5 : 11);
  }
  EXPECT_EQ(Make("h2o")->capacity(), 0);
  EXPECT_EQ(Make("streaming:evict=false")->capacity(), 0);
}

// As benchmarks have it: whatever must be kept by its position is there, and something may leave.
TEST(EvictingPolicy, ASequenceThatHasKeptItsFirstAndLatestHasRoomForTheNext) {
  for (const auto& [sinks, recent, budget] : std::vector<std::array<int64_t, 3>>{
           {4, 0, 5}, {0, 0, 1}, {10, 10, 21}, {20, 4, 25}, {2, 22, 25}, {4, 128, 256}}) {
    const auto policy = MakePolicy(
        *AttentionSpec::Parse("h2o:evict=true:token_budget=" + std::to_string(budget) +
                              ":sink_tokens=" + std::to_string(sinks) + ":recent_tokens=" + std::to_string(recent)),
        16);
    ASSERT_TRUE(policy.ok()) << policy.status().ToString();
    std::vector<int32_t> positions(static_cast<size_t>(budget), -1);
    std::vector<float> weights(static_cast<size_t>(budget), 1.0f);
    SlotMap map{positions.data(), weights.data(), 1, budget};
    for (const int64_t length : {budget, budget + 1, budget + 1000}) {
      KeepFirstAndLatest(length, map);
      EXPECT_TRUE(std::is_sorted(positions.begin(), positions.end()));
      EXPECT_TRUE(std::adjacent_find(positions.begin(), positions.end()) == positions.end());
      EXPECT_EQ(positions[0], 0);
      EXPECT_EQ(positions.back(), budget == 1 ? 0 : length - 1);
      const int32_t slot = (*policy)->Evict(length, 0, &map);
      EXPECT_EQ(positions[static_cast<size_t>(slot)], length);
    }
  }
}

}  // namespace
}  // namespace quire

#include "core/engine/step_plan.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

namespace quire {
namespace {

PlanLimits Limits() {
  PlanLimits limits;
  limits.slots = 4;
  limits.cache_groups = 2;
  limits.max_rows = 16;
  limits.max_logit_rows = 6;
  limits.vocab = 100;
  limits.max_length = 64;
  return limits;
}

StepPlan Sample() {
  StepPlan plan;
  plan.step = 77;
  plan.ends = {3};
  SlotStart start;
  start.slot = 0;
  start.sequence = 2;
  start.output_begin = 3;
  start.tokens = {5, 6, 7, 8};
  start.sampler.temperature = 0.5f;
  start.sampler.seed = 0x123456789abcdef0u;
  start.sampler.logprobs = 5;
  start.sampler.logit_bias = {{3, -1.5f}, {9, 2}};
  start.sampler.masked_ids = {1, 2};
  start.attention = "quest:token_budget=64";
  start.sampler.min_tokens = 4;
  plan.starts.push_back(start);
  plan.forks.push_back({0, 3, 1, "sparq"});
  plan.forks.push_back({0, 2, 2});
  plan.cache_ops.ops.push_back({.kind = CacheOp::Kind::kZeroPage, .cache_group = 0, .to = 5});
  plan.cache_ops.ops.push_back({.kind = CacheOp::Kind::kRecomputeMetadata,
                                .cache_group = 1,
                                .to = 5,
                                .columns = 2,
                                .slots = 3,
                                .pages_begin = 0});
  plan.cache_ops.pages = {4, 9};
  plan.table_deltas.push_back({0, 1, 0, 4, 2, 2, 0});
  plan.table_values = {11, 12};
  plan.fills.push_back({1, 0, 10, 42});
  plan.chunks.push_back({1, 10, 1, 1, 11});
  plan.chunks.push_back({0, 0, 4, 0, 4});
  plan.logit_rows = {0, 3, 4};
  plan.samples = {{1, 0, -1}, {0, 2, 7}};
  plan.scores = {{0, 1, 3, 2}};
  return plan;
}

TEST(StepPlan, SerializesAndParsesToTheSamePlan) {
  const StepPlan plan = Sample();
  EXPECT_EQ(plan.rows(), 5);
  std::vector<uint8_t> bytes, again;
  plan.Serialize(&bytes);
  auto parsed = StepPlan::Parse(bytes, Limits());
  ASSERT_TRUE(parsed.ok()) << parsed.status().ToString();
  EXPECT_EQ(*parsed, plan);
  parsed->Serialize(&again);
  EXPECT_EQ(bytes, again);
  StepPlan empty;
  empty.Serialize(&bytes);
  ASSERT_TRUE(StepPlan::Parse(bytes, Limits()).ok());
}

TEST(StepPlan, EveryCutAndAnExtraByteAreRefused) {
  std::vector<uint8_t> bytes;
  Sample().Serialize(&bytes);
  for (size_t n = 0; n < bytes.size(); ++n) {
    const auto parsed = StepPlan::Parse({bytes.data(), n}, Limits());
    ASSERT_FALSE(parsed.ok()) << "cut at " << n;
    ASSERT_EQ(parsed.status().code(), StatusCode::kInvalidArgument);
  }
  bytes.push_back(0);
  EXPECT_FALSE(StepPlan::Parse(bytes, Limits()).ok());
}

TEST(StepPlan, NamesOutsideTheLimitsAreRefused) {
  const auto refused = [](auto&& change) {
    StepPlan plan = Sample();
    change(plan);
    std::vector<uint8_t> bytes;
    plan.Serialize(&bytes);
    return StepPlan::Parse(bytes, Limits()).status().code() == StatusCode::kInvalidArgument;
  };
  EXPECT_FALSE(refused([](StepPlan&) {}));
  EXPECT_TRUE(refused([](StepPlan& p) { p.ends[0] = 4; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.starts[0].slot = -1; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.starts[0].tokens[1] = 100; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.starts[0].tokens.resize(65, 1); }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.starts[0].output_begin = 5; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.forks[0].to = 9; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.cache_ops.ops[0].cache_group = 2; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.cache_ops.ops[1].columns = 3; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.table_deltas[0].count = 3; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.table_deltas[0].begin = 1; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.table_deltas[0].size = 1000000; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.fills[0].length = 65; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.chunks[0].rows = 2; }));
  EXPECT_TRUE(refused([](StepPlan& p) { std::swap(p.chunks[0], p.chunks[1]); }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.chunks[1].rows = 64; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.logit_rows = {3, 0}; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.logit_rows[2] = 5; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.samples[1].slot = 1; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.samples[0].logit = 3; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.samples[1].forced = 100; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.scores[0].position = 64; }));
}

TEST(StepPlan, DamagedBytesNeverCrash) {
  std::vector<uint8_t> good;
  Sample().Serialize(&good);
  std::mt19937 rng(4711);
  int parsed_anyway = 0;
  for (int trial = 0; trial < 20000; ++trial) {
    std::vector<uint8_t> bytes = good;
    for (int n = 1 + static_cast<int>(rng() % 4); n > 0; --n) {
      const size_t at = rng() % bytes.size();
      if (rng() % 2 == 0) {
        bytes[at] = static_cast<uint8_t>(rng());
      } else {
        const uint32_t word = rng() % 3 == 0 ? 0xffffffffu : rng();
        std::memcpy(bytes.data() + std::min(at, bytes.size() - 4), &word, 4);
      }
    }
    if (rng() % 4 == 0) bytes.resize(rng() % (bytes.size() + 1));
    auto parsed = StepPlan::Parse(bytes, Limits());
    if (!parsed.ok()) continue;
    ++parsed_anyway;
    ASSERT_TRUE(parsed->Check(Limits()).ok());
  }
  EXPECT_GT(parsed_anyway, 0);  // a changed seed, say, is as good as another
}

}  // namespace
}  // namespace quire

// The cost model of `auto` against counting: its crossover is where its own two lines cross, its lines are the formula
// by hand, and the policy obeys it.
#include "kernels/selection/cost_model.h"

#include <gtest/gtest.h>

#include <random>

#include "tests/kernels/selecting.h"

namespace quire {
namespace {

using namespace quire::testing;  // NOLINT: this file tests nothing else

constexpr int64_t kNever = AttentionCostModel::kNever;

TEST(AttentionCostModel, StepsCostWhatTheFormulaSays) {
  // 64 channels of f32: 512 bytes a token, 512 a page.
  const PolicyShape shape{8, 64, 64, DType::kF32, 1};
  const AttentionCostModel model({.dense_byte = 2, .sparse_byte = 3, .select_byte = 5, .fixed = 7}, shape, 100, 0.25);
  EXPECT_EQ(model.Dense(1000), 1000 * 512 * 2);
  EXPECT_EQ(model.Sparse(1000), 7 + 1000 / 8 * 512 * 5 + 250 * 512 * 3);
  EXPECT_EQ(model.Sparse(200), 7 + 200 / 8 * 512 * 5 + 100 * 512 * 3);
  // K wider than V: metadata is K's.
  const AttentionCostModel uneven({.dense_byte = 1, .sparse_byte = 1, .select_byte = 1}, {16, 96, 32, DType::kBF16, 1},
                                  10, 0);
  EXPECT_EQ(uneven.Dense(32), 32 * 256);
  EXPECT_EQ(uneven.Sparse(32), 2 * 384 + 10 * 256);
}

TEST(AttentionCostModel, TheCrossoverOfEqualCostsIsTheBudgetAndItsShareOfMetadata) {
  const AttentionCosts equal{.dense_byte = 1, .sparse_byte = 1, .select_byte = 1};
  // n > budget + n/16.
  EXPECT_EQ(AttentionCostModel(equal, {}, 1500, 0).Crossover(), 1601);
  EXPECT_EQ(AttentionCostModel(equal, {}, 15, 0).Crossover(), 17);
  // A token to a page: the metadata is as large as K and V.
  PolicyShape one;
  one.page_size = 1;
  EXPECT_EQ(AttentionCostModel(equal, one, 1500, 0).Crossover(), kNever);
  // A budget of 15/16 of the length grows as fast as the length does.
  EXPECT_EQ(AttentionCostModel(equal, {}, 1500, 15.0 / 16).Crossover(), kNever);
  EXPECT_EQ(AttentionCostModel(equal, {}, 1500, 0.5).Crossover(), 1601);
  // Nothing is saved at lengths that the budget holds.
  EXPECT_EQ(AttentionCostModel({.dense_byte = 9, .sparse_byte = 1, .select_byte = 1}, {}, 1500, 0).Crossover(), 1501);
  // A fixed cost is worth so many tokens, fewer of wide heads.
  const AttentionCosts fixed{.dense_byte = 1, .sparse_byte = 1, .select_byte = 0, .fixed = 51200};
  EXPECT_EQ(AttentionCostModel(fixed, {}, 1000, 0).Crossover(), 1101);
  EXPECT_EQ(AttentionCostModel(fixed, {16, 64, 64, DType::kBF16, 4}, 1000, 0).Crossover(), 1201);
}

TEST(AttentionCostModel, TheCrossoverIsWhereCountingFindsIt) {
  std::mt19937_64 random(1);
  const auto between = [&](double low, double high) { return std::uniform_real_distribution<double>(low, high)(random); };
  int never = 0, found = 0;
  for (int i = 0; i < 400; ++i) {
    const AttentionCosts costs{between(0.5, 2), between(0.5, 2), between(0.1, 6), between(0, 200000)};
    const PolicyShape shape{1 << std::uniform_int_distribution<int>(0, 6)(random), 64, 64, DType::kBF16, 4};
    const int64_t budget = std::uniform_int_distribution<int64_t>(1, 600)(random);
    const double share = i % 2 == 0 ? 0 : between(0, 0.9);
    const AttentionCostModel model(costs, shape, budget, share);
    const int64_t crossover = model.Crossover();
    constexpr int64_t kLongest = 20000;
    int64_t counted = budget + 1;
    for (int64_t n = budget + 1; n <= kLongest; ++n) {
      if (!(model.Sparse(n) < model.Dense(n))) counted = n + 1;
    }
    if (counted > kLongest) {
      EXPECT_GT(crossover, kLongest) << i;
      ++never;
    } else {
      EXPECT_NEAR(static_cast<double>(crossover), static_cast<double>(counted), 1) << i;  // rounding at equality
      ++found;
    }
  }
  EXPECT_GT(never, 20);
  EXPECT_GT(found, 100);
}

TEST(AttentionCostModel, CommittedConstantsMakeQuestPayBehindItsBudget) {
  for (const DeviceKind device : {DeviceKind::kCpu, DeviceKind::kCuda}) {
    for (const int64_t budget : {64, 512, 2048, 8192}) {
      const int64_t crossover = AttentionCostModel(MeasuredCosts(device), {}, budget, 0).Crossover();
      EXPECT_GT(crossover, budget);
      EXPECT_LT(crossover, 2 * budget + 1500);
    }
  }
}

TEST(AutoPolicy, IsDenseBelowItsCrossoverAndQuestFromItOn) {
  const auto given = Make("auto:token_budget=64:crossover=200:dense_layers=1", 16);
  EXPECT_TRUE(given->IsDense(199, 5, 16));
  EXPECT_FALSE(given->IsDense(200, 5, 16));
  EXPECT_TRUE(given->IsDense(200, 0, 16));
  EXPECT_EQ(DenseUpTo(*given, 100000, 16), 199);
  // A crossover inside the budget changes nothing.
  EXPECT_EQ(DenseUpTo(*Make("auto:token_budget=64:crossover=0", 16), 100000, 16), 64);
  EXPECT_EQ(DenseUpTo(*Make("quest:token_budget=64", 16), 100000, 16), 64);
  EXPECT_EQ(DenseUpTo(*Make("quest:token_budget=64", 16), 50, 16), 50);
  EXPECT_EQ(DenseUpTo(*Make("dense", 16), 100000, 16), 100000);
  EXPECT_EQ(DenseUpTo(*Make("auto:budget_share=1", 16), 100000, 16), 100000);

  for (const PolicyShape& shape : {PolicyShape{}, PolicyShape{64, 64, 64, DType::kF32, 1}, PolicyShape{1, 128, 128},
                                   PolicyShape{.device = DeviceKind::kCuda}}) {
    for (const char* options : {"", ":token_budget=256", ":token_budget=256:budget_share=0.25"}) {
      const auto policy = MakePolicy(*AttentionSpec::Parse(std::string("auto") + options), shape).value();
      const double share = std::string(options).find("share") == std::string::npos ? 0 : 0.25;
      const int64_t crossover =
          AttentionCostModel(MeasuredCosts(shape.device), shape, policy->token_budget(), share).Crossover();
      constexpr int64_t kLongest = int64_t{1} << 40;
      EXPECT_EQ(DenseUpTo(*policy, kLongest, shape.page_size), std::min(crossover - 1, kLongest)) << options;
    }
  }
}

TEST(AutoPolicy, SelectsAsQuestDoesAndReadsAsMuch) {
  PagedCache cache(DType::kBF16, 16, 2, 64, 64, {700, 333}, 1, true);
  cache.Fill(TwoThreads());
  Step step(cache, 8, {0, 1}, {700, 333}, 2);
  const auto quest = Make("quest:token_budget=96:group_reduce=sum", 16);
  const auto both = Make("auto:token_budget=96:group_reduce=sum", 16);
  const Selected want = Select(*quest, step.p, 2), got = Select(*both, step.p, 2);
  EXPECT_EQ(got.pages, want.pages);
  EXPECT_EQ(got.counts, want.counts);
  EXPECT_NE(got.pages, Select(*Make("auto:token_budget=96", 16), step.p, 2).pages);
  EXPECT_EQ(both->SelectBytes(step.p), quest->SelectBytes(step.p));
  EXPECT_EQ(both->Declare().min_max, quest->Declare().min_max);
  EXPECT_EQ(both->RunsOnGpu(), quest->RunsOnGpu());
}

TEST(AutoPolicy, RefusesInItsOwnNameWhatItDoesntTake) {
  const auto refusal = [](const char* spec) {
    const auto policy = MakePolicy(*AttentionSpec::Parse(spec), 16);
    return policy.ok() ? std::string() : policy.status().ToString();
  };
  EXPECT_EQ(refusal("auto:crossover=4096:sink_tokens=32:recent_tokens=32:group_reduce=mean"), "");
  for (const char* bad : {"auto:crossover=-1", "auto:crossover=2000000000", "auto:crossover=x", "auto:keep=1",
                          "auto:token_budget=47", "auto:group_reduce=median"}) {
    EXPECT_NE(refusal(bad).find("'auto'"), std::string::npos) << bad << ": " << refusal(bad);
  }
  EXPECT_NE(refusal("quest:crossover=5").find("has no option 'crossover'"), std::string::npos);
}

}  // namespace
}  // namespace quire

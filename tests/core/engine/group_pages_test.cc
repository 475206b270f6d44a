// From prompt to tokens on one rank and on several: the same greedy tokens in float32, log-probabilities within 1e-4,
// and the same pages in every layer and KV head but where rounding alone decides (group_pages.h). The ranks are
// threads; mpi_group_main does the same with processes.
#include <gtest/gtest.h>

#include <memory>

#include "core/model/families.h"
#include "core/model/weight_slices.h"
#include "tests/core/engine/group_fixture.h"
#include "tests/core/engine/group_run.h"

namespace quire {
namespace {

void ExpectSameRuns(const std::string& name, const std::vector<int>& sizes) {
  const GroupRun run = MakeGroupRun(name);
  PageRecorder one_pages;
  GroupOutput one;
  ModelConfig config;
  {
    auto engine = MakeEngine(run.options);
    ASSERT_NE(engine, nullptr);
    engine->set_selection_observer(&one_pages);
    one = Generate(*engine, run);
    config = engine->config();
  }
  EXPECT_LT(one.attention.pages_read, one.attention.pages_total * 2 / 3);  // most is left out, so the choice matters
  for (const int size : sizes) {
    SCOPED_TRACE(std::to_string(size) + " ranks");
    std::vector<std::unique_ptr<PageRecorder>> recorders;
    for (int rank = 0; rank < size; ++rank) {
      const auto plan = ShardPlan::Create(NumbersOf(config), size, rank);
      ASSERT_TRUE(plan.ok());
      recorders.push_back(std::make_unique<PageRecorder>(static_cast<int>(plan->kv_heads.begin)));
    }
    TestRanks ranks(size, [&](int rank) { return recorders[rank].get(); });
    auto engine = MakeEngine(ranks.Options(run.options));
    ASSERT_NE(engine, nullptr);
    engine->set_selection_observer(recorders[0].get());
    const GroupOutput many = Generate(*engine, run);
    engine.reset();
    ranks.Release();
    PageChoices pages;
    for (const auto& recorder : recorders)
      EXPECT_TRUE(Merge(recorder->choices, &pages)) << "replicas chose differently";
    EXPECT_EQ(CompareGroupRuns(name, size, one, one_pages.choices, many, pages, config.head_dim), "");
  }
}

TEST(GroupPages, Stories260KIsTheSameOnOneToFourAndEightRanks) { ExpectSameRuns("stories260K", {1, 2, 3, 4, 8}); }
TEST(GroupPages, RandomGroupedQueryModelIsTheSameOnOneToFourAndEightRanks) { ExpectSameRuns("gqa", {1, 2, 3, 4, 8}); }

// Four query heads: of eight ranks half have none.
TEST(GroupPages, RandomSoftCappedModelOfTwoCachesIsTheSameOnOneToFourAndEightRanks) {
  ExpectSameRuns("gemma", {1, 2, 3, 4, 8});
}

class SmolLM2Group : public ::testing::Test {};

TEST_F(SmolLM2Group, IsTheSameOnTwoThreeAndFourRanks) {
  if (SmolLM2Path().empty()) {
    GTEST_SKIP() << "SmolLM2 is not in the cache folder; launch/fetch_model.sh fetches it";
  }
  ExpectSameRuns("smollm2", {2, 3, 4});
}

TEST(GroupPages, TheBoundTellsRoundingFromAWrongChoice) {
  PageChoice a{{0, 1}, {5, 4, 3.9999999}, {10, 10, 10}};
  PageChoice b{{0, 2}, {5, 3.9999999, 4}, {10, 10, 10}};
  EXPECT_EQ(ComparePages({{{0, 9, 0}, a}}, {{{0, 9, 0}, b}}, 64).unexplained, 0);
  EXPECT_EQ(ComparePages({{{0, 9, 0}, a}}, {{{0, 9, 0}, b}}, 64).different, 1);
  PageChoice c{{0, 2}, {5, 4, 3}, {10, 10, 10}};  // page 2 although page 1 is better, in both runs
  PageChoice d{{0, 1}, {5, 4, 3}, {10, 10, 10}};
  EXPECT_EQ(ComparePages({{{0, 9, 0}, d}}, {{{0, 9, 0}, c}}, 64).unexplained, 1);
  EXPECT_FALSE(ComparePages({{{0, 9, 0}, d}}, {{{0, 8, 0}, d}}, 64).same_keys);
  const PageChoices all = {{{0, 9, 0}, a}, {{1, 9, 2}, b}};
  const PageChoices back = Unflatten(Flatten(all));
  EXPECT_EQ(back.at({1, 9, 2}).pages, b.pages);
  EXPECT_EQ(back.at({0, 9, 0}).scores, a.scores);
  EXPECT_EQ(back.size(), 2u);
}

}  // namespace
}  // namespace quire

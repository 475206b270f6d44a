// The properties every plan has, over the head counts of the models that are named in the design, and a
// few plans written out.
#include "parallel/shard_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace quire {
namespace {

struct Model {
  const char* name;
  ModelNumbers numbers;
};

const std::vector<Model>& Models() {
  static const std::vector<Model> models = {
      {"SmolLM2-135M", {9, 3, 1536, 49152, 32}},
      {"Llama-8B", {32, 8, 14336, 128256, 256}},
      {"Qwen2.5-0.5B", {14, 2, 4864, 151936, 32}},
      {"MQA", {8, 1, 1000, 1001, 1}},
      {"retriever-2m", {6, 3, 512, 260, 1}},
      {"stories260K", {8, 4, 172, 512, 32}},
      {"MHA", {16, 16, 344, 32000, 32}},
      {"four heads", {4, 2, 80, 160, 1}},
      {"a head, few columns and tokens", {1, 1, 5, 3, 2}},
  };
  return models;
}

ShardPlan PlanOf(const ModelNumbers& numbers, int tp, int rank) {
  Result<ShardPlan> plan = ShardPlan::Create(numbers, tp, rank);
  EXPECT_TRUE(plan.ok()) << plan.status().ToString();
  return plan.ok() ? *plan : ShardPlan{};
}

// Calls f(model, tp, plans of all ranks) for every model and tp 1 … 16.
template <typename F>
void ForEachPlan(F&& f) {
  for (const Model& model : Models()) {
    for (int tp = 1; tp <= 16; ++tp) {
      std::vector<ShardPlan> plans;
      for (int rank = 0; rank < tp; ++rank) plans.push_back(PlanOf(model.numbers, tp, rank));
      SCOPED_TRACE(std::string(model.name) + " tp " + std::to_string(tp));
      f(model.numbers, tp, plans);
    }
  }
}

TEST(ShardPlan, SlicesOfAllRanksCoverEverythingOnceInOrder) {
  ForEachPlan([](const ModelNumbers& n, int, const std::vector<ShardPlan>& plans) {
    Range q{0, 0}, ffn{0, 0}, vocab{0, 0};
    for (const ShardPlan& plan : plans) {
      EXPECT_EQ(plan.q_heads.begin, q.end);
      EXPECT_EQ(plan.ffn.begin, ffn.end);
      EXPECT_EQ(plan.vocab.begin, vocab.end);
      q = plan.q_heads, ffn = plan.ffn, vocab = plan.vocab;
    }
    EXPECT_EQ(q.end, n.q_heads);
    EXPECT_EQ(ffn.end, n.ffn);
    EXPECT_EQ(vocab.end, n.vocab);
  });
}

TEST(ShardPlan, EveryQueryHeadIsWithItsKvHeadAndGroupsStayMultiples) {
  ForEachPlan([](const ModelNumbers& n, int, const std::vector<ShardPlan>& plans) {
    const int64_t group = n.q_heads / n.kv_heads;
    for (const ShardPlan& plan : plans) {
      if (!plan.has_heads()) continue;
      ASSERT_GE(plan.q_heads.size(), 1);
      EXPECT_EQ(plan.q_heads.begin / group, plan.kv_heads.begin);
      EXPECT_EQ((plan.q_heads.end - 1) / group, plan.kv_heads.end - 1);
      EXPECT_EQ(plan.q_heads.size() % plan.kv_heads.size(), 0);
    }
  });
}

TEST(ShardPlan, RanksBeyondTheQueryHeadsHaveNoneAndTheirPartsOfTheRest) {
  ForEachPlan([](const ModelNumbers& n, int tp, const std::vector<ShardPlan>& plans) {
    EXPECT_GE(plans[0].ffn.size(), 1);
    EXPECT_GE(plans[0].vocab.size(), 1);
    for (const ShardPlan& plan : plans) {
      EXPECT_EQ(plan.has_heads(), plan.rank < n.q_heads);
      EXPECT_GE(plan.vocab.size(), plan.rank < n.vocab ? 1 : 0);
      EXPECT_GE(plan.ffn.size(), plan.rank < (n.ffn + n.block - 1) / n.block ? 1 : 0);
      if (tp > n.q_heads && plan.has_heads()) {
        EXPECT_EQ(plan.q_heads.size(), 1);
      }
      if (plan.has_heads()) continue;
      EXPECT_EQ(plan.q_heads, (Range{n.q_heads, n.q_heads}));
      EXPECT_EQ(plan.kv_heads, (Range{n.kv_heads, n.kv_heads}));
      EXPECT_EQ(plan.replicas, 0);
      EXPECT_EQ(plan.replica_index, 0);
    }
  });
}

TEST(ShardPlan, WholeKvHeadsAreDealtOnceWhileTheyLast) {
  ForEachPlan([](const ModelNumbers& n, int tp, const std::vector<ShardPlan>& plans) {
    if (tp > n.kv_heads) return;
    int64_t next = 0, smallest = n.kv_heads, largest = 0;
    for (const ShardPlan& plan : plans) {
      EXPECT_EQ(plan.kv_heads.begin, next);
      next = plan.kv_heads.end;
      EXPECT_EQ(plan.replicas, 1);
      EXPECT_EQ(plan.replica_index, 0);
      EXPECT_EQ(plan.q_heads.size(), plan.kv_heads.size() * (n.q_heads / n.kv_heads));
      smallest = std::min(smallest, plan.kv_heads.size());
      largest = std::max(largest, plan.kv_heads.size());
    }
    EXPECT_EQ(next, n.kv_heads);
    EXPECT_LE(largest - smallest, 1);
  });
}

TEST(ShardPlan, ReplicasOfAKvHeadAreNeighboursAndKnowTheirPlaces) {
  ForEachPlan([](const ModelNumbers& n, int tp, const std::vector<ShardPlan>& plans) {
    if (tp <= n.kv_heads) return;
    std::vector<int> holders(n.kv_heads, 0);
    for (const ShardPlan& plan : plans) {
      if (!plan.has_heads()) continue;
      ASSERT_EQ(plan.kv_heads.size(), 1);
      EXPECT_EQ(plan.replica_index, holders[plan.kv_heads.begin]++);
      if (plan.rank > 0) { EXPECT_GE(plan.kv_heads.begin, plans[plan.rank - 1].kv_heads.begin); }
    }
    for (const ShardPlan& plan : plans) {
      if (plan.has_heads()) {
        EXPECT_EQ(plan.replicas, holders[plan.kv_heads.begin]);
      }
    }
    const auto [least, most] = std::minmax_element(holders.begin(), holders.end());
    EXPECT_GE(*least, 1);
    EXPECT_LE(*most - *least, 1);
  });
}

TEST(ShardPlan, FfnIsCutAtBlocksOnlyAndEvenToOneBlock) {
  ForEachPlan([](const ModelNumbers& n, int, const std::vector<ShardPlan>& plans) {
    int64_t smallest = n.ffn, largest = 0;
    for (const ShardPlan& plan : plans) {
      if (plan.ffn.size() > 0) { EXPECT_EQ(plan.ffn.begin % n.block, 0); }
      if (plan.ffn.end != n.ffn) { EXPECT_EQ(plan.ffn.end % n.block, 0); }
      const int64_t blocks = (plan.ffn.size() + n.block - 1) / n.block;
      smallest = std::min(smallest, blocks);
      largest = std::max(largest, blocks);
    }
    EXPECT_LE(largest - smallest, 1);
  });
}

TEST(ShardPlan, OneRankHasTheWholeModel) {
  for (const Model& model : Models()) {
    const ShardPlan plan = PlanOf(model.numbers, 1, 0);
    EXPECT_EQ(plan.q_heads, (Range{0, model.numbers.q_heads}));
    EXPECT_EQ(plan.kv_heads, (Range{0, model.numbers.kv_heads}));
    EXPECT_EQ(plan.ffn, (Range{0, model.numbers.ffn}));
    EXPECT_EQ(plan.vocab, (Range{0, model.numbers.vocab}));
  }
}

TEST(ShardPlan, NineQueryHeadsOnTwoRanksAreSixAndThree) {
  const ModelNumbers smollm = Models()[0].numbers;
  EXPECT_EQ(PlanOf(smollm, 2, 0).kv_heads, (Range{0, 2}));
  EXPECT_EQ(PlanOf(smollm, 2, 0).q_heads, (Range{0, 6}));
  EXPECT_EQ(PlanOf(smollm, 2, 1).kv_heads, (Range{2, 3}));
  EXPECT_EQ(PlanOf(smollm, 2, 1).q_heads, (Range{6, 9}));
}

TEST(ShardPlan, FourRanksSplitTheFirstOfThreeKvHeadsGroups) {
  const ModelNumbers smollm = Models()[0].numbers;
  const Range q[] = {{0, 2}, {2, 3}, {3, 6}, {6, 9}};
  const int64_t kv[] = {0, 0, 1, 2};
  const int replicas[] = {2, 2, 1, 1};
  for (int rank = 0; rank < 4; ++rank) {
    const ShardPlan plan = PlanOf(smollm, 4, rank);
    EXPECT_EQ(plan.q_heads, q[rank]) << rank;
    EXPECT_EQ(plan.kv_heads.begin, kv[rank]) << rank;
    EXPECT_EQ(plan.replicas, replicas[rank]) << rank;
  }
}

TEST(ShardPlan, SixRanksOfFourQueryHeadsAreTwoAKvHeadAndTwoWithoutHeads) {
  const ModelNumbers four{4, 2, 80, 160, 1};
  const Range q[] = {{0, 1}, {1, 2}, {2, 3}, {3, 4}, {4, 4}, {4, 4}};
  const Range kv[] = {{0, 1}, {0, 1}, {1, 2}, {1, 2}, {2, 2}, {2, 2}};
  const int replicas[] = {2, 2, 2, 2, 0, 0};
  for (int rank = 0; rank < 6; ++rank) {
    const ShardPlan plan = PlanOf(four, 6, rank);
    EXPECT_EQ(plan.q_heads, q[rank]) << rank;
    EXPECT_EQ(plan.kv_heads, kv[rank]) << rank;
    EXPECT_EQ(plan.replicas, replicas[rank]) << rank;
  }
  EXPECT_EQ(PlanOf(four, 6, 5).ffn, (Range{67, 80}));
  EXPECT_EQ(PlanOf(four, 6, 5).vocab, (Range{134, 160}));
}

TEST(ShardPlan, RefusesWhatCantBeSplit) {
  const ModelNumbers good{8, 4, 64, 100, 1};
  const auto refused = [](const ModelNumbers& numbers, int tp, int rank) {
    Result<ShardPlan> plan = ShardPlan::Create(numbers, tp, rank);
    return !plan.ok() && plan.status().code() == StatusCode::kInvalidArgument && !plan.status().message().empty();
  };
  EXPECT_FALSE(refused(good, 8, 7));
  EXPECT_TRUE(refused(good, 0, 0));
  EXPECT_TRUE(refused(good, -1, 0));
  EXPECT_FALSE(refused(good, 9, 8));  // more ranks than query heads
  EXPECT_FALSE(refused(good, 4096, 4095));
  EXPECT_TRUE(refused(good, 4097, 0));
  EXPECT_TRUE(refused(good, 2, 2));
  EXPECT_TRUE(refused(good, 2, -1));
  EXPECT_TRUE(refused({9, 4, 64, 100, 1}, 1, 0));
  EXPECT_TRUE(refused({0, 0, 64, 100, 1}, 1, 0));
  EXPECT_TRUE(refused({8, 4, 0, 100, 1}, 1, 0));
  EXPECT_TRUE(refused({8, 4, 64, 0, 1}, 1, 0));
  EXPECT_TRUE(refused({8, 4, 64, 100, 0}, 1, 0));
}

}  // namespace
}  // namespace quire

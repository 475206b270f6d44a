// Score through a coordinator: a long list over two groups, answered in the order asked.
#include <gtest/gtest.h>

#include "rpc/client.h"
#include "tests/rpc/coordinator/cluster.h"

namespace quire {
namespace {

const std::vector<std::string> kFlags = {"--dtype", "float32", "--batch-invariant", "--max-num-seqs", "4",
                                         "--kv-cache-memory-bytes", "16M"};

// Of different lengths, so that they don't end in the order in which they begin.
std::vector<std::vector<int32_t>> Texts(int count) {
  std::vector<std::vector<int32_t>> texts;
  for (int i = 0; i < count; ++i) {
    texts.emplace_back(1, 1);
    for (int k = 0; k < 1 + i * 37 % 200; ++k) texts.back().push_back(3 + (i * 61 + k * 13) % 500);
  }
  return texts;
}

Status Score(const std::string& address, const std::vector<std::vector<int32_t>>& texts, std::vector<ClientScore>* scores,
             const std::function<void()>& after_each = {}) {
  auto client = Client::Connect({.address = address});
  if (!client.ok()) return client.status();
  size_t sent = 0;
  return (*client)->Score(
      [&]() -> std::optional<ClientPrompt> {
        if (sent == texts.size()) return std::nullopt;
        ClientPrompt prompt;
        prompt.token_ids = texts[sent++];
        return prompt;
      },
      2,
      [&](const ClientScore& score) {
        scores->push_back(score);
        if (after_each) after_each();
      });
}

void ExpectSame(const std::vector<ClientScore>& got, const std::vector<ClientScore>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].index, static_cast<int64_t>(i));
    EXPECT_EQ(got[i].token_ids, want[i].token_ids) << i;
    EXPECT_EQ(got[i].sum, want[i].sum) << i;
    ASSERT_EQ(got[i].logprobs.size(), want[i].logprobs.size()) << i;
    for (size_t k = 1; k < got[i].logprobs.size(); ++k) {
      EXPECT_EQ(got[i].logprobs[k]->chosen.logprob, want[i].logprobs[k]->chosen.logprob) << i << " " << k;
      ASSERT_EQ(got[i].logprobs[k]->top.size(), 2u);
    }
  }
}

TEST(ScoreList, ComesInOrderFromBothGroupsAsFromOne) {
  Cluster cluster(2, "stories260K", kFlags);
  ASSERT_TRUE(cluster.WaitGroups(2));
  const std::vector<std::vector<int32_t>> texts = Texts(200);
  std::vector<ClientScore> all, alone;
  ASSERT_TRUE(Score(cluster.address(), texts, &all).ok());
  const v1::GetLoadResponse load = cluster.Load();
  ASSERT_EQ(load.groups_size(), 2);
  for (const v1::GroupLoad& group : load.groups()) {
    EXPECT_GT(group.requests_finished(), 20) << group.group();  // both had their share
  }
  ASSERT_TRUE(Score(cluster.group(0).address(), texts, &alone).ok());
  ExpectSame(all, alone);
  EXPECT_TRUE(cluster.WaitIdle());
}

TEST(ScoreList, GoesOnWhenAGroupIsKilled) {
  Cluster cluster(2, "stories260K", kFlags);
  ASSERT_TRUE(cluster.WaitGroups(2));
  const std::vector<std::vector<int32_t>> texts = Texts(150);
  std::vector<ClientScore> undisturbed, disturbed;
  ASSERT_TRUE(Score(cluster.address(), texts, &undisturbed).ok());
  const Status status = Score(cluster.address(), texts, &disturbed, [&] {
    if (disturbed.size() == 30) cluster.KillGroup(0);
  });
  EXPECT_TRUE(status.ok()) << status.ToString();
  ExpectSame(disturbed, undisturbed);
  EXPECT_GT(cluster.Load().total().failovers(), 0);  // some of them were with the one that died
}

TEST(ScoreList, GoesOnWhenTheCoordinatorIsKilledAndStartedAgain) {
  Cluster cluster(2, "stories260K", kFlags);
  ASSERT_TRUE(cluster.WaitGroups(2));
  const std::vector<std::vector<int32_t>> texts = Texts(150);
  std::vector<ClientScore> undisturbed, disturbed;
  ASSERT_TRUE(Score(cluster.address(), texts, &undisturbed).ok());
  const Status status = Score(cluster.address(), texts, &disturbed, [&] {
    if (disturbed.size() == 30) cluster.RestartCoordinator();
  });
  EXPECT_TRUE(status.ok()) << status.ToString();
  ExpectSame(disturbed, undisturbed);
  EXPECT_TRUE(cluster.WaitGroups(2));
  EXPECT_TRUE(cluster.WaitIdle());
}

}  // namespace
}  // namespace quire

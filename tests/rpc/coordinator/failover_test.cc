// Failover with real processes: groups killed and stopped in mid-stream, the last group lost, the coordinator itself
// killed. Streams must be what undisturbed ones are.
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <cstdlib>
#include <random>

#include "tests/rpc/coordinator/cluster.h"
#include "core/base/clock.h"

namespace quire {
namespace {

// Sequences are longer than the budget from their first token on.
const std::vector<std::string> kPolicies = {"dense", "quest:dense_layers=0:token_budget=64"};

std::vector<std::string> GroupFlags(const std::string& dtype) {
  return {"--dtype", dtype, "--batch-invariant", "--max-num-seqs", "16", "--attention", "dense,quest:dense_layers=0",
          "--token-budget", "64", "--shutdown-timeout", "5"};
}

std::vector<ClientStream> RunUndisturbed(Cluster& cluster, const std::vector<ClientStream>& streams) {
  ClientStreams undisturbed(cluster.address(), streams);
  undisturbed.Join();
  return undisturbed.results();
}

TEST(Failover, StreamsOfAKilledGroupGoOnWithAnother) {
  Cluster cluster(2, "retriever-2m", GroupFlags("float32"));
  std::vector<ClientStream> streams = MixedStreams(kPolicies, 2, 150, 300);
  streams[1].request.parameters.sampling.n = 3;  // over both groups
  const std::vector<ClientStream> expected = RunUndisturbed(cluster, streams);
  ClientStreams disturbed(cluster.address(), streams);
  ASSERT_TRUE(disturbed.WaitTokens(200));
  cluster.KillGroup(0);
  cluster.StartGroup(0);
  ASSERT_TRUE(cluster.WaitGroups(2));
  if (disturbed.WaitTokens(900)) cluster.KillGroup(1);
  disturbed.Join();
  ExpectEqual(disturbed.results(), expected);
  EXPECT_GT(cluster.Load().total().failovers(), 0);
  EXPECT_TRUE(cluster.WaitIdle());
}

TEST(Failover, AStoppedGroupIsTakenOverAndWhatItSaysLaterIsDropped) {
  Cluster cluster(2, "retriever-2m", GroupFlags("float32"));
  const std::vector<ClientStream> streams = MixedStreams(kPolicies, 2, 150, 300);
  const std::vector<ClientStream> expected = RunUndisturbed(cluster, streams);
  ClientStreams disturbed(cluster.address(), streams);
  ASSERT_TRUE(disturbed.WaitTokens(200));
  cluster.group(0).Signal(SIGSTOP);
  EXPECT_TRUE(cluster.WaitGroups(1));
  cluster.group(0).Signal(SIGCONT);
  disturbed.Join();
  ExpectEqual(disturbed.results(), expected);
  EXPECT_TRUE(cluster.WaitGroups(2));
  EXPECT_TRUE(cluster.WaitIdle());
  const v1::GroupLoad total = cluster.Load().total();
  EXPECT_GT(total.failovers(), 0);
  EXPECT_GT(total.late_events_dropped(), 0);
}

TEST(Failover, WithNoGroupLeftUnavailableComesWithinFiveSecondsAndServiceResumes) {
  Cluster cluster(1, "retriever-2m", GroupFlags("float32"));
  std::vector<ClientStream> streams = MixedStreams({"dense"}, 2, 100, 3000);
  ClientStreams lost(cluster.address(), streams, /*retry_s=*/0);
  ASSERT_TRUE(lost.WaitTokens(50));
  const double killed = NowSeconds();
  cluster.KillGroup(0);
  lost.Join();
  EXPECT_LT(NowSeconds() - killed, 5);
  for (const ClientStream& stream : lost.results()) EXPECT_EQ(stream.status.code(), StatusCode::kUnavailable);
  ClientStreams refused(cluster.address(), streams, /*retry_s=*/0);
  refused.Join();
  for (const ClientStream& stream : refused.results()) EXPECT_EQ(stream.status.code(), StatusCode::kUnavailable);
  cluster.StartGroup(0);
  ASSERT_TRUE(cluster.WaitGroups(1));
  for (ClientStream& stream : streams) stream.request.parameters.stopping.max_tokens = 20;
  for (const ClientStream& stream : RunUndisturbed(cluster, streams)) EXPECT_TRUE(stream.status.ok());
}

TEST(Failover, StreamsSurviveTheCoordinatorsRestart) {
  Cluster cluster(2, "retriever-2m", GroupFlags("float32"));
  std::vector<ClientStream> streams = MixedStreams(kPolicies, 2, 150, 300);
  streams[1].request.parameters.sampling.n = 2;
  const std::vector<ClientStream> expected = RunUndisturbed(cluster, streams);
  ClientStreams disturbed(cluster.address(), streams);
  ASSERT_TRUE(disturbed.WaitTokens(200));
  cluster.RestartCoordinator();
  disturbed.Join();
  ExpectEqual(disturbed.results(), expected);
  EXPECT_TRUE(cluster.WaitGroups(2));
  EXPECT_TRUE(cluster.WaitIdle());
}

#ifdef QUIRE_MPIRUN
// A group of two processes is lost with either: here the one that the coordinator doesn't talk to.
TEST(Failover, StreamsOfAGroupWhoseOtherRankIsKilledGoOnWithAnother) {
  Cluster cluster(2, "retriever-2m", GroupFlags("float32"), {QUIRE_SOURCE_DIR "/tests/mpirun.sh", QUIRE_MPIRUN, "2"});
  const std::vector<ClientStream> streams = MixedStreams(kPolicies, 2, 150, 300);
  const std::vector<ClientStream> expected = RunUndisturbed(cluster, streams);
  ClientStreams disturbed(cluster.address(), streams);
  ASSERT_TRUE(disturbed.WaitTokens(200));
  const pid_t victim = cluster.group(0).ProcessOfRank(1);
  ASSERT_GT(victim, 0);
  ASSERT_EQ(kill(victim, SIGKILL), 0);
  const int code = cluster.group(0).Wait(20);
  EXPECT_GT(code, 0) << "the group outlives its rank";
  EXPECT_NE(cluster.group(0).err().find("quire: error: rank 1 (host "), std::string::npos) << cluster.group(0).err();
  disturbed.Join();
  ExpectEqual(disturbed.results(), expected);
  EXPECT_GT(cluster.Load().total().failovers(), 0);
  EXPECT_TRUE(cluster.WaitIdle());
}
#endif

// Many kills at random moments, and a stop now and then.
void KillMany(const std::string& dtype, int kills) {
  const char* given = std::getenv("QUIRE_TEST_SEED");
  const uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
  SCOPED_TRACE("QUIRE_TEST_SEED=" + std::to_string(seed));
  std::mt19937_64 random(seed);
  Cluster cluster(2, "retriever-2m", GroupFlags(dtype));
  const std::vector<ClientStream> streams = MixedStreams(kPolicies, 4, 150, 1200);
  const std::vector<ClientStream> expected = RunUndisturbed(cluster, streams);
  int killed = 0, stopped = 0, rounds = 0;
  int64_t failovers = 0;
  for (; killed < kills && rounds < 4 * kills && !testing::Test::HasFailure(); ++rounds) {
    ClientStreams disturbed(cluster.address(), streams);
    while (killed < kills && disturbed.WaitTokens(disturbed.tokens() + 20 + static_cast<int64_t>(random() % 1200))) {
      const int victim = static_cast<int>(random() % 2);
      if (random() % 8 == 0) {
        cluster.group(victim).Signal(SIGSTOP);
        ASSERT_TRUE(cluster.WaitGroups(1));
        cluster.group(victim).Signal(SIGCONT);
        ++stopped;
      } else {
        cluster.KillGroup(victim);
        cluster.StartGroup(victim);
        ++killed;
      }
      ASSERT_TRUE(cluster.WaitGroups(2));
    }
    disturbed.Join();
    ExpectEqual(disturbed.results(), expected);
    failovers = cluster.Load().total().failovers();
  }
  EXPECT_EQ(killed, kills);
  EXPECT_GT(failovers, kills / 2);
  EXPECT_TRUE(cluster.WaitIdle());
  testing::Test::RecordProperty("kills", killed);
  testing::Test::RecordProperty("failovers", std::to_string(failovers));
  printf("%s: %d groups killed and %d stopped during %d rounds of %zu streams, %lld takeovers, seed %llu\n", dtype.c_str(),
         killed, stopped, rounds, streams.size(), static_cast<long long>(failovers), static_cast<unsigned long long>(seed));
}

TEST(SlowFailover, ThirtyKillsInFloat32ChangeNoStream) { KillMany("float32", 30); }
TEST(SlowFailover, ThirtyKillsInBfloat16ChangeNoStream) { KillMany("bfloat16", 30); }

}  // namespace
}  // namespace quire

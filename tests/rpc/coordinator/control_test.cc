// What a coordinator says of itself, how it aborts, and how it drains.
#include "rpc/health.h"
#include "tests/rpc/coordinator/local_cluster.h"
#include "tests/rpc/held_engine.h"
#include "tests/rpc/reflected.h"

namespace quire {
namespace {

constexpr const char* kGeneration = "quire.v1.Generation";

v1::GenerateRequest Ask(const std::string& id, int tokens, int n = 1) {
  v1::GenerateRequest request;
  const std::vector<int32_t> ids = BytePrompt(64);
  request.add_prompts()->mutable_token_ids()->mutable_ids()->Assign(ids.begin(), ids.end());
  request.set_request_id(id);
  request.mutable_sampling()->set_temperature(n > 1 ? 1.0f : 0.0f);
  request.mutable_sampling()->set_seed(5);
  request.mutable_sampling()->set_n(n);
  request.mutable_stopping()->set_max_tokens(tokens);
  request.mutable_stopping()->set_ignore_eos(true);
  return request;
}

// A stream that has put out a chunk of each of its sequences.
struct Running {
  Running(LocalCluster& cluster, const v1::GenerateRequest& request)
      : reader(cluster.generation().GenerateStream(&context, request)) {
    while (streams.size() < static_cast<size_t>(request.sampling().n())) {
      if (!Next()) {
        ADD_FAILURE() << reader->Finish().error_message();
        return;
      }
    }
  }
  bool Next() {
    v1::GenerateChunk chunk;
    if (!reader->Read(&chunk)) return false;
    Collect(chunk, &streams);
    return true;
  }
  grpc::Status ToEnd() {
    while (Next()) {
    }
    return reader->Finish();
  }
  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientReader<v1::GenerateChunk>> reader;
  Streams streams;
};

v1::GetServerInfoResponse ServerInfo(LocalCluster& cluster) {
  grpc::ClientContext context;
  v1::GetServerInfoResponse info;
  EXPECT_TRUE(cluster.control().GetServerInfo(&context, {}, &info).ok());
  return info;
}

int DrainWithin(LocalCluster& cluster, double seconds) {
  grpc::ClientContext context;
  v1::DrainRequest drain;
  drain.set_timeout_s(seconds);
  v1::DrainResponse answer;
  EXPECT_TRUE(cluster.control().Drain(&context, drain, &answer).ok());
  return answer.in_flight();
}

TEST(CoordinatorControl, SaysWhatItIsAndWhatItsGroupsServe) {
  EngineOptions options = ModelOptions("stories260K");
  options.attention = {*AttentionSpec::Parse("dense"), *AttentionSpec::Parse("quest:token_budget=128")};
  LocalCluster cluster(2, options);
  const v1::GetServerInfoResponse info = ServerInfo(cluster);
  EXPECT_EQ(info.role(), "coordinator");
  EXPECT_EQ(info.version(), "test");
  EXPECT_EQ(info.state(), v1::SERVER_STATE_READY);
  grpc::ClientContext context;
  v1::GetModelInfoResponse model;
  ASSERT_TRUE(cluster.control().GetModelInfo(&context, {}, &model).ok());
  EXPECT_EQ(model.vocab(), 512);
  EXPECT_EQ(model.max_model_len(), 512);
  EXPECT_TRUE(model.has_tokenizer());
  ASSERT_EQ(model.attention_size(), 2);
  EXPECT_EQ(model.attention(1), "quest:token_budget=128");
  const v1::GetLoadResponse load = cluster.Load();
  ASSERT_EQ(load.groups_size(), 2);
  EXPECT_EQ(load.total().pages_total(), load.groups(0).pages_total() + load.groups(1).pages_total());
  const auto channel = ChannelTo(cluster.address());
  ExpectReflected(channel, {"quire.v1.Generation", "quire.v1.Control", "quire.v1.Registry", "grpc.health.v1.Health"});
  EXPECT_TRUE(*rpc::CheckHealth(channel, "", 5));
  EXPECT_TRUE(Eventually([&] { return *rpc::CheckHealth(channel, kGeneration, 5); }));
}

TEST(CoordinatorControl, ReadyIsAsLongAsThereIsAGroup) {
  LocalCluster cluster(1, ModelOptions("stories260K"));
  const auto channel = ChannelTo(cluster.address());
  const auto ready = [&] { return *rpc::CheckHealth(channel, kGeneration, 5); };
  EXPECT_TRUE(Eventually(ready));
  cluster.way(0).Close();
  EXPECT_TRUE(Eventually([&] { return !ready(); }));
  EXPECT_TRUE(*rpc::CheckHealth(channel, "", 5));
  EXPECT_EQ(ServerInfo(cluster).state(), v1::SERVER_STATE_LOADING);
  cluster.way(0).Open();
  EXPECT_TRUE(Eventually(ready));
}

TEST(CoordinatorControl, AbortGivesOneAbortedChunkASequenceAndThenOk) {
  LocalCluster cluster(2, ModelOptions("retriever-2m"));
  Running running(cluster, Ask("two", 100000, 2)), other(cluster, Ask("other", 400));
  v1::AbortRequest abort;
  abort.add_request_ids("two");
  abort.add_request_ids("nobody");
  v1::AbortResponse aborted;
  grpc::ClientContext context, again;
  ASSERT_TRUE(cluster.control().Abort(&context, abort, &aborted).ok());
  ASSERT_EQ(aborted.aborted_size(), 1);
  EXPECT_EQ(aborted.aborted(0), "two");
  EXPECT_TRUE(running.ToEnd().ok());
  ASSERT_EQ(running.streams.size(), 2u);
  for (const auto& [place, pieces] : running.streams) {
    EXPECT_EQ(pieces.last.finish_reason(), v1::FINISH_REASON_ABORTED);
    EXPECT_EQ(pieces.last.usage().completion_tokens(), static_cast<int>(pieces.ids.size()));
  }
  ASSERT_TRUE(cluster.control().Abort(&again, abort, &aborted).ok());
  EXPECT_EQ(aborted.aborted_size(), 0);
  EXPECT_TRUE(other.ToEnd().ok());
  EXPECT_EQ((other.streams[{0, 0}].ids.size()), 400u);
  EXPECT_TRUE(cluster.WaitEmpty());
}

TEST(CoordinatorControl, ADrainRefusesNewRequestsFinishesTheRunningAndAbortsTheRestAndTheGroupsGoOn) {
  StepGate gates[2];
  LocalCluster cluster(2, ModelOptions("retriever-2m"), {}, {}, [&](int group, std::unique_ptr<Engine> engine) {
    return std::make_unique<HeldEngine>(std::move(engine), &gates[group]);
  });
  const int tokens = kSlowness > 1 ? 200 : 2000;  // not at their end before the gates are shut
  Running endless(cluster, Ask("endless", 100000)), fair(cluster, Ask("fair", tokens));
  for (StepGate& gate : gates) gate.Hold();
  EXPECT_EQ(DrainWithin(cluster, 60 * kSlowness), 2);
  const auto channel = ChannelTo(cluster.address());
  EXPECT_FALSE(*rpc::CheckHealth(channel, kGeneration, 5));
  EXPECT_TRUE(*rpc::CheckHealth(channel, "", 5));
  EXPECT_EQ(ServerInfo(cluster).state(), v1::SERVER_STATE_DRAINING);
  grpc::ClientContext context;
  v1::GenerateResponse response;
  const grpc::Status refused = cluster.generation().Generate(&context, Ask("late", 1), &response);
  EXPECT_EQ(refused.error_code(), grpc::UNAVAILABLE);
  EXPECT_NE(refused.error_message().find("draining"), std::string::npos) << refused.error_message();
  for (StepGate& gate : gates) gate.Release();
  EXPECT_TRUE(fair.ToEnd().ok());
  EXPECT_EQ((fair.streams[{0, 0}].ids.size()), static_cast<size_t>(tokens));
  EXPECT_EQ((fair.streams[{0, 0}].last.finish_reason()), v1::FINISH_REASON_LENGTH);
  EXPECT_FALSE(cluster.coordinator().Drained());
  DrainWithin(cluster, 0);  // the shorter time holds
  EXPECT_TRUE(endless.ToEnd().ok());
  EXPECT_EQ((endless.streams[{0, 0}].last.finish_reason()), v1::FINISH_REASON_ABORTED);
  EXPECT_TRUE(Eventually([&] { return cluster.coordinator().Drained(); }));
  EXPECT_TRUE(cluster.WaitEmpty());
  for (int group = 0; group < 2; ++group) EXPECT_TRUE(cluster.GroupLoad(group).available());
}

}  // namespace
}  // namespace quire

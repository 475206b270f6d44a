// Clients that end their calls, or vanish, at a coordinator: what they held is free, and nobody else notices.
#include <atomic>

#include "tests/rpc/coordinator/local_cluster.h"
#include "tests/rpc/step_counted_endings.h"

namespace quire {
namespace {

EngineOptions Options() {
  EngineOptions options = ModelOptions("retriever-2m");
  options.batch_invariant = true;
  return options;
}

v1::GenerateRequest Ask(int tokens) {
  v1::GenerateRequest request;
  const std::vector<int32_t> ids = BytePrompt(100);
  request.add_prompts()->mutable_token_ids()->mutable_ids()->Assign(ids.begin(), ids.end());
  request.mutable_sampling()->set_temperature(0);
  request.mutable_stopping()->set_max_tokens(tokens);
  request.mutable_stopping()->set_ignore_eos(true);
  return request;
}

grpc::Status RunStream(LocalCluster& cluster, const v1::GenerateRequest& request, Streams* streams) {
  grpc::ClientContext context;
  context.set_deadline(In(60 * kSlowness));
  auto reader = cluster.generation().GenerateStream(&context, request);
  v1::GenerateChunk chunk;
  while (reader->Read(&chunk)) Collect(chunk, streams);
  return reader->Finish();
}

TEST(CoordinatorEndings, ACallThatItsClientEndsFreesSlotAndPagesWithinAStep) {
  StepGate gate;
  LocalCluster cluster(1, Options(), {}, {}, [&](int, std::unique_ptr<Engine> engine) {
    return std::make_unique<HeldEngine>(std::move(engine), &gate);
  });
  StepCountedEndings(&cluster.generation(), &gate).All();
}

// Streams, a resumable one, a whole answer and a list to be scored, all over a connection that is torn in their midst.
TEST(CoordinatorEndings, AClientWhoseConnectionIsTornLeavesNothingAndDisturbsNobody) {
  CoordinatorOptions options;
  options.keep_s = 0.5;  // for the resumable one, which nobody takes up
  LocalCluster cluster(2, Options(), options);
  Streams undisturbed;
  ASSERT_TRUE(RunStream(cluster, Ask(600), &undisturbed).ok());

  TcpProxy way(cluster.address());
  const auto stub = v1::Generation::NewStub(ChannelTo(way.address()));
  constexpr int kStreams = 5;
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateChunk>>> readers;
  v1::GenerateChunk chunk;
  for (int i = 0; i < kStreams; ++i) {
    v1::GenerateRequest request = Ask(100000);
    request.set_resumable(i == 0);
    request.mutable_sampling()->set_n(i == 1 ? 3 : 1);
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    readers.push_back(stub->GenerateStream(contexts.back().get(), request));
    ASSERT_TRUE(readers.back()->Read(&chunk));
  }
  std::thread whole([&] {
    grpc::ClientContext context;
    v1::GenerateResponse response;
    EXPECT_EQ(stub->Generate(&context, Ask(100000), &response).error_code(), grpc::UNAVAILABLE);
  });
  // Of the streams seven sequences, and the whole answer's.
  EXPECT_TRUE(Eventually([&] { return cluster.Load().total().running() >= kStreams + 2 + 1; }));
  grpc::ClientContext score_context;
  auto score = stub->Score(&score_context);
  v1::ScoreRequest text;
  *text.mutable_prompt() = Ask(1).prompts(0);
  v1::ScoreResponse scored;
  EXPECT_TRUE(score->Write(text) && score->Read(&scored));
  const std::vector<int32_t> long_text = BytePrompt(8000);
  text.mutable_prompt()->mutable_token_ids()->mutable_ids()->Assign(long_text.begin(), long_text.end());
  for (int i = 0; i < 4; ++i) score->Write(text);

  std::atomic<bool> torn = false;
  std::thread beside([&] {
    while (true) {
      const bool last = torn;
      Streams streams;
      const grpc::Status status = RunStream(cluster, Ask(600), &streams);
      EXPECT_TRUE(status.ok()) << status.error_message();
      EXPECT_EQ((streams[{0, 0}].ids), (undisturbed[{0, 0}].ids));
      if (last) return;
    }
  });
  way.Cut();
  torn = true;
  for (auto& reader : readers) {
    while (reader->Read(&chunk)) {
    }
    EXPECT_EQ(reader->Finish().error_code(), grpc::UNAVAILABLE);
  }
  while (score->Read(&scored)) {
  }
  EXPECT_EQ(score->Finish().error_code(), grpc::UNAVAILABLE);
  whole.join();
  beside.join();
  EXPECT_TRUE(cluster.WaitEmpty());
  EXPECT_EQ(cluster.Load().total().failovers(), 0);
  Streams after;
  EXPECT_TRUE(RunStream(cluster, Ask(5), &after).ok());
}

}  // namespace
}  // namespace quire

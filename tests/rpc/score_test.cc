// Generation.Score: texts of any number, in order.
#include "tests/rpc/held_engine.h"
#include "tests/rpc/service_fixture.h"

namespace quire {
namespace {

TEST_F(ServiceTest, ScoresComeInTheOrderAskedAndAreTheEnginesOwn) {
  Start(Stories());
  auto engine = MakeEngine(Stories());
  const std::vector<std::string> texts = {"Once upon a time", "The dog", "One day, a girl named Lily found a needle"};
  grpc::ClientContext context;
  auto stream = generation_->Score(&context);
  constexpr int kTexts = 60;
  std::thread writer([&] {
    for (int i = 0; i < kTexts; ++i) {
      v1::ScoreRequest request;
      request.set_request_id("t" + std::to_string(i));
      request.set_top(1);
      request.mutable_prompt()->set_text(texts[i % texts.size()]);
      stream->Write(request);
    }
    stream->WritesDone();
  });
  v1::ScoreResponse response;
  int count = 0;
  while (stream->Read(&response)) {
    EXPECT_EQ(response.index(), count);
    EXPECT_EQ(response.request_id(), "t" + std::to_string(count));
    const auto ids = *engine->tokenizer()->Encode(texts[count % texts.size()], {});
    EXPECT_EQ(std::vector<int32_t>(response.token_ids().begin(), response.token_ids().end()), ids);
    EXPECT_EQ(response.logprobs_size(), static_cast<int>(ids.size()));
    if (count < 3) {
      GenerationRequest own = Greedy(ids, 1);
      own.prompt_logprobs = 1;
      const Output wanted = RunOne(*engine, own);
      double sum = 0;
      for (size_t i = 1; i < ids.size(); ++i) {
        EXPECT_NEAR(response.logprobs(static_cast<int>(i)).logprob(), wanted.prompt_logprobs[i]->chosen.logprob, 1e-4);
        sum += wanted.prompt_logprobs[i]->chosen.logprob;
      }
      EXPECT_FALSE(response.logprobs(0).has_id());
      EXPECT_NEAR(response.sum(), sum, 1e-3);
    }
    ++count;
  }
  writer.join();
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(count, kTexts);
  EXPECT_TRUE(Eventually([&] { return Empty(); }));
}

TEST_F(ServiceTest, AScoreThatFailsNamesItsText) {
  Start(Stories());
  grpc::ClientContext context;
  auto stream = generation_->Score(&context);
  v1::ScoreRequest request;
  request.mutable_prompt()->set_text("fine");
  stream->Write(request);
  request.mutable_prompt()->mutable_token_ids()->add_ids(512);
  stream->Write(request);
  v1::ScoreResponse response;
  EXPECT_TRUE(stream->Read(&response));
  EXPECT_FALSE(stream->Read(&response));
  const grpc::Status status = stream->Finish();
  EXPECT_EQ(status.error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_NE(status.error_message().find("text 1"), std::string::npos) << status.error_message();
}

// Another service, or this one when it is there again, can score what it had not: so its client tries again.
TEST_F(ServiceTest, AScoreThatTheEndOfADrainCutsShortIsUnavailable) {
  StepGate gate;
  StartLoading();
  server_->Serve(std::make_unique<HeldEngine>(MakeEngine(Stories()), &gate));
  gate.Hold();
  grpc::ClientContext context;
  auto stream = generation_->Score(&context);
  v1::ScoreRequest request;
  request.mutable_prompt()->set_text("Once upon a time");
  ASSERT_TRUE(stream->Write(request) && stream->Write(request));
  EXPECT_TRUE(Eventually([&] { return gate.submits() == 2; }));
  server_->Drain(0);
  EXPECT_TRUE(Eventually([&] { return gate.cancels() == 2; }));
  gate.Release();
  v1::ScoreResponse response;
  EXPECT_FALSE(stream->Read(&response));
  const grpc::Status status = stream->Finish();
  EXPECT_EQ(status.error_code(), grpc::UNAVAILABLE);
  EXPECT_NE(status.error_message().find("draining"), std::string::npos) << status.error_message();
  server_.reset();  // before the gate
}

}  // namespace
}  // namespace quire

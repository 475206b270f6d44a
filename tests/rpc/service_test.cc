// Generation of a group: what comes back is the engine's own output, by index and by name, and what is refused at the
// door.
#include "tests/rpc/service_fixture.h"

namespace quire {
namespace {

TEST_F(ServiceTest, AStreamIsTheEnginesOwnOutput) {
  Start(Stories());
  auto engine = MakeEngine(Stories());
  for (const float temperature : {0.0f, 1.0f}) {
    GenerationRequest own = Greedy(*engine->tokenizer()->Encode("Once upon a time", {}), 60);
    own.sampling.temperature = temperature;
    own.sampling.seed = 11;
    own.logprobs = 2;
    const Output wanted = RunOne(*engine, own);
    v1::GenerateRequest request = Story(60);
    request.mutable_sampling()->set_temperature(temperature);
    request.mutable_sampling()->set_seed(11);
    request.mutable_response()->set_logprobs(2);
    request.mutable_response()->set_echo_token_ids(true);
    Streams streams;
    ASSERT_TRUE(Stream(request, &streams).ok());
    ASSERT_EQ(streams.size(), 1u);
    const Pieces& got = streams[{0, 0}];
    EXPECT_EQ(got.ids, wanted.ids);
    EXPECT_EQ(got.text, wanted.text);
    ASSERT_EQ(got.logprobs.size(), wanted.logprobs.size());
    for (size_t i = 0; i < wanted.logprobs.size(); ++i) {
      EXPECT_EQ(got.logprobs[i].logprob(), wanted.logprobs[i].chosen.logprob);
      ASSERT_EQ(got.logprobs[i].top_ids_size(), 2);
      EXPECT_EQ(got.logprobs[i].top_ids(1), wanted.logprobs[i].top[1].id);
    }
    EXPECT_EQ(got.last.finish_reason(), v1::FINISH_REASON_LENGTH);
    EXPECT_EQ(got.last.usage().prompt_tokens(), static_cast<int>(own.prompt.size()));
    EXPECT_EQ(got.last.usage().completion_tokens(), 60);
    EXPECT_GT(got.last.timings().ttft_s(), 0);
  }
}

TEST_F(ServiceTest, PromptsTimesSequencesComeBackByIndexAndWholeAsStreamed) {
  Start(Stories());
  v1::GenerateRequest request = Story(24);
  request.add_prompts()->set_text("The little dog");
  request.mutable_prompts()->Add()->mutable_token_ids()->add_ids(1);
  request.mutable_sampling()->set_temperature(1);
  request.mutable_sampling()->set_seed(5);
  request.mutable_sampling()->set_n(2);
  request.mutable_response()->set_prompt_logprobs(1);
  request.mutable_response()->set_echo_token_ids(true);
  Streams streams;
  ASSERT_TRUE(Stream(request, &streams).ok());
  ASSERT_EQ(streams.size(), 6u);
  EXPECT_NE((streams[{0, 0}].ids), (streams[{0, 1}].ids));
  EXPECT_NE((streams[{0, 0}].ids), (streams[{1, 0}].ids));
  grpc::ClientContext context;
  v1::GenerateResponse response;
  ASSERT_TRUE(generation_->Generate(&context, request, &response).ok());
  ASSERT_EQ(response.outputs_size(), 6);
  for (int i = 0; i < 6; ++i) {
    const v1::Output& output = response.outputs(i);
    EXPECT_EQ(output.prompt_index(), i / 2);
    EXPECT_EQ(output.sequence_index(), i % 2);
    const Pieces& piece = streams[{i / 2, i % 2}];
    EXPECT_EQ(std::vector<int32_t>(output.token_ids().begin(), output.token_ids().end()), piece.ids);
    EXPECT_EQ(output.text(), piece.text);
    EXPECT_EQ(output.prompt_token_ids_size() > 0, i % 2 == 0);
    EXPECT_EQ(output.prompt_logprobs_size(), output.prompt_token_ids_size());
    if (i % 2 == 0) {
      EXPECT_FALSE(output.prompt_logprobs(0).has_id());
    }
  }
  EXPECT_TRUE(Eventually([&] { return Empty(); }));  // a request ends a moment before its step
}

TEST_F(ServiceTest, AStopStringIsNamedInTheLastChunk) {
  Start(Stories());
  v1::GenerateRequest request = Story(60);
  request.mutable_stopping()->add_stop("Lily");
  Streams streams;
  ASSERT_TRUE(Stream(request, &streams).ok());
  const Pieces& got = streams[{0, 0}];
  EXPECT_EQ(got.text, ", there was a little girl named ");
  EXPECT_EQ(got.last.finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(got.last.stop(), "Lily");
}

TEST_F(ServiceTest, AnIdInFlightIsAlreadyThereAndFreeAfterwards) {
  Start(Retriever());
  grpc::ClientContext context;
  auto reader = generation_->GenerateStream(&context, Endless("mine"));
  v1::GenerateChunk chunk;
  ASSERT_TRUE(reader->Read(&chunk));
  EXPECT_EQ(chunk.request_id(), "mine");
  Streams none;
  const grpc::Status second = Stream(Endless("mine"), &none);
  EXPECT_EQ(second.error_code(), grpc::ALREADY_EXISTS);
  EXPECT_NE(second.error_message().find("'mine'"), std::string::npos);
  EXPECT_TRUE(none.empty());
  context.TryCancel();
  while (reader->Read(&chunk)) {
  }
  (void)reader->Finish();
  v1::GenerateRequest again = Ids({256, 70, 71}, 5);
  again.set_request_id("mine");
  EXPECT_TRUE(Eventually([&] {
    Streams streams;
    return Stream(again, &streams).ok();
  }));
}

TEST_F(ServiceTest, AFullQueueRefuses) {
  ServeOptions serve;
  serve.max_queue = 3;
  Start(Retriever(), serve);
  grpc::ClientContext context;
  v1::GenerateRequest request = Endless("a");
  request.mutable_sampling()->set_n(2);
  auto reader = generation_->GenerateStream(&context, request);
  v1::GenerateChunk chunk;
  ASSERT_TRUE(reader->Read(&chunk));
  Streams none;
  request.set_request_id("b");
  const grpc::Status status = Stream(request, &none);
  EXPECT_EQ(status.error_code(), grpc::RESOURCE_EXHAUSTED);
  EXPECT_NE(status.error_message().find("--max-queue"), std::string::npos);
  Streams one;
  EXPECT_TRUE(Stream(Ids({256, 70}, 3), &one).ok());  // a single one still fits
  context.TryCancel();
  while (reader->Read(&chunk)) {
  }
  (void)reader->Finish();
}

TEST_F(ServiceTest, AnAddressInUseIsRefused) {
  Start(Stories());
  ServeOptions serve;
  serve.listen = server_->address();
  const auto second = GroupServer::Start(serve);
  EXPECT_EQ(second.status().code(), StatusCode::kUnavailable);
  EXPECT_NE(second.status().message().find(server_->address()), std::string::npos);
}

}  // namespace
}  // namespace quire

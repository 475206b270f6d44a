// Generation and Control of a group: what comes back, and what every way of ending a request leaves behind (nothing).
#include <grpcpp/generic/generic_stub.h>

#include <atomic>

#include "rpc/health.h"
#include "rpc/tokenizer_files.h"
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

TEST_F(ServiceTest, ACancelledCallFreesItsPages) {
  Start(Retriever());
  grpc::ClientContext context;
  auto reader = generation_->GenerateStream(&context, Endless());
  v1::GenerateChunk chunk;
  ASSERT_TRUE(reader->Read(&chunk));
  EXPECT_FALSE(Empty());
  context.TryCancel();
  while (reader->Read(&chunk)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::CANCELLED);
  EXPECT_TRUE(Eventually([&] { return Empty(); }));
}

TEST_F(ServiceTest, ADeadlineFreesItsPagesWhetherWholeOrStreamedOrResumable) {
  Start(Retriever());
  for (const bool resumable : {false, true}) {
    grpc::ClientContext context;
    context.set_deadline(In(0.15));
    v1::GenerateRequest request = Endless();
    request.set_resumable(resumable);
    auto reader = generation_->GenerateStream(&context, request);
    v1::GenerateChunk chunk;
    while (reader->Read(&chunk)) EXPECT_EQ(chunk.finish_reason(), v1::FINISH_REASON_UNSPECIFIED);
    EXPECT_EQ(reader->Finish().error_code(), grpc::DEADLINE_EXCEEDED);
    EXPECT_TRUE(Eventually([&] { return Empty(); }));
  }
  grpc::ClientContext context;
  context.set_deadline(In(0.15));
  v1::GenerateResponse response;
  EXPECT_EQ(generation_->Generate(&context, Endless(), &response).error_code(), grpc::DEADLINE_EXCEEDED);
  EXPECT_TRUE(Eventually([&] { return Empty(); }));
}

TEST_F(ServiceTest, ADeadlineOfZeroLeavesNothing) {
  Start(Retriever());
  for (int i = 0; i < 20; ++i) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now());
    auto reader = generation_->GenerateStream(&context, Endless("zero" + std::to_string(i)));
    v1::GenerateChunk chunk;
    while (reader->Read(&chunk)) {
    }
    EXPECT_EQ(reader->Finish().error_code(), grpc::DEADLINE_EXCEEDED);
  }
  EXPECT_TRUE(Eventually([&] { return Empty(); }));
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

TEST_F(ServiceTest, AbortGivesOneAbortedChunkASequenceAndThenOk) {
  Start(Retriever());
  v1::GenerateRequest request = Endless("two");
  request.mutable_prompts()->Add()->mutable_token_ids()->add_ids(256);
  request.mutable_sampling()->set_n(2);
  grpc::ClientContext context;
  auto reader = generation_->GenerateStream(&context, request);
  Streams streams;
  v1::GenerateChunk chunk;
  ASSERT_TRUE(reader->Read(&chunk));
  Collect(chunk, &streams);
  v1::AbortRequest abort;
  abort.add_request_ids("two");
  abort.add_request_ids("nobody");
  v1::AbortResponse aborted;
  grpc::ClientContext control;
  ASSERT_TRUE(control_->Abort(&control, abort, &aborted).ok());
  ASSERT_EQ(aborted.aborted_size(), 1);
  EXPECT_EQ(aborted.aborted(0), "two");
  while (reader->Read(&chunk)) Collect(chunk, &streams);
  EXPECT_TRUE(reader->Finish().ok());
  ASSERT_EQ(streams.size(), 4u);
  for (auto& [place, pieces] : streams) {
    EXPECT_EQ(pieces.last.finish_reason(), v1::FINISH_REASON_ABORTED);
    EXPECT_EQ(pieces.last.usage().completion_tokens(), static_cast<int>(pieces.ids.size()));
  }
  EXPECT_TRUE(Eventually([&] { return Empty(); }));
  grpc::ClientContext again;
  ASSERT_TRUE(control_->Abort(&again, abort, &aborted).ok());
  EXPECT_EQ(aborted.aborted_size(), 0);
}

TEST_F(ServiceTest, AResumedStreamGoesOnWhereItWas) {
  Start(Retriever());
  v1::GenerateRequest request = Ids(BytePrompt(64), 400);
  Streams wanted;
  ASSERT_TRUE(Stream(request, &wanted).ok());
  request.set_request_id("again");
  request.set_resumable(true);
  Streams streams;
  {
    grpc::ClientContext context;
    auto reader = generation_->GenerateStream(&context, request);
    v1::GenerateChunk chunk;
    ASSERT_TRUE(reader->Read(&chunk));
    Collect(chunk, &streams);
    context.TryCancel();
    (void)reader->Finish();
  }
  const auto resume = [&](int from, Streams* into) {
    v1::ResumeRequest message;
    message.set_request_id("again");
    if (from >= 0) message.add_positions()->set_next_token_index(from);
    grpc::ClientContext context;
    context.set_deadline(In(30));
    auto reader = generation_->Resume(&context, message);
    v1::GenerateChunk chunk;
    while (reader->Read(&chunk)) Collect(chunk, into);
    return reader->Finish();
  };
  const int have = static_cast<int>((streams[{0, 0}].ids.size()));
  ASSERT_TRUE(resume(have, &streams).ok());
  EXPECT_EQ((streams[{0, 0}].ids), (wanted[{0, 0}].ids));
  EXPECT_EQ((streams[{0, 0}].text), (wanted[{0, 0}].text));
  EXPECT_EQ((streams[{0, 0}].last.finish_reason()), v1::FINISH_REASON_LENGTH);
  // It has ended, and can still be read: from the beginning, and from the end.
  Streams whole;
  ASSERT_TRUE(resume(-1, &whole).ok());
  EXPECT_EQ((whole[{0, 0}].text), (wanted[{0, 0}].text));
  v1::ResumeRequest message;
  message.set_request_id("again");
  message.add_positions()->set_next_token_index(400);
  grpc::ClientContext context;
  auto reader = generation_->Resume(&context, message);
  v1::GenerateChunk chunk;
  ASSERT_TRUE(reader->Read(&chunk));
  EXPECT_EQ(chunk.token_ids_size(), 0);
  EXPECT_EQ(chunk.finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_FALSE(reader->Read(&chunk));
  EXPECT_TRUE(reader->Finish().ok());

  Streams none;
  EXPECT_EQ(resume(401, &none).error_code(), grpc::OUT_OF_RANGE);
  message.set_request_id("unknown");
  grpc::ClientContext other;
  auto missing = generation_->Resume(&other, message);
  EXPECT_FALSE(missing->Read(&chunk));
  EXPECT_EQ(missing->Finish().error_code(), grpc::NOT_FOUND);
}

TEST_F(ServiceTest, ANewReaderTakesOverAndTheOldCallEnds) {
  Start(Retriever());
  v1::GenerateRequest request = Ids(BytePrompt(64), 1500);
  request.set_request_id("r");
  request.set_resumable(true);
  grpc::ClientContext first;
  auto reader = generation_->GenerateStream(&first, request);
  v1::GenerateChunk chunk;
  ASSERT_TRUE(reader->Read(&chunk));
  v1::ResumeRequest message;
  message.set_request_id("r");
  grpc::ClientContext second;
  auto resumed = generation_->Resume(&second, message);
  std::thread old([&] {
    v1::GenerateChunk rest;
    while (reader->Read(&rest)) {
    }
    EXPECT_EQ(reader->Finish().error_code(), grpc::CANCELLED);
  });
  Streams streams;
  while (resumed->Read(&chunk)) Collect(chunk, &streams);
  EXPECT_TRUE(resumed->Finish().ok());
  EXPECT_EQ((streams[{0, 0}].ids.size()), 1500u);
  old.join();
}

TEST_F(ServiceTest, AResumableRequestThatNobodyReadsEndsAfterItsTime) {
  ServeOptions serve;
  serve.keep_s = 0.3;
  Start(Retriever(), serve);
  v1::GenerateRequest request = Endless("left");
  request.set_resumable(true);
  grpc::ClientContext context;
  auto reader = generation_->GenerateStream(&context, request);
  v1::GenerateChunk chunk;
  ASSERT_TRUE(reader->Read(&chunk));
  context.TryCancel();
  (void)reader->Finish();
  EXPECT_FALSE(Empty());  // it goes on meanwhile
  EXPECT_TRUE(Eventually([&] { return Empty(); }));
  std::this_thread::sleep_for(std::chrono::milliseconds(800));  // an attempt to read it would keep it longer
  v1::ResumeRequest message;
  message.set_request_id("left");
  grpc::ClientContext resume;
  auto gone = generation_->Resume(&resume, message);
  EXPECT_FALSE(gone->Read(&chunk));
  EXPECT_EQ(gone->Finish().error_code(), grpc::NOT_FOUND);
}

TEST_F(ServiceTest, AClientThatNeverReadsHoldsNobodyUpAndIsDropped) {
  ServeOptions serve;
  serve.unread_s = 0.5;
  Start(Retriever(), serve);
  grpc::ChannelArguments small;
  small.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 1024);
  small.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  small.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  const auto stub = v1::Generation::NewStub(
      grpc::CreateCustomChannel(server_->address(), grpc::InsecureChannelCredentials(), small));
  v1::GenerateRequest request = Ids(BytePrompt(64), 6000);
  request.mutable_response()->set_logprobs(200);  // some megabytes of output
  grpc::ClientContext context;
  auto reader = stub->GenerateStream(&context, request);
  // Others get on meanwhile.
  Streams streams;
  ASSERT_TRUE(Stream(Ids(BytePrompt(32), 200), &streams).ok());
  EXPECT_EQ((streams[{0, 0}].ids.size()), 200u);
  EXPECT_TRUE(Eventually([&] { return Empty(); }));
  v1::GenerateChunk chunk;
  int64_t tokens = 0;
  while (reader->Read(&chunk)) tokens += chunk.token_ids_size();
  const grpc::Status status = reader->Finish();
  EXPECT_LT(tokens, 6000);
  EXPECT_FALSE(status.ok());
}

TEST_F(ServiceTest, MoreOutputThanMayWaitEndsTheRequestWithASentence) {
  ServeOptions serve;
  serve.max_unread = 64 << 10;
  Start(Retriever(), serve);
  v1::GenerateRequest request = Ids(BytePrompt(64), 6000);
  request.mutable_response()->set_logprobs(200);
  request.set_resumable(true);  // whose output is kept, and so counts whole
  Streams streams;
  const grpc::Status status = Stream(request, &streams);
  EXPECT_EQ(status.error_code(), grpc::RESOURCE_EXHAUSTED);
  EXPECT_NE(status.error_message().find("bytes of this request's output wait"), std::string::npos);
  EXPECT_TRUE(Eventually([&] { return Empty(); }));
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

TEST_F(ServiceTest, ALoadingServiceSaysSoAndIsAliveButNotReady) {
  StartLoading();
  server_->SetLoading("weights", 0.4);
  Streams none;
  const grpc::Status status = Stream(Story(3), &none);
  EXPECT_EQ(status.error_code(), grpc::UNAVAILABLE);
  EXPECT_NE(status.error_message().find("weights 40%"), std::string::npos) << status.error_message();
  grpc::ClientContext context;
  v1::GetServerInfoResponse info;
  ASSERT_TRUE(control_->GetServerInfo(&context, {}, &info).ok());
  EXPECT_EQ(info.state(), v1::SERVER_STATE_LOADING);
  EXPECT_EQ(info.role(), "group");
  EXPECT_TRUE(*rpc::CheckHealth(channel_, "", 5));
  EXPECT_FALSE(*rpc::CheckHealth(channel_, "quire.v1.Generation", 5));
  server_->Serve(MakeEngine(Stories()));
  EXPECT_TRUE(Eventually([&] { return *rpc::CheckHealth(channel_, "quire.v1.Generation", 5); }));
  EXPECT_TRUE(*rpc::CheckHealth(channel_, "quire.v1.Worker", 5));
  EXPECT_EQ(rpc::CheckHealth(channel_, "quire.v1.Nothing", 5).status().code(), StatusCode::kNotFound);
  EXPECT_TRUE(Stream(Story(3), &none).ok());
}

TEST_F(ServiceTest, ADrainRefusesNewRequestsFinishesTheRunningAndAbortsTheRest) {
  Start(Retriever());
  v1::GenerateRequest fair = Ids(BytePrompt(64), 300);
  fair.set_request_id("fair");
  grpc::ClientContext short_context, long_context;
  auto short_reader = generation_->GenerateStream(&short_context, fair);
  auto long_reader = generation_->GenerateStream(&long_context, Endless("long"));
  v1::GenerateChunk chunk;
  Streams short_streams, long_streams;
  ASSERT_TRUE(short_reader->Read(&chunk));
  Collect(chunk, &short_streams);
  ASSERT_TRUE(long_reader->Read(&chunk));
  Collect(chunk, &long_streams);
  grpc::ClientContext context;
  v1::DrainRequest drain;
  drain.set_timeout_s(1);
  v1::DrainResponse answer;
  ASSERT_TRUE(control_->Drain(&context, drain, &answer).ok());
  EXPECT_EQ(answer.in_flight(), 2);
  Streams none;
  const grpc::Status refused = Stream(Ids({256}, 1), &none);
  EXPECT_EQ(refused.error_code(), grpc::UNAVAILABLE);
  EXPECT_NE(refused.error_message().find("draining"), std::string::npos);
  EXPECT_FALSE(*rpc::CheckHealth(channel_, "quire.v1.Generation", 5));
  EXPECT_TRUE(*rpc::CheckHealth(channel_, "", 5));
  while (short_reader->Read(&chunk)) Collect(chunk, &short_streams);
  EXPECT_TRUE(short_reader->Finish().ok());
  EXPECT_EQ((short_streams[{0, 0}].ids.size()), 300u);
  EXPECT_EQ((short_streams[{0, 0}].last.finish_reason()), v1::FINISH_REASON_LENGTH);
  while (long_reader->Read(&chunk)) Collect(chunk, &long_streams);
  EXPECT_TRUE(long_reader->Finish().ok());
  EXPECT_EQ((long_streams[{0, 0}].last.finish_reason()), v1::FINISH_REASON_ABORTED);
  EXPECT_TRUE(Eventually([&] { return server_->Drained(); }));
}

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

TEST_F(ServiceTest, TheTokenizerThatIsSentIsTheModels) {
  Start(Stories());
  grpc::ClientContext context;
  auto reader = control_->GetTokenizer(&context, {});
  std::vector<rpc::TokenizerFile> files;
  v1::GetTokenizerResponse part;
  while (reader->Read(&part)) {
    if (files.empty() || files.back().name != part.name()) files.push_back({part.name(), ""});
    files.back().data += part.data();
  }
  ASSERT_TRUE(reader->Finish().ok());
  const auto sent = rpc::MakeTokenizer(files);
  ASSERT_TRUE(sent.ok()) << sent.status().ToString();
  const auto own = *LoadTokenizer(DataPath("stories260K"));
  EXPECT_EQ(*(*sent)->Encode("Once upon a time", {}), *own->Encode("Once upon a time", {}));
}

TEST_F(ServiceTest, TheModelSaysWhatItIs) {
  EngineOptions options = Stories();
  options.attention = {*AttentionSpec::Parse("dense"), *AttentionSpec::Parse("quest:token_budget=128")};
  ServeOptions serve;
  serve.served_model = "tales";
  Start(options, serve);
  grpc::ClientContext context;
  v1::GetModelInfoResponse info;
  ASSERT_TRUE(control_->GetModelInfo(&context, {}, &info).ok());
  EXPECT_EQ(info.model(), "tales");
  EXPECT_EQ(info.vocab(), 512);
  EXPECT_EQ(info.dtype(), "float32");
  EXPECT_EQ(info.max_model_len(), 512);
  EXPECT_TRUE(info.has_tokenizer());
  EXPECT_EQ(info.model_hash().size(), 32u);
  ASSERT_EQ(info.attention_size(), 2);
  EXPECT_EQ(info.attention(1), "quest:token_budget=128");
  Streams streams;
  v1::GenerateRequest request = Story(3);
  request.set_model("tales");
  EXPECT_TRUE(Stream(request, &streams).ok());
  request.set_model("other");
  EXPECT_EQ(Stream(request, &streams).error_code(), grpc::NOT_FOUND);
}

// The reflection service answers a list of services: enough to see that it is there and knows ours.
TEST_F(ServiceTest, ReflectionListsTheServices) {
  Start(Stories());
  grpc::GenericStub stub(channel_);
  grpc::ClientContext context;
  context.set_deadline(In(20));
  grpc::CompletionQueue queue;
  auto call = stub.PrepareCall(&context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  void* tag = nullptr;
  bool ok = false;
  call->StartCall(nullptr);
  ASSERT_TRUE(queue.Next(&tag, &ok) && ok);
  const grpc::Slice list(std::string("\x3a\x00", 2));  // list_services = 7: ""
  call->Write(grpc::ByteBuffer(&list, 1), nullptr);
  ASSERT_TRUE(queue.Next(&tag, &ok) && ok);
  grpc::ByteBuffer answer;
  call->Read(&answer, nullptr);
  ASSERT_TRUE(queue.Next(&tag, &ok) && ok);
  std::vector<grpc::Slice> slices;
  ASSERT_TRUE(answer.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& slice : slices) bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  for (const char* name : {"quire.v1.Generation", "quire.v1.Control", "quire.v1.Worker", "grpc.health.v1.Health"}) {
    EXPECT_NE(bytes.find(name), std::string::npos) << name;
  }
  call->WritesDone(nullptr);
  ASSERT_TRUE(queue.Next(&tag, &ok));
  grpc::Status status;
  call->Finish(&status, nullptr);
  ASSERT_TRUE(queue.Next(&tag, &ok));
  queue.Shutdown();
}

// Holds the engine's step for as long as it is shut.
struct Gate : SelectionObserver {
  void OnSelect(const SelectParams&, const SelectionView&) override {
    while (shut) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  std::atomic<bool> shut = false;
};

TEST_F(ServiceTest, NotReadyWhileRequestsRunAndNoStepEnds) {
  Gate gate;
  ServeOptions serve;
  serve.stall_s = 0.3;
  StartLoading(serve);
  EngineOptions options = Retriever();
  options.attention = {*AttentionSpec::Parse("quest:token_budget=64:dense_layers=0")};
  auto engine = MakeEngine(options);
  engine->set_selection_observer(&gate);
  server_->Serve(std::move(engine));
  ASSERT_TRUE(Eventually([&] { return *rpc::CheckHealth(channel_, "quire.v1.Generation", 5); }));
  grpc::ClientContext context;
  auto reader = generation_->GenerateStream(&context, Ids(BytePrompt(400), 100000));
  v1::GenerateChunk chunk;
  ASSERT_TRUE(reader->Read(&chunk));
  gate.shut = true;
  EXPECT_TRUE(Eventually([&] { return !*rpc::CheckHealth(channel_, "quire.v1.Generation", 5); }));
  EXPECT_TRUE(*rpc::CheckHealth(channel_, "", 5));
  grpc::ClientContext info_context;
  v1::GetServerInfoResponse info;
  ASSERT_TRUE(control_->GetServerInfo(&info_context, {}, &info).ok());
  EXPECT_EQ(info.state(), v1::SERVER_STATE_STALLED);
  gate.shut = false;
  EXPECT_TRUE(Eventually([&] { return *rpc::CheckHealth(channel_, "quire.v1.Generation", 5); }));
  context.TryCancel();
  while (reader->Read(&chunk)) {
  }
  (void)reader->Finish();
  EXPECT_TRUE(Eventually([&] { return Empty(); }));
  server_.reset();  // before the gate
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

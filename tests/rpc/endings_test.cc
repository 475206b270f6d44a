// Every way of ending a request leaves nothing behind: cancelled, out of time, aborted, unread, drained.
#include "rpc/engine_backend.h"
#include "rpc/front.h"
#include "rpc/health.h"
#include "tests/rpc/service_fixture.h"
#include "tests/rpc/step_counted_endings.h"

namespace quire {
namespace {

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

TEST_F(ServiceTest, ACallThatItsClientEndsFreesSlotAndPagesWithinAStep) {
  StepGate gate;
  StartLoading();
  server_->Serve(std::make_unique<HeldEngine>(MakeEngine(Retriever()), &gate));
  StepCountedEndings(generation_.get(), &gate).All();
  server_.reset();  // before the gate
}

// At once: not when somebody looks whether anybody reads.
TEST(FrontEndings, ACallThatItsClientEndsIsEndedWithoutATick) {
  StepGate gate;
  rpc::EngineBackend backend({"test", "group", "", 1});
  rpc::FrontOptions options;
  options.tick_s = 1e6;
  rpc::Front front(options, &backend);
  ASSERT_TRUE(front.Start({}, {}).ok());
  EngineOptions engine = ModelOptions("retriever-2m");
  engine.kv_cache_bytes = 128 << 20;
  backend.SetEngine(std::make_unique<HeldEngine>(MakeEngine(engine), &gate), "");
  const auto stub = v1::Generation::NewStub(grpc::CreateChannel(front.address(), grpc::InsecureChannelCredentials()));
  {
    StepCountedEndings endings(stub.get(), &gate);
    endings.Stream(/*resumable=*/false, /*cancel=*/true);
    endings.Stream(/*resumable=*/false, /*cancel=*/false);
    endings.Whole();
    endings.Score();
  }
  front.Stop();
  backend.Stop();
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

TEST_F(ServiceTest, ADrainRefusesNewRequestsFinishesTheRunningAndAbortsTheRest) {
  Start(Retriever());
  const int tokens = kSlowness > 1 ? 60 : 600;  // not at their end before the drain begins
  v1::GenerateRequest fair = Ids(BytePrompt(64), tokens);
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
  const auto drain_within = [&](double seconds) {
    grpc::ClientContext context;
    v1::DrainRequest drain;
    drain.set_timeout_s(seconds);
    v1::DrainResponse answer;
    EXPECT_TRUE(control_->Drain(&context, drain, &answer).ok());
    return answer.in_flight();
  };
  EXPECT_EQ(drain_within(60 * kSlowness), 2);
  Streams none;
  const grpc::Status refused = Stream(Ids({256}, 1), &none);
  EXPECT_EQ(refused.error_code(), grpc::UNAVAILABLE);
  EXPECT_NE(refused.error_message().find("draining"), std::string::npos);
  EXPECT_FALSE(*rpc::CheckHealth(channel_, "quire.v1.Generation", 5));
  EXPECT_TRUE(*rpc::CheckHealth(channel_, "", 5));
  while (short_reader->Read(&chunk)) Collect(chunk, &short_streams);
  EXPECT_TRUE(short_reader->Finish().ok());
  EXPECT_EQ((short_streams[{0, 0}].ids.size()), static_cast<size_t>(tokens));
  EXPECT_EQ((short_streams[{0, 0}].last.finish_reason()), v1::FINISH_REASON_LENGTH);
  drain_within(0);  // the shorter time holds
  while (long_reader->Read(&chunk)) Collect(chunk, &long_streams);
  EXPECT_TRUE(long_reader->Finish().ok());
  EXPECT_EQ((long_streams[{0, 0}].last.finish_reason()), v1::FINISH_REASON_ABORTED);
  EXPECT_TRUE(Eventually([&] { return server_->Drained(); }));
}

}  // namespace
}  // namespace quire

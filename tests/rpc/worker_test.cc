// Worker.Execute from the coordinator's side: submissions, aborts, takeovers, and what a broken stream leaves; and
// registration.
#include <atomic>
#include <optional>

#include "rpc/convert.h"
#include "tests/rpc/held_engine.h"
#include "tests/rpc/service_fixture.h"

namespace quire {
namespace {

// One Execute stream, read message by message.
class Coordinator {
 public:
  explicit Coordinator(v1::Worker::Stub* stub) : stream_(stub->Execute(&context_)) {}
  ~Coordinator() {
    if (finished_) return;
    context_.TryCancel();
    v1::ExecuteResponse response;
    while (stream_->Read(&response)) {
    }
    (void)stream_->Finish();
  }

  bool Send(const v1::ExecuteRequest& request) { return stream_->Write(request); }
  bool Hello(const std::string& name = "c", const std::string& model_hash = "") {
    v1::ExecuteRequest request;
    request.mutable_hello()->set_coordinator(name);
    request.mutable_hello()->set_model_hash(model_hash);
    if (!Send(request)) return false;
    return ReadUntil([&] { return hello.has_value(); });
  }
  // Reads until `done`; false when the stream ends before.
  bool ReadUntil(const std::function<bool()>& done) {
    while (!done()) {
      v1::ExecuteResponse response;
      if (!stream_->Read(&response)) return false;
      Take(response);
    }
    return true;
  }
  grpc::Status Finish() {
    stream_->WritesDone();
    v1::ExecuteResponse response;
    while (stream_->Read(&response)) Take(response);
    finished_ = true;
    return stream_->Finish();
  }
  bool Finished(const std::string& id) { return ends.count(id) > 0 || failures.count(id) > 0; }

  struct Got {
    std::vector<int32_t> ids;
    std::string text;
    int first = -1;
  };
  std::optional<v1::WorkerHello> hello;
  std::map<std::string, std::map<int, Got>> got;  // by id/attempt, sequence
  std::map<std::string, v1::TokenEvent> ends;
  std::map<std::string, v1::Failure> failures;
  int loads = 0, messages = 0;
  v1::GroupLoad load;

 private:
  static std::string Name(const v1::AttemptId& id) { return id.request_id() + "/" + std::to_string(id.attempt()); }
  void Take(const v1::ExecuteResponse& response) {
    ++messages;
    if (response.has_hello()) hello = response.hello();
    for (const v1::TokenEvent& event : response.events()) {
      const Status read = rpc::ReadEvent(event, [&](const TokenEvent& one) {
        Got& g = got[Name(event.id())][one.sequence];
        if (g.first < 0) g.first = one.index;
        EXPECT_EQ(one.index, g.first + static_cast<int>(g.ids.size()));
        g.ids.insert(g.ids.end(), one.token_ids.begin(), one.token_ids.end());
        g.text += one.text;
      });
      EXPECT_TRUE(read.ok()) << read.ToString();
      if (event.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) ends[Name(event.id())] = event;
    }
    for (const v1::Failure& failure : response.failures()) failures[Name(failure.id())] = failure;
    if (response.has_load()) {
      ++loads;
      load = response.load();
    }
  }

  bool finished_ = false;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::ExecuteRequest, v1::ExecuteResponse>> stream_;
};

GenerationRequest Seeded(std::vector<int32_t> prompt, int tokens) {
  GenerationRequest request = Greedy(std::move(prompt), tokens);
  request.sampling.temperature = 1;
  request.sampling.seed = 77;
  return request;
}

void AddSubmission(const GenerationRequest& request, const std::string& id, uint32_t attempt, v1::ExecuteRequest* to) {
  v1::Submission* submission = to->add_submissions();
  rpc::WriteSubmission(request, submission);
  submission->mutable_id()->set_request_id(id);
  submission->mutable_id()->set_attempt(attempt);
}

TEST_F(ServiceTest, AStreamOfManySubmissionsGivesTheEnginesOwnTokens) {
  EngineOptions options = Stories();
  options.batch_invariant = true;
  Start(options);
  auto engine = MakeEngine(options);
  Coordinator coordinator(worker_.get());
  ASSERT_TRUE(coordinator.Hello());
  EXPECT_EQ(coordinator.hello->identity().vocab(), 512);
  EXPECT_TRUE(coordinator.hello->identity().batch_invariant());
  EXPECT_EQ(coordinator.hello->kept_size(), 0);
  v1::ExecuteRequest request;
  constexpr int kMany = 12;
  for (int i = 0; i < kMany; ++i) AddSubmission(Seeded({1, 400 + i}, 40), "r" + std::to_string(i), 0, &request);
  ASSERT_TRUE(coordinator.Send(request));
  ASSERT_TRUE(coordinator.ReadUntil([&] { return coordinator.ends.size() == kMany; }));
  for (int i = 0; i < kMany; ++i) {
    const Output wanted = RunOne(*engine, Seeded({1, 400 + i}, 40));
    const auto& got = coordinator.got["r" + std::to_string(i) + "/0"][0];
    EXPECT_EQ(got.ids, wanted.ids);
    EXPECT_EQ(got.text, wanted.text);
  }
  EXPECT_GT(coordinator.loads, 0);
  EXPECT_TRUE(coordinator.load.available());
  EXPECT_TRUE(coordinator.Finish().ok());
  EXPECT_TRUE(Eventually([&] { return Empty(); }));
}

TEST_F(ServiceTest, ASubmissionGoesOnBehindWhatAnotherGroupHasMade) {
  EngineOptions options = Stories();
  options.batch_invariant = true;
  Start(options);
  auto engine = MakeEngine(options);
  GenerationRequest whole = Seeded({1, 403}, 50);
  whole.sampling.n = 3;
  Collector collector;
  const auto id = engine->Submit(whole, collector.callback());
  ASSERT_TRUE(id.ok() && engine->Run().ok());
  Coordinator coordinator(worker_.get());
  ASSERT_TRUE(coordinator.Hello());
  v1::ExecuteRequest request;
  for (int s = 0; s < 3; ++s) {
    GenerationRequest rest = Seeded({1, 403}, 50);
    const auto& ids = collector.at(*id, s).ids;
    rest.resume = GenerationRequest::Resume{s, {ids.begin(), ids.begin() + 20}};
    AddSubmission(rest, "s" + std::to_string(s), 1, &request);
  }
  ASSERT_TRUE(coordinator.Send(request));
  ASSERT_TRUE(coordinator.ReadUntil([&] { return coordinator.ends.size() == 3; }));
  for (int s = 0; s < 3; ++s) {
    const auto& got = coordinator.got["s" + std::to_string(s) + "/1"];
    ASSERT_EQ(got.count(s), 1u);
    const auto& ids = collector.at(*id, s).ids;
    EXPECT_EQ(got.at(s).first, 20);
    EXPECT_EQ(got.at(s).ids, std::vector<int32_t>(ids.begin() + 20, ids.end()));
    EXPECT_TRUE(collector.at(*id, s).text.ends_with(got.at(s).text));
  }
}

TEST_F(ServiceTest, BadSubmissionsFailAloneWithTheirSentence) {
  Start(Stories());
  Coordinator coordinator(worker_.get());
  ASSERT_TRUE(coordinator.Hello());
  v1::ExecuteRequest request;
  AddSubmission(Seeded({1}, 5), "good", 0, &request);
  AddSubmission(Seeded({600}, 5), "id", 0, &request);
  AddSubmission(Seeded({1}, 5), "seed", 0, &request);
  request.mutable_submissions(2)->mutable_sampling()->clear_seed();
  AddSubmission(Seeded({1}, 5), "n", 0, &request);
  request.mutable_submissions(3)->mutable_sampling()->set_n(0);
  AddSubmission(Seeded({1}, 5), "first", 0, &request);
  request.mutable_submissions(4)->set_first_sequence(5000);
  AddSubmission(Seeded({1}, 5), "", 0, &request);
  ASSERT_TRUE(coordinator.Send(request));
  ASSERT_TRUE(coordinator.ReadUntil([&] { return coordinator.ends.size() == 1 && coordinator.failures.size() == 5; }));
  EXPECT_EQ(coordinator.ends.count("good/0"), 1u);
  for (const auto& [name, failure] : coordinator.failures) {
    EXPECT_EQ(failure.code(), static_cast<int>(StatusCode::kInvalidArgument)) << name;
    EXPECT_GT(failure.message().size(), 10u);
  }
}

TEST_F(ServiceTest, AnAbortedSubmissionEndsAndTheOthersGoOn) {
  Start(Retriever());
  Coordinator coordinator(worker_.get());
  ASSERT_TRUE(coordinator.Hello());
  v1::ExecuteRequest request;
  AddSubmission(Seeded(BytePrompt(64), 7000), "long", 3, &request);
  AddSubmission(Seeded(BytePrompt(64), 100), "short", 0, &request);
  ASSERT_TRUE(coordinator.Send(request));
  ASSERT_TRUE(coordinator.ReadUntil([&] { return !coordinator.got["long/3"].empty(); }));
  v1::ExecuteRequest abort;
  abort.add_aborts()->set_request_id("long");  // attempt 0: not in flight
  abort.add_aborts()->set_request_id("long");
  abort.mutable_aborts(1)->set_attempt(3);
  ASSERT_TRUE(coordinator.Send(abort));
  ASSERT_TRUE(coordinator.ReadUntil([&] { return coordinator.ends.size() == 2; }));
  EXPECT_EQ(coordinator.ends["long/3"].finish_reason(), v1::FINISH_REASON_ABORTED);
  EXPECT_EQ(coordinator.ends["short/0"].finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(coordinator.got["short/0"][0].ids.size(), 100u);
  EXPECT_TRUE(Eventually([&] { return Empty(); }));
}

TEST_F(ServiceTest, WhatABrokenStreamLeavesIsOfferedToTheNext) {
  EngineOptions options = Retriever();
  Start(options);
  auto engine = MakeEngine(options);
  const Output wanted = RunOne(*engine, Seeded(BytePrompt(64), 600));
  {
    Coordinator first(worker_.get());
    ASSERT_TRUE(first.Hello("c"));
    v1::ExecuteRequest request;
    AddSubmission(Seeded(BytePrompt(64), 600), "kept", 2, &request);
    request.mutable_submissions(0)->set_context("notes");
    AddSubmission(Seeded(BytePrompt(32), 7000), "unwanted", 0, &request);
    ASSERT_TRUE(first.Send(request));
    ASSERT_TRUE(first.ReadUntil([&] { return !first.got["kept/2"].empty(); }));
  }
  std::optional<Coordinator> second;
  ASSERT_TRUE(Eventually([&] {  // the broken stream is noticed a moment later
    second.emplace(worker_.get());
    EXPECT_TRUE(second->Hello("c"));
    return second->hello->kept_size() == 2;
  }));
  for (const v1::Submission& kept : second->hello->kept()) {
    if (kept.id().request_id() == "kept") {
      EXPECT_EQ(kept.context(), "notes");
    }
  }
  v1::ExecuteRequest request;
  request.add_attaches()->set_request_id("kept");
  request.mutable_attaches(0)->set_attempt(2);
  request.add_attaches()->set_request_id("unknown");
  request.add_aborts()->set_request_id("unwanted");
  ASSERT_TRUE(second->Send(request));
  ASSERT_TRUE(second->ReadUntil([&] { return second->Finished("kept/2") && second->Finished("unknown/0"); }));
  EXPECT_EQ(second->got["kept/2"][0].ids, wanted.ids);
  EXPECT_EQ(second->failures["unknown/0"].code(), static_cast<int>(StatusCode::kNotFound));
  EXPECT_TRUE(Eventually([&] { return Empty(); }));
}

// However much that is: a hello is a message, too.
TEST_F(ServiceTest, MoreThanAMessageTakesIsOfferedByIdAlone) {
  StepGate gate;
  StartLoading();
  server_->Serve(std::make_unique<HeldEngine>(MakeEngine(Retriever()), &gate));
  gate.Hold();
  constexpr int kMany = 80;
  {
    Coordinator first(worker_.get());
    ASSERT_TRUE(first.Hello("c"));
    for (int i = 0; i < kMany; ++i) {
      v1::ExecuteRequest request;
      AddSubmission(Seeded({256}, 10), "s" + std::to_string(i), 0, &request);
      request.mutable_submissions(0)->mutable_stopping()->add_stop(std::string(1 << 20, 'x'));
      ASSERT_TRUE(first.Send(request));
    }
    EXPECT_TRUE(Eventually([&] { return gate.submits() == kMany; }));
  }
  std::optional<Coordinator> second;
  ASSERT_TRUE(Eventually([&] {  // the broken stream is noticed a moment later
    second.emplace(worker_.get());
    EXPECT_TRUE(second->Hello("c"));
    return second->hello->kept_size() == kMany;
  }));
  EXPECT_LT(second->hello->ByteSizeLong(), 65u << 20);
  int whole = 0;
  for (const v1::Submission& kept : second->hello->kept()) {
    EXPECT_NE(kept.id().request_id(), "");
    whole += kept.stopping().stop_size();
  }
  EXPECT_GE(whole, 60);
  v1::ExecuteRequest aborts;
  for (const v1::Submission& kept : second->hello->kept()) *aborts.add_aborts() = kept.id();
  ASSERT_TRUE(second->Send(aborts));
  EXPECT_TRUE(Eventually([&] { return gate.cancels() == kMany; }));
  gate.Release();
  EXPECT_TRUE(Eventually([&] { return Empty(); }));
  second.reset();
  server_.reset();  // before the gate
}

TEST_F(ServiceTest, WhatNobodyTakesUpIsAbortedAfterItsTime) {
  ServeOptions serve;
  serve.keep_s = 0.3;
  Start(Retriever(), serve);
  {
    Coordinator coordinator(worker_.get());
    ASSERT_TRUE(coordinator.Hello());
    v1::ExecuteRequest request;
    AddSubmission(Seeded(BytePrompt(64), 7000), "left", 0, &request);
    ASSERT_TRUE(coordinator.Send(request));
    ASSERT_TRUE(coordinator.ReadUntil([&] { return !coordinator.got.empty(); }));
  }
  EXPECT_TRUE(Eventually([&] { return Empty(); }));
}

TEST_F(ServiceTest, AStreamWithoutAHelloOrForAnotherModelIsRefused) {
  Start(Stories());
  {
    Coordinator coordinator(worker_.get());
    v1::ExecuteRequest request;
    AddSubmission(Seeded({1}, 5), "x", 0, &request);
    ASSERT_TRUE(coordinator.Send(request));
    EXPECT_EQ(coordinator.Finish().error_code(), grpc::INVALID_ARGUMENT);
    EXPECT_TRUE(coordinator.ends.empty());
  }
  Coordinator coordinator(worker_.get());
  EXPECT_FALSE(coordinator.Hello("c", "0123"));
  const grpc::Status status = coordinator.Finish();
  EXPECT_EQ(status.error_code(), grpc::FAILED_PRECONDITION);
  EXPECT_NE(status.error_message().find("0123"), std::string::npos);
}

TEST_F(ServiceTest, ADrainingGroupSaysSoAndEndsItsStreamsWhenAllIsDone) {
  Start(Retriever());
  Coordinator coordinator(worker_.get());
  ASSERT_TRUE(coordinator.Hello());
  const int tokens = kSlowness > 1 ? 80 : 800;  // not at their end before the drain begins
  v1::ExecuteRequest request;
  AddSubmission(Seeded(BytePrompt(64), tokens), "last", 0, &request);
  ASSERT_TRUE(coordinator.Send(request));
  ASSERT_TRUE(coordinator.ReadUntil([&] { return !coordinator.got.empty(); }));
  server_->Drain();
  ASSERT_TRUE(coordinator.ReadUntil([&] { return coordinator.load.detail() == "draining"; }));
  EXPECT_FALSE(coordinator.load.available());
  v1::ExecuteRequest late;
  AddSubmission(Seeded({256}, 5), "late", 0, &late);
  coordinator.Send(late);
  const grpc::Status status = coordinator.Finish();
  EXPECT_EQ(coordinator.failures["late/0"].code(), static_cast<int>(StatusCode::kUnavailable));
  EXPECT_EQ(coordinator.got["last/0"][0].ids.size(), static_cast<size_t>(tokens));
  EXPECT_TRUE(Eventually([&] { return server_->Drained(); }));
}

class FakeRegistry : public v1::Registry::Service {
 public:
  grpc::Status Register(grpc::ServerContext*, const v1::RegisterRequest* request,
                        v1::RegisterResponse* response) override {
    std::lock_guard lock(mutex);
    last = *request;
    ++calls;
    response->set_interval_s(0.1);
    return grpc::Status::OK;
  }
  std::mutex mutex;
  v1::RegisterRequest last;
  std::atomic<int> calls = 0;
};

TEST_F(ServiceTest, AGroupRegistersAgainAndAgainUntilItDrains) {
  FakeRegistry registry;
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&registry);
  const auto server = builder.BuildAndStart();
  ServeOptions serve;
  serve.coordinators = {"127.0.0.1:" + std::to_string(port)};
  serve.group = "blue";
  Start(Stories(), serve);
  ASSERT_TRUE(Eventually([&] { return registry.calls >= 3; }));
  {
    std::lock_guard lock(registry.mutex);
    EXPECT_EQ(registry.last.identity().group(), "blue");
    EXPECT_EQ(registry.last.identity().model_hash().size(), 32u);
    EXPECT_EQ(registry.last.address(), server_->address().substr(server_->address().rfind(':')));
  }
  server_->Drain();
  std::this_thread::sleep_for(std::chrono::milliseconds(150));
  const int calls = registry.calls;
  std::this_thread::sleep_for(std::chrono::milliseconds(250));
  EXPECT_EQ(registry.calls, calls);
  server_.reset();
  server->Shutdown();
}

}  // namespace
}  // namespace quire

// The services through a coordinator: clients that don't read, deadlines, and what Resume refuses.
#include <atomic>

#include <numeric>

#include "tests/rpc/coordinator/local_cluster.h"

namespace quire {
namespace {

// Makes every step of a request with a policy last.
struct SlowSteps : SelectionObserver {
  void OnSelect(const SelectParams&, const SelectionView&) override {
    std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
  }
  std::atomic<int> milliseconds = 0;  // of each layer
};

EngineOptions Options() {
  EngineOptions options = ModelOptions("retriever-2m");
  options.batch_invariant = true;
  options.attention = {*AttentionSpec::Parse("dense"), *AttentionSpec::Parse("quest:token_budget=64:dense_layers=0")};
  return options;
}

v1::GenerateRequest Ask(int tokens, const std::string& id = "") {
  v1::GenerateRequest request;
  const std::vector<int32_t> ids = BytePrompt(100);
  request.add_prompts()->mutable_token_ids()->mutable_ids()->Assign(ids.begin(), ids.end());
  request.set_request_id(id);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_stopping()->set_max_tokens(tokens);
  request.mutable_stopping()->set_ignore_eos(true);
  return request;
}

grpc::Status RunStream(LocalCluster& cluster, const v1::GenerateRequest& request, Streams* streams, double deadline_s = 60) {
  grpc::ClientContext context;
  context.set_deadline(In(deadline_s));
  auto reader = cluster.generation().GenerateStream(&context, request);
  v1::GenerateChunk chunk;
  while (reader->Read(&chunk)) Collect(chunk, streams);
  return reader->Finish();
}

grpc::Status RunResume(LocalCluster& cluster, const v1::ResumeRequest& request, Streams* streams) {
  grpc::ClientContext context;
  context.set_deadline(In(60));
  auto reader = cluster.generation().Resume(&context, request);
  v1::GenerateChunk chunk;
  while (reader->Read(&chunk)) Collect(chunk, streams);
  return reader->Finish();
}

TEST(CoordinatorService, AClientThatNeverReadsIsDroppedItsOutputBoundedAndNobodyHeldUp) {
  CoordinatorOptions options;
  options.unread_s = 0.5;
  options.max_unread = 128 << 10;
  LocalCluster cluster(2, Options(), options);
  Streams undisturbed;
  ASSERT_TRUE(RunStream(cluster, Ask(300), &undisturbed).ok());
  ASSERT_TRUE(cluster.WaitEmpty());
  const int64_t before = cluster.Load().total().generation_tokens();

  // Windows that are small, so that what isn't read soon waits at the coordinator.
  grpc::ChannelArguments small;
  small.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 1024);
  small.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  small.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  const auto stub = v1::Generation::NewStub(
      grpc::CreateCustomChannel(cluster.address(), grpc::InsecureChannelCredentials(), small));
  v1::GenerateRequest unread = Ask(7000);
  unread.mutable_response()->set_logprobs(200);  // 1.6 kB a token, 11 MB in all
  constexpr int kUnread = 3;
  grpc::ClientContext contexts[kUnread];
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateChunk>>> readers;
  for (grpc::ClientContext& context : contexts) readers.push_back(stub->GenerateStream(&context, unread));
  for (int i = 0; i < 3; ++i) {
    Streams streams;
    ASSERT_TRUE(RunStream(cluster, Ask(300), &streams).ok());
    EXPECT_EQ((streams[{0, 0}].ids), (undisturbed[{0, 0}].ids));
  }
  EXPECT_TRUE(cluster.WaitEmpty());
  // What was made for them is what may wait (80 tokens), what the transport holds, and what was on its way.
  const int64_t made = cluster.Load().total().generation_tokens() - before - 3 * 300;
  EXPECT_GT(made, 0);
  EXPECT_LT(made, kUnread * 1000);
  for (auto& reader : readers) {
    v1::GenerateChunk chunk;
    int64_t tokens = 0;
    while (reader->Read(&chunk)) tokens += chunk.token_ids_size();
    EXPECT_LT(tokens, 1000);
    EXPECT_FALSE(reader->Finish().ok());
  }
}

TEST(CoordinatorService, AClientThatReadsTooLateIsToldWhy) {
  CoordinatorOptions options;
  options.max_unread = 64 << 10;
  LocalCluster cluster(1, Options(), options);
  v1::GenerateRequest request = Ask(7000);
  request.mutable_response()->set_logprobs(200);
  request.set_resumable(true);  // its output is kept, and so counts whole
  Streams streams;
  const grpc::Status status = RunStream(cluster, request, &streams);
  EXPECT_EQ(status.error_code(), grpc::RESOURCE_EXHAUSTED);
  EXPECT_NE(status.error_message().find("bytes of this request's output wait"), std::string::npos)
      << status.error_message();
  EXPECT_TRUE(cluster.WaitEmpty());
}

TEST(CoordinatorService, ADeadlineOfZeroLeavesNothing) {
  LocalCluster cluster(2, Options());
  for (int i = 0; i < 20; ++i) {
    Streams streams;
    EXPECT_EQ(RunStream(cluster, Ask(100000, "zero" + std::to_string(i)), &streams, 0).error_code(), grpc::DEADLINE_EXCEEDED);
    EXPECT_TRUE(streams.empty());
  }
  EXPECT_TRUE(cluster.WaitEmpty());
  Streams streams;
  EXPECT_TRUE(RunStream(cluster, Ask(5), &streams).ok());
}

TEST(CoordinatorService, ADeadlineInMidStreamFreesSlotAndPagesWithinAStep) {
  SlowSteps slow;
  EngineOptions options = Options();
  options.attention = {*AttentionSpec::Parse("quest:token_budget=64:dense_layers=3")};  // of four: one sleeps
  LocalCluster cluster(1, options, {}, {&slow});
  slow.milliseconds = 250;  // a step takes that long, the deadlines are of a few, and word comes in much less on a busy machine
  const auto expect_free = [&] {
    const int64_t then = cluster.GroupLoad(0).steps();
    EXPECT_TRUE(cluster.WaitEmpty());
    // The step that is running, and at most one that began before the word had come.
    EXPECT_LE(cluster.GroupLoad(0).steps() - then, 2);
  };
  for (const bool resumable : {false, true}) {
    v1::GenerateRequest request = Ask(100000);
    request.set_resumable(resumable);
    Streams streams;
    for (double seconds = 0.6 * kSlowness; streams.empty() && seconds < 20; seconds *= 2) {  // until one is in mid-stream
      EXPECT_EQ(RunStream(cluster, request, &streams, seconds).error_code(), grpc::DEADLINE_EXCEEDED);
      expect_free();
    }
    EXPECT_FALSE(streams.empty());
  }
  Streams streams;
  EXPECT_EQ(RunStream(cluster, Ask(100000), &streams, 0.01).error_code(), grpc::DEADLINE_EXCEEDED);
  expect_free();
  grpc::ClientContext context;
  context.set_deadline(In(0.6 * kSlowness));
  v1::GenerateResponse response;
  EXPECT_EQ(cluster.generation().Generate(&context, Ask(100000), &response).error_code(), grpc::DEADLINE_EXCEEDED);
  expect_free();
}

TEST(CoordinatorService, ADeadlineWhileTheRequestWaitsForAGroupLeavesNothing) {
  EngineOptions engine = Options();
  engine.max_num_seqs = 1;
  LocalCluster cluster(1, engine);
  grpc::ClientContext context;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateChunk>>> running;
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  for (int i = 0; i < 4; ++i) {  // one runs, one or two wait at the group, the others at the coordinator
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    running.push_back(cluster.generation().GenerateStream(contexts.back().get(), Ask(100000)));
  }
  Streams streams;
  EXPECT_EQ(RunStream(cluster, Ask(100000), &streams, 0.1).error_code(), grpc::DEADLINE_EXCEEDED);
  EXPECT_TRUE(Eventually([&] { return cluster.Load().total().running() + cluster.Load().total().waiting() == 4; }));
  for (auto& one : contexts) one->TryCancel();
  for (auto& reader : running) (void)reader->Finish();
  EXPECT_TRUE(cluster.WaitEmpty());
  EXPECT_TRUE(Eventually([&] { return cluster.Load().total().waiting() == 0; }));  // as of the group's next word
}

TEST(CoordinatorService, LoadIsRightWhenTheLastChunkHasCome) {
  LocalCluster cluster(2, Options());
  for (int i = 1; i <= 30; ++i) {
    Streams streams;
    ASSERT_TRUE(RunStream(cluster, Ask(1 + i % 3), &streams).ok());
    const v1::GroupLoad total = cluster.Load().total();
    EXPECT_EQ(total.running(), 0);
    EXPECT_EQ(total.waiting(), 0);
    EXPECT_EQ(total.tokens_in_flight(), 0);
    EXPECT_EQ(total.pages_free(), total.pages_total());
    EXPECT_EQ(total.requests_finished(), i);
    // The sum of both groups.
    EXPECT_EQ(total.sequences().length(), i);
    const auto count = [](const v1::Durations& durations) {
      return std::accumulate(durations.counts().begin(), durations.counts().end(), int64_t{0});
    };
    EXPECT_EQ(count(total.sequences().e2e()), i);
    EXPECT_EQ(count(total.sequences().time_to_first_token()), i);
    EXPECT_EQ(count(total.sequences().time_per_output_token()), i - i / 3);  // every third has one token
    EXPECT_GT(total.sequences().e2e().sum(), total.sequences().decode().sum());
  }
}

TEST(CoordinatorService, ResumeRefusesWhatItCanNotGoOnWith) {
  LocalCluster cluster(2, Options());
  v1::GenerateRequest seeded = Ask(40, "r");
  seeded.mutable_sampling()->set_temperature(1);
  seeded.mutable_sampling()->set_seed(3);
  seeded.mutable_sampling()->set_n(2);
  seeded.set_resumable(true);
  Streams wanted;
  {
    v1::GenerateRequest other = seeded;
    other.set_request_id("undisturbed");
    ASSERT_TRUE(RunStream(cluster, other, &wanted).ok());
  }
  // As a client brings it that has got `have` tokens of sequence 0.
  const auto brought = [&](const std::string& id, int have) {
    v1::ResumeRequest resume;
    resume.set_request_id(id);
    *resume.mutable_request() = seeded;
    resume.mutable_request()->set_request_id(id);
    v1::ResumePosition* position = resume.add_positions();
    position->set_next_token_index(have);
    const auto& ids = wanted[{0, 0}].ids;
    position->mutable_token_ids()->Assign(ids.begin(), ids.begin() + have);
    return resume;
  };
  using R = v1::ResumeRequest;
  struct Case {
    const char* what;
    std::function<void(R*)> spoil;
    grpc::StatusCode code;
    const char* says;
  };
  const std::vector<Case> unknown = {
      {"nothing brought along", [](R* r) { r->clear_request(); }, grpc::NOT_FOUND, "'new0'"},
      {"another name", [](R* r) { r->mutable_request()->set_request_id("s"); }, grpc::INVALID_ARGUMENT, "named 's'"},
      {"no name", [](R* r) { r->mutable_request()->clear_request_id(); }, grpc::INVALID_ARGUMENT, "named ''"},
      {"a prompt that isn't there", [](R* r) { r->mutable_positions(0)->set_prompt_index(1); }, grpc::INVALID_ARGUMENT,
       "prompt 1"},
      {"a sequence that isn't there", [](R* r) { r->mutable_positions(0)->set_sequence_index(2); },
       grpc::INVALID_ARGUMENT, "sequence 2"},
      {"a negative sequence", [](R* r) { r->mutable_positions(0)->set_sequence_index(-1); }, grpc::INVALID_ARGUMENT,
       "sequence -1"},
      {"a sequence twice", [](R* r) { *r->add_positions() = r->positions(0); }, grpc::INVALID_ARGUMENT, "twice"},
      {"tokens that are missing", [](R* r) { r->mutable_positions(0)->set_next_token_index(11); },
       grpc::INVALID_ARGUMENT, "next_token_index 11"},
      {"no seed", [](R* r) { r->mutable_request()->mutable_sampling()->clear_seed(); }, grpc::INVALID_ARGUMENT, "seed"},
      {"an id that is none", [](R* r) { r->mutable_positions(0)->set_token_ids(3, 100000); }, grpc::INVALID_ARGUMENT,
       "100000"},
      {"all tokens and no end",
       [&](R* r) {
         const auto& ids = wanted[{0, 0}].ids;
         r->mutable_positions(0)->set_next_token_index(40);
         r->mutable_positions(0)->mutable_token_ids()->Assign(ids.begin(), ids.end());
       },
       grpc::INVALID_ARGUMENT, "max_tokens"},
      {"no prompt", [](R* r) { r->mutable_request()->clear_prompts(); }, grpc::INVALID_ARGUMENT, "prompt"},
      {"n", [](R* r) { r->mutable_request()->mutable_sampling()->set_n(-1); }, grpc::INVALID_ARGUMENT, ""},
      {"another model", [](R* r) { r->mutable_request()->set_model("gpt"); }, grpc::NOT_FOUND, "gpt"},
  };
  const auto expect_refused = [&](const Case& bad, const std::string& id) {
    v1::ResumeRequest resume = brought(id, 10);
    bad.spoil(&resume);
    Streams none;
    const grpc::Status status = RunResume(cluster, resume, &none);
    EXPECT_EQ(status.error_code(), bad.code) << bad.what << ": " << status.error_message();
    EXPECT_NE(status.error_message().find(bad.says), std::string::npos) << bad.what << ": " << status.error_message();
    EXPECT_TRUE(none.empty()) << bad.what;
  };
  for (size_t i = 0; i < unknown.size(); ++i) expect_refused(unknown[i], "new" + std::to_string(i));
  EXPECT_TRUE(cluster.WaitEmpty());

  // Taken up rightly; afterwards it is known.
  const auto expect_rest = [&](const v1::ResumeRequest& resume, int have) {
    Streams got;
    const auto& whole = wanted[{0, 0}];
    got[{0, 0}].ids.assign(whole.ids.begin(), whole.ids.begin() + have);
    const grpc::Status status = RunResume(cluster, resume, &got);
    EXPECT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ((got[{0, 0}].ids), whole.ids);
    EXPECT_EQ((got[{0, 1}].ids), (wanted[{0, 1}].ids));
    EXPECT_EQ((got[{0, 1}].text), (wanted[{0, 1}].text));
    EXPECT_TRUE(whole.text.ends_with(got[{0, 0}].text));
  };
  expect_rest(brought("r", 10), 10);
  const std::vector<Case> known = {
      {"another name", [](R* r) { r->mutable_request()->set_request_id("s"); }, grpc::INVALID_ARGUMENT, "named 's'"},
      {"more than there is", [](R* r) { r->mutable_positions(0)->set_next_token_index(41); }, grpc::OUT_OF_RANGE, "41"},
      {"what this service never had", [](R* r) { r->mutable_positions(0)->set_next_token_index(9); },
       grpc::OUT_OF_RANGE, "9"},
      {"a sequence that isn't there", [](R* r) { r->mutable_positions(0)->set_sequence_index(2); },
       grpc::INVALID_ARGUMENT, "sequence 2"},
      {"a request of another shape", [](R* r) { r->mutable_request()->mutable_sampling()->set_n(3); },
       grpc::INVALID_ARGUMENT, "not the one that was sent"},
      {"more prompts", [](R* r) { *r->mutable_request()->add_prompts() = r->request().prompts(0); },
       grpc::INVALID_ARGUMENT, "not the one that was sent"},
      {"another prompt",
       [](R* r) { r->mutable_request()->mutable_prompts(0)->mutable_token_ids()->add_ids(5); }, grpc::INVALID_ARGUMENT,
       "not the one that was sent"},
      {"another seed", [](R* r) { r->mutable_request()->mutable_sampling()->set_seed(99); }, grpc::INVALID_ARGUMENT,
       "not the one that was sent"},
  };
  for (const Case& bad : known) expect_refused(bad, "r");
  expect_rest(brought("r", 25), 25);
  EXPECT_TRUE(cluster.WaitEmpty());

  // A client that has everything but the call's end.
  v1::ResumeRequest all = brought("all", 40);
  all.mutable_positions(0)->set_finished(true);
  *all.add_positions() = all.positions(0);
  all.mutable_positions(1)->set_sequence_index(1);
  Streams nothing;
  EXPECT_TRUE(RunResume(cluster, all, &nothing).ok());
  EXPECT_TRUE(nothing.empty());
}

// A short deadline of a call that is refused is not the running request's.
TEST(CoordinatorService, ARefusedResumeLeavesTheRunningRequestItsDeadline) {
  SlowSteps slow;
  LocalCluster cluster(1, Options(), {}, {&slow});
  v1::GenerateRequest request = Ask(80, "long");
  request.mutable_attention()->set_policy("quest");
  request.set_resumable(true);
  Streams wanted;
  {
    v1::GenerateRequest other = request;
    other.set_request_id("undisturbed");
    ASSERT_TRUE(RunStream(cluster, other, &wanted).ok());
  }
  slow.milliseconds = 3;  // it takes half a second or more
  Streams got;
  grpc::ClientContext context;
  auto reader = cluster.generation().GenerateStream(&context, request);
  v1::GenerateChunk chunk;
  ASSERT_TRUE(reader->Read(&chunk));
  Collect(chunk, &got);
  context.TryCancel();  // it goes on without a reader
  while (reader->Read(&chunk)) Collect(chunk, &got);
  (void)reader->Finish();
  v1::ResumeRequest resume;
  resume.set_request_id("long");
  resume.add_positions()->set_next_token_index(100000);
  grpc::ClientContext short_context;
  short_context.set_deadline(In(0.15));
  auto refused = cluster.generation().Resume(&short_context, resume);
  EXPECT_FALSE(refused->Read(&chunk));
  EXPECT_EQ(refused->Finish().error_code(), grpc::OUT_OF_RANGE);
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  resume.mutable_positions(0)->set_next_token_index(static_cast<int32_t>(got[{0, 0}].ids.size()));
  const grpc::Status status = RunResume(cluster, resume, &got);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ((got[{0, 0}].ids), (wanted[{0, 0}].ids));
}

}  // namespace
}  // namespace quire

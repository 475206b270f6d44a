// Bad input at a coordinator: what it and its groups refuse has the statuses and sentences that a group alone gives, and
// mutated messages disturb nobody.
#include <atomic>

#include "quire/v1/worker.grpc.pb.h"
#include "tests/rpc/bad_requests.h"
#include "tests/rpc/coordinator/local_cluster.h"
#include "tests/rpc/mutated_calls.h"

namespace quire {
namespace {

EngineOptions Options() {
  EngineOptions options = ModelOptions("stories260K");
  options.max_num_seqs = 16;
  return options;
}

v1::GenerateRequest Story(int tokens) {
  v1::GenerateRequest request;
  request.add_prompts()->set_text("Once upon a time");
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

TEST(CoordinatorInput, EveryFieldOutOfRangeIsRefusedWithASentenceByBothCalls) {
  LocalCluster cluster(2, Options());
  for (const BadRequest& bad : BadRequests()) {
    v1::GenerateRequest request = Story(4);
    bad.spoil(&request);
    Streams none;
    const grpc::Status streamed = RunStream(cluster, request, &none);
    EXPECT_EQ(streamed.error_code(), bad.code) << bad.what << ": " << streamed.error_message();
    EXPECT_NE(streamed.error_message().find(bad.says), std::string::npos) << bad.what << ": " << streamed.error_message();
    EXPECT_TRUE(none.empty()) << bad.what;
    grpc::ClientContext context;
    v1::GenerateResponse response;
    const grpc::Status whole = cluster.generation().Generate(&context, request, &response);
    EXPECT_EQ(whole.error_code(), bad.code) << bad.what << ": " << whole.error_message();
    EXPECT_NE(whole.error_message().find(bad.says), std::string::npos) << bad.what << ": " << whole.error_message();
  }
  Streams streams;
  EXPECT_TRUE(RunStream(cluster, Story(4), &streams).ok());
  EXPECT_TRUE(cluster.WaitEmpty());
  EXPECT_EQ(cluster.Load().total().failovers(), 0);  // no group was blamed for a request's fault
}

TEST(CoordinatorInput, EveryFieldOfATextToBeScoredOutOfRangeIsRefusedWithASentenceThatNamesTheText) {
  LocalCluster cluster(2, Options());
  ExpectBadScoresRefused(cluster.generation());
  EXPECT_TRUE(cluster.WaitEmpty());
  EXPECT_EQ(cluster.Load().total().failovers(), 0);
}

// What is too large for a group must not get there: the stream to it, with everybody's requests, would break.
TEST(CoordinatorInput, HugeMessagesAreRefusedAndDisturbNobody) {
  LocalCluster cluster(2, Options());
  Streams wanted;
  ASSERT_TRUE(RunStream(cluster, Story(300), &wanted).ok());
  std::atomic<bool> done = false;
  std::thread beside([&] {
    while (!done) {
      Streams streams;
      const grpc::Status status = RunStream(cluster, Story(300), &streams);
      EXPECT_TRUE(status.ok()) << status.error_message();
      EXPECT_EQ((streams[{0, 0}].ids), (wanted[{0, 0}].ids));
    }
  });
  const auto expect = [&](const v1::GenerateRequest& request, grpc::StatusCode code, const char* says) {
    Streams none;
    const grpc::Status status = RunStream(cluster, request, &none);
    EXPECT_EQ(status.error_code(), code) << status.error_message();
    EXPECT_NE(status.error_message().find(says), std::string::npos) << status.error_message();
    EXPECT_TRUE(none.empty());
  };
  v1::GenerateRequest request = Story(4);
  request.mutable_prompts(0)->set_text(std::string((256 << 20) + 1, 'a'));
  expect(request, grpc::RESOURCE_EXHAUSTED, "");  // the transport's own sentence
  request.mutable_prompts(0)->set_text(std::string(10 << 20, 'a'));
  expect(request, grpc::INVALID_ARGUMENT, "can't hold");
  // Ids of five bytes, as many as the message takes: with what a group is told beside them they are too many for
  // another.
  const auto fill = [](google::protobuf::RepeatedField<int32_t>* ids, const google::protobuf::Message& message) {
    ids->Resize(static_cast<int>(((256u << 20) - message.ByteSizeLong() - 20) / 5), 1 << 28);
    EXPECT_GT(message.ByteSizeLong(), (256u << 20) - 20);
    EXPECT_LE(message.ByteSizeLong(), 256u << 20);
    return ids->size();
  };
  fill(request.mutable_prompts(0)->mutable_token_ids()->mutable_ids(), request);
  expect(request, grpc::INVALID_ARGUMENT, "the context takes 512");

  v1::ResumeRequest resume;  // as a client brings it whose coordinator was restarted
  resume.set_request_id("huge");
  *resume.mutable_request() = Story(100000000);
  resume.mutable_request()->set_request_id("huge");
  resume.mutable_request()->set_resumable(true);
  v1::ResumePosition* position = resume.add_positions();
  position->set_next_token_index(100000000);
  const int brought = fill(position->mutable_token_ids(), resume);
  position->set_next_token_index(brought);
  grpc::ClientContext context;
  auto reader = cluster.generation().Resume(&context, resume);
  v1::GenerateChunk chunk;
  EXPECT_FALSE(reader->Read(&chunk));
  const grpc::Status resumed = reader->Finish();
  EXPECT_EQ(resumed.error_code(), grpc::INVALID_ARGUMENT) << resumed.error_message();
  EXPECT_NE(resumed.error_message().find(std::to_string(brought)), std::string::npos) << resumed.error_message();

  v1::ScoreRequest score;
  v1::ScoreResponse scored;
  score.mutable_prompt()->set_text(std::string(10 << 20, 'a'));
  EXPECT_EQ(ScoreOne(cluster.generation(), score, &scored).error_code(), grpc::INVALID_ARGUMENT);
  score.clear_prompt();
  fill(score.mutable_prompt()->mutable_token_ids()->mutable_ids(), score);
  EXPECT_EQ(ScoreOne(cluster.generation(), score, &scored).error_code(), grpc::INVALID_ARGUMENT);
  done = true;
  beside.join();
  EXPECT_TRUE(cluster.WaitEmpty());
  EXPECT_EQ(cluster.Load().total().failovers(), 0);
}

void RunMutated(int count) {
  LocalCluster cluster(2, Options());
  MutatedCalls calls(ChannelTo(cluster.address()));
  SCOPED_TRACE("QUIRE_TEST_SEED=" + std::to_string(calls.seed()));
  Streams wanted;
  ASSERT_TRUE(RunStream(cluster, Story(300), &wanted).ok());
  std::atomic<bool> done = false;
  std::thread beside([&] {
    while (!done) {
      Streams streams;
      const grpc::Status status = RunStream(cluster, Story(300), &streams);
      EXPECT_TRUE(status.ok()) << status.error_message();
      EXPECT_EQ((streams[{0, 0}].ids), (wanted[{0, 0}].ids));
    }
  });
  v1::ScoreRequest score;
  score.mutable_prompt()->set_text("The dog");
  score.set_top(2);
  v1::AbortRequest abort;
  abort.add_request_ids("f2");
  v1::RegisterRequest group;  // of another model, so that what is left of it is never taken up
  group.set_address("127.0.0.1:1");
  group.mutable_identity()->set_group("stranger");
  group.mutable_identity()->set_incarnation(7);
  group.mutable_identity()->set_model_hash("0123");
  for (int i = 0; i < count; ++i) {
    // As a client brings it whose coordinator was restarted.
    v1::ResumeRequest resume;
    *resume.mutable_request() = calls.GoodRequest();
    resume.mutable_request()->set_resumable(true);
    resume.set_request_id(resume.request().request_id());
    resume.add_positions()->set_next_token_index(1);
    resume.mutable_positions(0)->add_token_ids(403);
    switch (calls.Draw() % 10) {
      case 0: calls.Random<v1::ResumeRequest>("/quire.v1.Generation/Resume"); break;
      case 1: case 2: calls.Spoilt("/quire.v1.Generation/GenerateStream", calls.GoodRequest()); break;
      case 3: calls.Spoilt("/quire.v1.Generation/Generate", calls.GoodRequest()); break;
      case 4: case 5: case 6: calls.Spoilt("/quire.v1.Generation/Resume", resume); break;
      case 7: calls.Spoilt("/quire.v1.Generation/Score", score); break;
      case 8: calls.Spoilt("/quire.v1.Control/Abort", abort); break;
      default: calls.Spoilt("/quire.v1.Registry/Register", group); break;
    }
  }
  done = true;
  beside.join();
  // What a resumable request leaves runs to its end by itself.
  EXPECT_TRUE(cluster.WaitEmpty());
  calls.ExpectMixed();
  EXPECT_EQ(cluster.Load().total().failovers(), 0);
}

TEST(CoordinatorInput, FiveHundredMutatedMessagesDisturbNobody) { RunMutated(500); }
TEST(SlowCoordinatorInput, TenThousandMutatedMessagesDisturbNobody) { RunMutated(10000); }

}  // namespace
}  // namespace quire

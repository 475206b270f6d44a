// Random and mutated messages against a live service, beside streams that must not notice.
#include <atomic>

#include "tests/rpc/mutated_calls.h"
#include "tests/rpc/service_fixture.h"

namespace quire {
namespace {

class FuzzTest : public ServiceTest {
 protected:
  void Run(int count) {
    EngineOptions options = Stories();
    options.max_num_seqs = 16;
    Start(options);
    MutatedCalls calls(channel_);
    SCOPED_TRACE("QUIRE_TEST_SEED=" + std::to_string(calls.seed()));
    Streams wanted;
    ASSERT_TRUE(Stream(Story(300), &wanted).ok());
    std::atomic<bool> done = false;
    std::thread beside([&] {
      while (!done) {
        Streams streams;
        const grpc::Status status = Stream(Story(300), &streams);
        EXPECT_TRUE(status.ok()) << status.error_message();
        EXPECT_EQ((streams[{0, 0}].ids), (wanted[{0, 0}].ids));
      }
    });
    v1::ScoreRequest score;
    score.mutable_prompt()->set_text("The dog");
    score.set_top(2);
    v1::ResumeRequest resume;
    resume.set_request_id("f1");
    resume.add_positions()->set_next_token_index(1);
    v1::AbortRequest abort;
    abort.add_request_ids("f2");
    v1::ExecuteRequest execute;
    execute.mutable_hello()->set_coordinator("c");
    v1::Submission* submission = execute.add_submissions();
    submission->mutable_id()->set_request_id("s");
    submission->add_prompt_token_ids(1);
    submission->mutable_sampling()->set_seed(1);
    submission->mutable_stopping()->set_max_tokens(4);
    submission->add_output_token_ids(5);
    for (int i = 0; i < count; ++i) {
      switch (calls.Draw() % 10) {
        case 0: calls.Random<v1::GenerateRequest>("/quire.v1.Generation/GenerateStream"); break;
        case 1: case 2: case 3: calls.Spoilt("/quire.v1.Generation/GenerateStream", calls.GoodRequest()); break;
        case 4: case 5: calls.Spoilt("/quire.v1.Generation/Generate", calls.GoodRequest()); break;
        case 6: calls.Spoilt("/quire.v1.Generation/Score", score); break;
        case 7: calls.Spoilt("/quire.v1.Generation/Resume", resume); break;
        case 8: calls.Spoilt("/quire.v1.Control/Abort", abort); break;
        default: calls.Spoilt("/quire.v1.Worker/Execute", execute); break;
      }
    }
    done = true;
    beside.join();
    EXPECT_TRUE(Eventually([&] { return Empty(); }));
    calls.ExpectMixed();
  }
};

TEST_F(FuzzTest, AThousandMutatedMessagesDisturbNobody) { Run(1000); }

class SlowFuzzTest : public FuzzTest {};
TEST_F(SlowFuzzTest, TwentyThousandMutatedMessagesDisturbNobody) { Run(20000); }

}  // namespace
}  // namespace quire

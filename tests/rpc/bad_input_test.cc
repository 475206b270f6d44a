// Every field of a request out of its range, and messages too large: the right status, a sentence that names the value,
// and a service that goes on.
#include <limits>

#include "tests/rpc/bad_requests.h"
#include "tests/rpc/service_fixture.h"

namespace quire {
namespace {

TEST_F(ServiceTest, EveryFieldOutOfRangeIsRefusedWithASentenceByBothCalls) {
  Start(Stories());
  for (const BadRequest& bad : BadRequests()) {
    v1::GenerateRequest request = Story(4);
    bad.spoil(&request);
    Streams none;
    const grpc::Status streamed = Stream(request, &none);
    EXPECT_EQ(streamed.error_code(), bad.code) << bad.what << ": " << streamed.error_message();
    EXPECT_NE(streamed.error_message().find(bad.says), std::string::npos) << bad.what << ": "
                                                                          << streamed.error_message();
    grpc::ClientContext context;
    v1::GenerateResponse response;
    const grpc::Status whole = generation_->Generate(&context, request, &response);
    EXPECT_EQ(whole.error_code(), bad.code) << bad.what;
    EXPECT_EQ(whole.error_message(), streamed.error_message()) << bad.what;
  }
  Streams streams;
  EXPECT_TRUE(Stream(Story(4), &streams).ok());
  EXPECT_TRUE(Eventually([&] { return Empty(); }));
}

TEST_F(ServiceTest, EveryFieldOfATextToBeScoredOutOfRangeIsRefusedWithASentenceThatNamesTheText) {
  Start(Stories());
  ExpectBadScoresRefused(*generation_);
  EXPECT_TRUE(Eventually([&] { return Empty(); }));
}

TEST_F(ServiceTest, ARequestLargerThanTheWholeCacheIsResourceExhausted) {
  EngineOptions options = Retriever();
  options.kv_cache_bytes = 4 << 20;
  Start(options);
  Streams none;
  const grpc::Status status = Stream(Ids(BytePrompt(4000), 4000), &none);
  EXPECT_EQ(status.error_code(), grpc::RESOURCE_EXHAUSTED) << status.error_message();
}

TEST_F(ServiceTest, AHugeTextIsRefusedWithoutBeingEncodedAndATooHugeOneByTheTransport) {
  Start(Stories());
  v1::GenerateRequest request = Story(4);
  request.mutable_prompts(0)->set_text(std::string(100 << 20, 'a'));
  Streams none;
  const double begin = NowSeconds();
  const grpc::Status large = Stream(request, &none);
  EXPECT_EQ(large.error_code(), grpc::INVALID_ARGUMENT) << large.error_message();
  EXPECT_NE(large.error_message().find("can't hold"), std::string::npos);
  EXPECT_LT(NowSeconds() - begin, 30 * kSlowness);
  request.mutable_prompts(0)->set_text(std::string((256 << 20) + 1, 'a'));
  EXPECT_EQ(Stream(request, &none).error_code(), grpc::RESOURCE_EXHAUSTED);
  Streams streams;
  EXPECT_TRUE(Stream(Story(4), &streams).ok());
}

TEST_F(ServiceTest, BadControlMessagesAreRefused) {
  Start(Stories());
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  for (const double timeout : {-1.0, std::numeric_limits<double>::quiet_NaN(), kInfinity}) {
    v1::DrainRequest drain;
    drain.set_timeout_s(timeout);
    v1::DrainResponse response;
    grpc::ClientContext context;
    EXPECT_EQ(control_->Drain(&context, drain, &response).error_code(), grpc::INVALID_ARGUMENT);
  }
  Streams streams;
  EXPECT_TRUE(Stream(Story(4), &streams).ok());  // it doesn't drain
  v1::ResumeRequest resume;
  resume.set_request_id("x");
  resume.add_positions()->set_prompt_index(-3);
  grpc::ClientContext context;
  auto reader = generation_->Resume(&context, resume);
  v1::GenerateChunk chunk;
  EXPECT_FALSE(reader->Read(&chunk));
  EXPECT_EQ(reader->Finish().error_code(), grpc::NOT_FOUND);
}

TEST_F(ServiceTest, PositionsOutsideARequestAreRefused) {
  Start(Retriever());
  v1::GenerateRequest request = Ids({256, 70}, 5);
  request.set_request_id("p");
  request.set_resumable(true);
  Streams streams;
  ASSERT_TRUE(Stream(request, &streams).ok());
  const auto code = [&](int prompt, int sequence, int token) {
    v1::ResumeRequest resume;
    resume.set_request_id("p");
    v1::ResumePosition* position = resume.add_positions();
    position->set_prompt_index(prompt);
    position->set_sequence_index(sequence);
    position->set_next_token_index(token);
    grpc::ClientContext context;
    auto reader = generation_->Resume(&context, resume);
    v1::GenerateChunk chunk;
    while (reader->Read(&chunk)) {
    }
    return reader->Finish().error_code();
  };
  EXPECT_EQ(code(-1, 0, 0), grpc::INVALID_ARGUMENT);
  EXPECT_EQ(code(1, 0, 0), grpc::INVALID_ARGUMENT);
  EXPECT_EQ(code(0, 1, 0), grpc::INVALID_ARGUMENT);
  EXPECT_EQ(code(2147483647, 2147483647, 0), grpc::INVALID_ARGUMENT);
  EXPECT_EQ(code(0, 0, -1), grpc::OUT_OF_RANGE);
  EXPECT_EQ(code(0, 0, 6), grpc::OUT_OF_RANGE);
  EXPECT_EQ(code(0, 0, 3), grpc::OK);
}

}  // namespace
}  // namespace quire

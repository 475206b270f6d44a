// Every field of a request out of its range, and messages too large: the right status, a sentence that names the value,
// and a service that goes on.
#include <limits>

#include "tests/rpc/service_fixture.h"

namespace quire {
namespace {

struct BadCase {
  const char* what;
  std::function<void(v1::GenerateRequest*)> spoil;
  grpc::StatusCode code;
  const char* says;  // part of the sentence
};

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

const std::vector<BadCase>& BadCases() {
  using R = v1::GenerateRequest;
  constexpr auto kInvalid = grpc::INVALID_ARGUMENT;
  static const std::vector<BadCase> kCases = {
      {"no prompt", [](R* r) { r->clear_prompts(); }, kInvalid, "0 prompts"},
      {"prompts", [](R* r) { for (int i = 0; i < 1024; ++i) r->add_prompts()->set_text("a"); }, kInvalid, "1025"},
      {"prompt not set", [](R* r) { r->mutable_prompts(0)->Clear(); }, kInvalid, "not set"},
      {"second prompt", [](R* r) { r->add_prompts(); }, kInvalid, "prompt 1"},
      {"empty text", [](R* r) { r->mutable_prompts(0)->set_text(""); }, kInvalid, "empty"},
      {"no ids", [](R* r) { r->mutable_prompts(0)->mutable_token_ids(); }, kInvalid, "no token ids"},
      {"negative id", [](R* r) { r->mutable_prompts(0)->mutable_token_ids()->add_ids(-1); }, kInvalid, "-1"},
      {"id", [](R* r) { r->mutable_prompts(0)->mutable_token_ids()->add_ids(512); }, kInvalid, "512"},
      {"no messages", [](R* r) { r->mutable_prompts(0)->mutable_messages(); }, kInvalid, "no messages"},
      {"messages", [](R* r) { r->mutable_prompts(0)->mutable_messages()->add_messages()->set_role("user"); },
       grpc::UNIMPLEMENTED, "template"},
      {"long prompt",
       [](R* r) {
         auto* ids = r->mutable_prompts(0)->mutable_token_ids();
         for (int i = 0; i < 512; ++i) ids->add_ids(1);
       },
       kInvalid, "512"},
      {"id too long", [](R* r) { r->set_request_id(std::string(300, 'x')); }, kInvalid, "300"},
      {"id with control", [](R* r) { r->set_request_id("a\nb"); }, kInvalid, "control"},
      {"model", [](R* r) { r->set_model("gpt"); }, grpc::NOT_FOUND, "gpt"},
      {"temperature", [](R* r) { r->mutable_sampling()->set_temperature(-0.5f); }, kInvalid, "-0.5"},
      {"temperature nan", [](R* r) { r->mutable_sampling()->set_temperature(kNan); }, kInvalid, "temperature"},
      {"temperature inf", [](R* r) { r->mutable_sampling()->set_temperature(kInfinity); }, kInvalid, "temperature"},
      {"top_k", [](R* r) { r->mutable_sampling()->set_top_k(-2); }, kInvalid, "top_k is -2"},
      {"top_p zero", [](R* r) { r->mutable_sampling()->set_top_p(0); }, kInvalid, "top_p is 0"},
      {"top_p", [](R* r) { r->mutable_sampling()->set_top_p(1.5f); }, kInvalid, "top_p is 1.5"},
      {"top_p nan", [](R* r) { r->mutable_sampling()->set_top_p(kNan); }, kInvalid, "top_p"},
      {"min_p", [](R* r) { r->mutable_sampling()->set_min_p(-1); }, kInvalid, "min_p is -1"},
      {"min_p above", [](R* r) { r->mutable_sampling()->set_min_p(2); }, kInvalid, "min_p is 2"},
      {"n zero", [](R* r) { r->mutable_sampling()->set_n(0); }, kInvalid, "n is 0"},
      {"n", [](R* r) { r->mutable_sampling()->set_n(1025); }, kInvalid, "n is 1025"},
      {"n huge", [](R* r) { r->mutable_sampling()->set_n(std::numeric_limits<int>::max()); }, kInvalid, "1024"},
      {"repetition", [](R* r) { r->mutable_penalties()->set_repetition_penalty(0); }, kInvalid, "repetition_penalty"},
      {"repetition nan", [](R* r) { r->mutable_penalties()->set_repetition_penalty(kNan); }, kInvalid,
       "repetition_penalty"},
      {"presence", [](R* r) { r->mutable_penalties()->set_presence_penalty(3); }, kInvalid, "presence_penalty is 3"},
      {"frequency", [](R* r) { r->mutable_penalties()->set_frequency_penalty(-3); }, kInvalid, "frequency_penalty"},
      {"bias id", [](R* r) { (*r->mutable_logit_bias())[512] = 1; }, kInvalid, "512"},
      {"bias", [](R* r) { (*r->mutable_logit_bias())[1] = 101; }, kInvalid, "logit_bias"},
      {"bias nan", [](R* r) { (*r->mutable_logit_bias())[1] = kNan; }, kInvalid, "logit_bias"},
      {"max_tokens", [](R* r) { r->mutable_stopping()->set_max_tokens(0); }, kInvalid, "max_tokens is 0"},
      {"min_tokens", [](R* r) { r->mutable_stopping()->set_min_tokens(-1); }, kInvalid, "min_tokens is -1"},
      {"min_tokens above", [](R* r) { r->mutable_stopping()->set_min_tokens(99); }, kInvalid, "min_tokens is 99"},
      {"empty stop", [](R* r) { r->mutable_stopping()->add_stop(""); }, kInvalid, "stop string is empty"},
      {"stops", [](R* r) { for (int i = 0; i < 257; ++i) r->mutable_stopping()->add_stop("x"); }, kInvalid, "257"},
      {"stop id", [](R* r) { r->mutable_stopping()->add_stop_token_ids(-7); }, kInvalid, "-7"},
      {"logprobs", [](R* r) { r->mutable_response()->set_logprobs(-2); }, kInvalid, "logprobs is -2"},
      {"logprobs above", [](R* r) { r->mutable_response()->set_logprobs(513); }, kInvalid, "logprobs is 513"},
      {"prompt_logprobs", [](R* r) { r->mutable_response()->set_prompt_logprobs(-2); }, kInvalid, "prompt_logprobs"},
      {"prompt_logprobs above", [](R* r) { r->mutable_response()->set_prompt_logprobs(513); }, kInvalid, "513"},
      {"policy", [](R* r) { r->mutable_attention()->set_policy("magic"); }, kInvalid, "magic"},
      {"budget zero",
       [](R* r) {
         r->mutable_attention()->set_policy("quest");
         r->mutable_attention()->set_token_budget(0);
       },
       kInvalid, "token_budget is 0"},
      {"option", [](R* r) { (*r->mutable_attention()->mutable_options())["a"] = "b"; }, kInvalid, "no policy"},
  };
  return kCases;
}

TEST_F(ServiceTest, EveryFieldOutOfRangeIsRefusedWithASentenceByBothCalls) {
  Start(Stories());
  for (const BadCase& bad : BadCases()) {
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
  for (const double timeout : {-1.0, static_cast<double>(kNan), static_cast<double>(kInfinity)}) {
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

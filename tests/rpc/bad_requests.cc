#include "tests/rpc/bad_requests.h"

#include <gtest/gtest.h>

#include <limits>
#include <string>

namespace quire {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int kMost = std::numeric_limits<int>::max(), kLeast = std::numeric_limits<int>::min();

void AddMessage(const std::string& role, v1::Prompt* prompt) {
  v1::Message* message = prompt->mutable_messages()->add_messages();
  message->set_role(role);
  message->set_content("hello");
}

}  // namespace

const std::vector<BadRequest>& BadRequests() {
  using R = v1::GenerateRequest;
  constexpr auto kInvalid = grpc::INVALID_ARGUMENT;
  static const std::vector<BadRequest> kCases = {
      {"no prompt", [](R* r) { r->clear_prompts(); }, kInvalid, "0 prompts"},
      {"prompts",
       [](R* r) {
         for (int i = 0; i < 1024; ++i) r->add_prompts()->set_text("a");
       },
       kInvalid, "1025"},
      {"prompt not set", [](R* r) { r->mutable_prompts(0)->Clear(); }, kInvalid, "not set"},
      {"second prompt", [](R* r) { r->add_prompts(); }, kInvalid, "prompt 1"},
      {"empty text", [](R* r) { r->mutable_prompts(0)->set_text(""); }, kInvalid, "empty"},
      {"no ids", [](R* r) { r->mutable_prompts(0)->mutable_token_ids(); }, kInvalid, "no token ids"},
      {"negative id", [](R* r) { r->mutable_prompts(0)->mutable_token_ids()->add_ids(-1); }, kInvalid, "-1"},
      {"id", [](R* r) { r->mutable_prompts(0)->mutable_token_ids()->add_ids(512); }, kInvalid, "512"},
      {"no messages", [](R* r) { r->mutable_prompts(0)->mutable_messages(); }, kInvalid, "no messages"},
      {"messages", [](R* r) { r->mutable_prompts(0)->mutable_messages()->add_messages()->set_role("user"); },
       grpc::UNIMPLEMENTED, "template"},
      {"unknown role", [](R* r) { AddMessage("tool", r->mutable_prompts(0)); }, kInvalid, "role \"tool\" is not known"},
      {"empty role", [](R* r) { AddMessage("", r->mutable_prompts(0)); }, kInvalid, "role \"\" is not known"},
      {"role in capitals", [](R* r) { AddMessage("User", r->mutable_prompts(0)); }, kInvalid, "role \"User\""},
      {"role of a second message",
       [](R* r) {
         AddMessage("user", r->mutable_prompts(0));
         AddMessage("user ", r->mutable_prompts(0));
       },
       kInvalid, "role \"user \""},
      {"long role", [](R* r) { AddMessage(std::string(100000, 'x'), r->mutable_prompts(0)); }, kInvalid, "role \"xxx"},
      {"many messages",
       [](R* r) {
         for (int i = 0; i < 513; ++i) AddMessage("user", r->mutable_prompts(0));
       },
       kInvalid, "513 messages"},
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
      {"min_p nan", [](R* r) { r->mutable_sampling()->set_min_p(kNan); }, kInvalid, "min_p"},
      {"n zero", [](R* r) { r->mutable_sampling()->set_n(0); }, kInvalid, "n is 0"},
      {"n", [](R* r) { r->mutable_sampling()->set_n(1025); }, kInvalid, "n is 1025"},
      {"n huge", [](R* r) { r->mutable_sampling()->set_n(std::numeric_limits<int>::max()); }, kInvalid, "1024"},
      {"repetition", [](R* r) { r->mutable_penalties()->set_repetition_penalty(0); }, kInvalid, "repetition_penalty"},
      {"repetition nan", [](R* r) { r->mutable_penalties()->set_repetition_penalty(kNan); }, kInvalid,
       "repetition_penalty"},
      {"repetition above", [](R* r) { r->mutable_penalties()->set_repetition_penalty(101); }, kInvalid,
       "repetition_penalty is 101"},
      {"presence below", [](R* r) { r->mutable_penalties()->set_presence_penalty(-2.5f); }, kInvalid,
       "presence_penalty is -2.5"},
      {"presence nan", [](R* r) { r->mutable_penalties()->set_presence_penalty(kNan); }, kInvalid, "presence_penalty"},
      {"frequency above", [](R* r) { r->mutable_penalties()->set_frequency_penalty(2.5f); }, kInvalid,
       "frequency_penalty is 2.5"},
      {"frequency nan", [](R* r) { r->mutable_penalties()->set_frequency_penalty(kNan); }, kInvalid,
       "frequency_penalty"},
      {"presence", [](R* r) { r->mutable_penalties()->set_presence_penalty(3); }, kInvalid, "presence_penalty is 3"},
      {"frequency", [](R* r) { r->mutable_penalties()->set_frequency_penalty(-3); }, kInvalid, "frequency_penalty"},
      {"bias id", [](R* r) { (*r->mutable_logit_bias())[512] = 1; }, kInvalid, "512"},
      {"bias", [](R* r) { (*r->mutable_logit_bias())[1] = 101; }, kInvalid, "logit_bias"},
      {"bias below", [](R* r) { (*r->mutable_logit_bias())[1] = -101; }, kInvalid, "logit_bias"},
      {"bias nan", [](R* r) { (*r->mutable_logit_bias())[1] = kNan; }, kInvalid, "logit_bias"},
      {"max_tokens", [](R* r) { r->mutable_stopping()->set_max_tokens(0); }, kInvalid, "max_tokens is 0"},
      {"min_tokens", [](R* r) { r->mutable_stopping()->set_min_tokens(-1); }, kInvalid, "min_tokens is -1"},
      {"min_tokens above", [](R* r) { r->mutable_stopping()->set_min_tokens(99); }, kInvalid, "min_tokens is 99"},
      {"empty stop", [](R* r) { r->mutable_stopping()->add_stop(""); }, kInvalid, "stop string is empty"},
      {"stops",
       [](R* r) {
         for (int i = 0; i < 257; ++i) r->mutable_stopping()->add_stop("x");
       },
       kInvalid, "257"},
      {"stop id", [](R* r) { r->mutable_stopping()->add_stop_token_ids(-7); }, kInvalid, "-7"},
      {"stop id of no token", [](R* r) { r->mutable_stopping()->add_stop_token_ids(512); }, kInvalid, "512"},
      {"long stop", [](R* r) { r->mutable_stopping()->add_stop(std::string(9 << 20, 'x')); }, kInvalid,
       "bytes beside its prompts"},
      {"many stop ids", [](R* r) { r->mutable_stopping()->mutable_stop_token_ids()->Resize(9 << 20, 1); }, kInvalid,
       "bytes beside its prompts"},
      {"long option", [](R* r) { (*r->mutable_attention()->mutable_options())["a"] = std::string(9 << 20, 'x'); },
       kInvalid, "bytes beside its prompts"},
      {"long client", [](R* r) { r->set_client(std::string(9 << 20, 'x')); }, kInvalid, "bytes beside its prompts"},
      {"logprobs", [](R* r) { r->mutable_response()->set_logprobs(-2); }, kInvalid, "logprobs is -2"},
      {"logprobs above", [](R* r) { r->mutable_response()->set_logprobs(513); }, kInvalid, "logprobs is 513"},
      {"prompt_logprobs", [](R* r) { r->mutable_response()->set_prompt_logprobs(-2); }, kInvalid, "prompt_logprobs"},
      {"prompt_logprobs above", [](R* r) { r->mutable_response()->set_prompt_logprobs(513); }, kInvalid, "513"},
      {"prompt_logprobs most", [](R* r) { r->mutable_response()->set_prompt_logprobs(kMost); }, kInvalid,
       "prompt_logprobs is 2147483647"},
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

const std::vector<BadScore>& BadScores() {
  using R = v1::ScoreRequest;
  constexpr auto kInvalid = grpc::INVALID_ARGUMENT;
  static const std::vector<BadScore> kCases = {
      {"top", [](R* r) { r->set_top(-1); }, kInvalid, "top is -1"},
      {"top least", [](R* r) { r->set_top(kLeast); }, kInvalid, "top is -2147483648"},
      {"top above", [](R* r) { r->set_top(513); }, kInvalid, "top is 513"},
      {"top most", [](R* r) { r->set_top(kMost); }, kInvalid, "top is 2147483647"},
      {"no prompt", [](R* r) { r->clear_prompt(); }, kInvalid, "not set"},
      {"empty text", [](R* r) { r->mutable_prompt()->set_text(""); }, kInvalid, "empty"},
      {"no ids", [](R* r) { r->mutable_prompt()->mutable_token_ids(); }, kInvalid, "no token ids"},
      {"negative id", [](R* r) { r->mutable_prompt()->mutable_token_ids()->add_ids(-1); }, kInvalid, "-1"},
      {"id", [](R* r) { r->mutable_prompt()->mutable_token_ids()->add_ids(512); }, kInvalid, "512"},
      {"long text", [](R* r) { r->mutable_prompt()->mutable_token_ids()->mutable_ids()->Resize(513, 1); }, kInvalid,
       "513"},
      {"no messages", [](R* r) { r->mutable_prompt()->mutable_messages(); }, kInvalid, "no messages"},
      {"messages", [](R* r) { AddMessage("user", r->mutable_prompt()); }, grpc::UNIMPLEMENTED, "template"},
      {"unknown role", [](R* r) { AddMessage("tool", r->mutable_prompt()); }, kInvalid, "role \"tool\" is not known"},
      {"empty role", [](R* r) { AddMessage("", r->mutable_prompt()); }, kInvalid, "role \"\" is not known"},
      {"model", [](R* r) { r->set_model("gpt"); }, grpc::NOT_FOUND, "gpt"},
      {"long client", [](R* r) { r->set_client(std::string(9 << 20, 'x')); }, kInvalid, "bytes beside its prompts"},
  };
  return kCases;
}

grpc::Status ScoreOne(v1::Generation::Stub& generation, const v1::ScoreRequest& request, v1::ScoreResponse* response) {
  grpc::ClientContext context;
  const auto stream = generation.Score(&context);
  stream->Write(request);
  stream->WritesDone();
  stream->Read(response);
  v1::ScoreResponse more;
  EXPECT_FALSE(stream->Read(&more));
  return stream->Finish();
}

void ExpectBadScoresRefused(v1::Generation::Stub& generation) {
  v1::ScoreRequest good;
  good.mutable_prompt()->set_text("Once upon a time");
  for (const BadScore& bad : BadScores()) {
    v1::ScoreRequest request = good;
    bad.spoil(&request);
    grpc::ClientContext context;
    const auto stream = generation.Score(&context);
    stream->Write(good);
    stream->Write(request);
    v1::ScoreResponse response;
    EXPECT_TRUE(stream->Read(&response)) << bad.what;
    EXPECT_FALSE(stream->Read(&response)) << bad.what;
    const grpc::Status status = stream->Finish();
    EXPECT_EQ(status.error_code(), bad.code) << bad.what << ": " << status.error_message();
    EXPECT_NE(status.error_message().find(bad.says), std::string::npos) << bad.what << ": " << status.error_message();
    EXPECT_EQ(status.error_message().rfind("text 1: ", 0), 0u) << bad.what << ": " << status.error_message();
    request.set_index(1234567890123);
    const grpc::Status named = ScoreOne(generation, request, &response);
    EXPECT_EQ(named.error_code(), bad.code) << bad.what;
    EXPECT_EQ(named.error_message().rfind("text 1234567890123: ", 0), 0u) << bad.what << ": " << named.error_message();
  }
  v1::ScoreResponse response;
  for (const int top : {0, 512}) {
    v1::ScoreRequest request = good;
    request.set_top(top);
    const grpc::Status status = ScoreOne(generation, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    ASSERT_GT(response.logprobs_size(), 1);
    EXPECT_EQ(response.logprobs(1).top_ids_size(), top);
  }
  v1::ScoreRequest longest;
  longest.mutable_prompt()->mutable_token_ids()->mutable_ids()->Resize(512, 1);
  longest.set_index(-7);  // the caller's own number, whatever it is
  const grpc::Status status = ScoreOne(generation, longest, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.logprobs_size(), 512);
  EXPECT_EQ(response.index(), -7);
}

}  // namespace quire

#include "tests/rpc/bad_requests.h"

#include <limits>
#include <string>

namespace quire {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

}  // namespace

const std::vector<BadRequest>& BadRequests() {
  using R = v1::GenerateRequest;
  constexpr auto kInvalid = grpc::INVALID_ARGUMENT;
  static const std::vector<BadRequest> kCases = {
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

}  // namespace quire

// Messages ↔ structs, and events cut into pieces and put together again.
#include "rpc/convert.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace quire::rpc {
namespace {

GenerationRequest EveryField() {
  GenerationRequest r;
  r.sampling.temperature = 0.5f;
  r.sampling.top_k = 7;
  r.sampling.top_p = 0.9f;
  r.sampling.min_p = 0.1f;
  r.sampling.seed = 42;
  r.sampling.repetition_penalty = 1.2f;
  r.sampling.presence_penalty = -0.5f;
  r.sampling.frequency_penalty = 0.25f;
  r.sampling.logit_bias = {{3, 1.5f}, {9, -100.0f}};
  r.stopping.max_tokens = 9;
  r.stopping.min_tokens = 2;
  r.stopping.stop = {"a", "bc"};
  r.stopping.stop_token_ids = {5, 6};
  r.stopping.ignore_eos = true;
  r.stopping.include_stop = true;
  r.logprobs = 3;
  r.prompt_logprobs = 0;
  r.attention = AttentionSpec{"quest", {{"token_budget", "64"}, {"dense_layers", "1"}}};
  r.priority = -4;
  return r;
}

void ExpectSameParameters(const GenerationRequest& a, const GenerationRequest& b) {
  EXPECT_EQ(a.sampling.temperature, b.sampling.temperature);
  EXPECT_EQ(a.sampling.top_k, b.sampling.top_k);
  EXPECT_EQ(a.sampling.top_p, b.sampling.top_p);
  EXPECT_EQ(a.sampling.min_p, b.sampling.min_p);
  EXPECT_EQ(a.sampling.seed, b.sampling.seed);
  EXPECT_EQ(a.sampling.n, b.sampling.n);
  EXPECT_EQ(a.sampling.repetition_penalty, b.sampling.repetition_penalty);
  EXPECT_EQ(a.sampling.presence_penalty, b.sampling.presence_penalty);
  EXPECT_EQ(a.sampling.frequency_penalty, b.sampling.frequency_penalty);
  EXPECT_EQ(a.sampling.logit_bias, b.sampling.logit_bias);
  EXPECT_EQ(a.stopping.max_tokens, b.stopping.max_tokens);
  EXPECT_EQ(a.stopping.min_tokens, b.stopping.min_tokens);
  EXPECT_EQ(a.stopping.stop, b.stopping.stop);
  EXPECT_EQ(a.stopping.stop_token_ids, b.stopping.stop_token_ids);
  EXPECT_EQ(a.stopping.ignore_eos, b.stopping.ignore_eos);
  EXPECT_EQ(a.stopping.include_stop, b.stopping.include_stop);
  EXPECT_EQ(a.logprobs, b.logprobs);
  EXPECT_EQ(a.prompt_logprobs, b.prompt_logprobs);
  EXPECT_EQ(a.attention, b.attention);
  EXPECT_EQ(a.priority, b.priority);
}

TEST(Convert, ParametersComeBackAsTheyWent) {
  v1::GenerateRequest message;
  WriteParameters(EveryField(), &message);
  GenerationRequest back;
  ASSERT_TRUE(ReadParameters(message, &back).ok());
  ExpectSameParameters(EveryField(), back);
}

TEST(Convert, AbsentFieldsKeepTheDefaults) {
  GenerationRequest back;
  ASSERT_TRUE(ReadParameters(v1::GenerateRequest(), &back).ok());
  ExpectSameParameters(GenerationRequest(), back);
}

TEST(Convert, AZeroThatIsGivenIsNotADefault) {
  v1::GenerateRequest message;
  message.mutable_sampling()->set_temperature(0);
  message.mutable_stopping()->set_max_tokens(0);
  GenerationRequest back;
  ASSERT_TRUE(ReadParameters(message, &back).ok());
  EXPECT_EQ(back.sampling.temperature, 0);
  EXPECT_EQ(back.stopping.max_tokens, 0);  // for the engine to refuse
}

TEST(Convert, ASubmissionComesBackWithWhatItGoesOnBehind) {
  GenerationRequest r = EveryField();
  r.request_id = "x";
  r.prompt = {1, 2, 3};
  r.resume = GenerationRequest::Resume{4, {7, 8}};
  v1::Submission message;
  WriteSubmission(r, &message);
  const auto back = ReadSubmission(message);
  ASSERT_TRUE(back.ok()) << back.status().ToString();
  ExpectSameParameters(r, *back);
  EXPECT_EQ(back->prompt, r.prompt);
  ASSERT_TRUE(back->resume.has_value());
  EXPECT_EQ(back->resume->sequence, 4);
  EXPECT_EQ(back->resume->tokens, r.resume->tokens);
}

TEST(Convert, ASubmissionWithoutASeedOrWithManyResumedSequencesIsRefused) {
  GenerationRequest r = EveryField();
  r.sampling.seed.reset();
  v1::Submission message;
  WriteSubmission(r, &message);
  EXPECT_EQ(ReadSubmission(message).status().code(), StatusCode::kInvalidArgument);
  message.mutable_sampling()->set_seed(1);
  EXPECT_TRUE(ReadSubmission(message).ok());
  message.mutable_sampling()->set_n(2);
  EXPECT_TRUE(ReadSubmission(message).ok());
  message.add_output_token_ids(1);
  EXPECT_EQ(ReadSubmission(message).status().code(), StatusCode::kInvalidArgument);
}

TEST(Convert, TokenBudgetIsAnOptionAndMustNotContradictIt) {
  v1::GenerateRequest message;
  message.mutable_attention()->set_token_budget(64);
  GenerationRequest request;
  EXPECT_EQ(ReadParameters(message, &request).code(), StatusCode::kInvalidArgument);  // of no policy
  message.mutable_attention()->set_policy("quest");
  ASSERT_TRUE(ReadParameters(message, &request).ok());
  EXPECT_EQ(request.attention->options.at("token_budget"), "64");
  (*message.mutable_attention()->mutable_options())["token_budget"] = "65";
  EXPECT_EQ(ReadParameters(message, &request).code(), StatusCode::kInvalidArgument);
  message.mutable_attention()->clear_options();
  message.mutable_attention()->set_token_budget(0);
  EXPECT_EQ(ReadParameters(message, &request).code(), StatusCode::kInvalidArgument);
}

TEST(Convert, AnEventOfSeveralTokensIsCutIntoOneEach) {
  v1::TokenEvent message;
  message.set_sequence_index(2);
  message.set_token_index(5);
  for (int id : {10, 11, 12}) message.add_token_ids(id);
  message.set_text("abcdef");
  for (int size : {1, 0, 5}) message.add_text_sizes(size);
  message.set_finish_reason(v1::FINISH_REASON_STOP);
  message.set_stop("g");
  std::vector<TokenEvent> events;
  ASSERT_TRUE(ReadEvent(message, [&](const TokenEvent& event) { events.push_back(event); }).ok());
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(events[0].text, "a");
  EXPECT_EQ(events[1].text, "");
  EXPECT_EQ(events[2].text, "bcdef");
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(events[i].index, 5 + i);
    EXPECT_EQ(events[i].sequence, 2);
    EXPECT_EQ(events[i].token_ids, std::vector<int32_t>{10 + i});
    EXPECT_EQ(events[i].finished, i == 2);
  }
  EXPECT_EQ(events[2].matched_stop, "g");
  EXPECT_EQ(events[2].reason, FinishReason::kStop);

  message.set_text_sizes(2, 2);  // what is left came with the end alone
  events.clear();
  ASSERT_TRUE(ReadEvent(message, [&](const TokenEvent& event) { events.push_back(event); }).ok());
  ASSERT_EQ(events.size(), 4u);
  EXPECT_EQ(events[2].text, "bc");
  EXPECT_FALSE(events[2].finished);
  EXPECT_EQ(events[3].text, "def");
  EXPECT_TRUE(events[3].token_ids.empty());
  EXPECT_EQ(events[3].index, 8);
  EXPECT_TRUE(events[3].finished);
}

TEST(Convert, AnEventWhoseListsDontFitIsRefused) {
  const auto refused = [](const v1::TokenEvent& message) {
    int calls = 0;
    const Status status = ReadEvent(message, [&](const TokenEvent&) { ++calls; });
    return status.code() == StatusCode::kInvalidArgument && calls == 0;
  };
  v1::TokenEvent message;
  message.add_token_ids(1);
  message.set_text("ab");
  message.add_text_sizes(3);
  EXPECT_TRUE(refused(message));
  message.set_text_sizes(0, -1);
  EXPECT_TRUE(refused(message));
  message.set_text_sizes(0, 2);
  EXPECT_FALSE(refused(message));
  message.add_text_sizes(0);
  EXPECT_TRUE(refused(message));
  message.clear_text_sizes();
  message.add_logprobs();
  EXPECT_FALSE(refused(message));
  message.add_logprobs();
  EXPECT_TRUE(refused(message));
}

TEST(Convert, RequestIdsWithControlCharactersOrTooLongAreRefused) {
  EXPECT_TRUE(CheckRequestId("").ok());
  EXPECT_TRUE(CheckRequestId("häng 7/3#a").ok());
  EXPECT_TRUE(CheckRequestId(std::string(256, 'x')).ok());
  EXPECT_EQ(CheckRequestId(std::string(257, 'x')).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(CheckRequestId("a\x1f").code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(CheckRequestId(std::string("a\0b", 3)).code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace quire::rpc

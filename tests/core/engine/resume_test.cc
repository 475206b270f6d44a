// Outputs that another engine began: the next tokens and the next text are those that it would have given.
#include <string>
#include <vector>

#include "tests/core/engine/engine_fixture.h"

namespace quire {
namespace {

constexpr int kTokens = 24;

// What came behind the tokens given.
struct Continued {
  std::vector<int32_t> ids;
  std::string text;
  TokenEvent last;
};

Continued Resume(Engine& engine, GenerationRequest request, int sequence, std::vector<int32_t> tokens) {
  Continued out;
  const int first = static_cast<int>(tokens.size());
  request.resume = {sequence, std::move(tokens)};
  auto id = engine.Submit(request, [&](const TokenEvent& event) {
    EXPECT_EQ(event.sequence, sequence);
    EXPECT_EQ(event.index, first + static_cast<int>(out.ids.size()));
    out.ids.insert(out.ids.end(), event.token_ids.begin(), event.token_ids.end());
    out.text += event.text;
    if (first > 0) {
      EXPECT_TRUE(event.prompt_logprobs.empty());
    }
    out.last = event;
  });
  EXPECT_TRUE(id.ok()) << id.status().ToString();
  EXPECT_TRUE(engine.Run().ok());
  EXPECT_TRUE(out.last.finished);
  return out;
}

struct Case {
  std::string dtype;
  bool quest, seeded;
};

class ResumedOutput : public ::testing::TestWithParam<Case> {};

TEST_P(ResumedOutput, GoesOnAsTheLostEngineWouldHave) {
  const Case& c = GetParam();
  EngineOptions options = ModelOptions("stories260K");
  options.dtype = c.dtype;
  options.batch_invariant = true;
  options.page_size = 4;
  options.attention = {AttentionSpec{}, AttentionSpec::Parse("quest:token_budget=16:dense_layers=0").value()};
  auto lost = MakeEngine(options);
  ASSERT_NE(lost, nullptr);
  GenerationRequest request;
  request.prompt = lost->tokenizer()->Encode("Once upon a time there was a little dog who", {}).value();
  request.sampling.temperature = c.seeded ? 0.9f : 0.0f;
  request.sampling.seed = 11;
  request.sampling.repetition_penalty = 1.1f;
  request.stopping.max_tokens = kTokens;
  request.stopping.ignore_eos = true;
  if (c.quest) request.attention = options.attention[1];

  std::vector<TokenEvent> events;
  ASSERT_TRUE(lost->Submit(request, [&](const TokenEvent& event) { events.push_back(event); }).ok());
  ASSERT_TRUE(lost->Run().ok());
  std::vector<int32_t> ids;
  for (const TokenEvent& event : events) ids.insert(ids.end(), event.token_ids.begin(), event.token_ids.end());
  ASSERT_EQ(ids.size(), static_cast<size_t>(kTokens));

  options.max_num_batched_tokens = 16;
  auto engine = MakeEngine(options);
  ASSERT_NE(engine, nullptr);
  for (int done : {0, 1, 9, kTokens - 1}) {
    std::string text;
    for (size_t i = static_cast<size_t>(done); i < events.size(); ++i) text += events[i].text;
    const Continued rest = Resume(*engine, request, 0, {ids.begin(), ids.begin() + done});
    EXPECT_EQ(rest.ids, std::vector<int32_t>(ids.begin() + done, ids.end())) << "behind " << done;
    EXPECT_EQ(rest.text, text) << "behind " << done;
    EXPECT_EQ(rest.last.reason, FinishReason::kLength);
    EXPECT_EQ(rest.last.completion_tokens, kTokens);
    EXPECT_EQ(rest.last.prompt_tokens, static_cast<int>(request.prompt.size()));
  }
  EXPECT_EQ(engine->Stats().pages_free, engine->Stats().pages_total);
}

INSTANTIATE_TEST_SUITE_P(Kinds, ResumedOutput,
                         ::testing::Values(Case{"float32", false, false}, Case{"float32", true, true},
                                           Case{"bfloat16", true, false}, Case{"bfloat16", false, true}),
                         [](const auto& info) {
                           return info.param.dtype + (info.param.quest ? "Quest" : "Dense") +
                                  (info.param.seeded ? "Seeded" : "Greedy");
                         });

TEST(ResumedOutput, OfASequenceOfSeveralDrawsAsThatSequence) {
  EngineOptions options = ModelOptions("retriever-2m");
  options.batch_invariant = true;
  auto engine = MakeEngine(options);
  ASSERT_NE(engine, nullptr);
  GenerationRequest request = Greedy(BytePrompt(70), 12);
  request.sampling.temperature = 1.0f;
  request.sampling.seed = 5;
  request.sampling.n = 3;
  Collector collector;
  auto id = engine->Submit(request, collector.callback());
  ASSERT_TRUE(id.ok() && engine->Run().ok());
  request.sampling.n = 1;
  EXPECT_NE(collector.at(*id, 1).ids, collector.at(*id, 2).ids);
  for (int sequence : {1, 2}) {
    EXPECT_EQ(Resume(*engine, request, sequence, {}).ids, collector.at(*id, sequence).ids);
  }
}

TEST(ResumedOutput, StopStringsMayHaveBegunBefore) {
  EngineOptions options = ModelOptions("stories260K");
  auto engine = MakeEngine(options);
  ASSERT_NE(engine, nullptr);
  GenerationRequest request = Greedy(engine->tokenizer()->Encode("Once upon a time", {}).value(), 40);
  const Output free_run = RunOne(*engine, request);
  // A stop string that lies across the border of the tokens given and those to come.
  const std::string stop = free_run.text.substr(20, 12);
  request.stopping.stop = {stop};
  const Output stopped = RunOne(*engine, request);
  ASSERT_EQ(stopped.last.reason, FinishReason::kStop);
  for (size_t done = 1; done < stopped.ids.size(); ++done) {
    const Continued rest = Resume(*engine, request, 0, {stopped.ids.begin(), stopped.ids.begin() + done});
    EXPECT_EQ(rest.last.reason, FinishReason::kStop) << done;
    EXPECT_EQ(rest.last.matched_stop, stop);
    EXPECT_TRUE(stopped.text.ends_with(rest.text)) << rest.text;
    EXPECT_EQ(rest.ids.size() + done, stopped.ids.size());
  }
}

TEST(ResumedOutput, RefusesWhatNoEngineCanGoOnWith) {
  auto engine = MakeEngine(ModelOptions("retriever-2m"));
  ASSERT_NE(engine, nullptr);
  const auto refused = [&](auto change, const std::string& words) {
    GenerationRequest request = Greedy(BytePrompt(20), 8);
    request.resume = {0, {1, 2}};
    change(request);
    auto id = engine->Submit(request, {});
    ASSERT_FALSE(id.ok()) << words;
    EXPECT_EQ(id.status().code(), StatusCode::kInvalidArgument);
    EXPECT_NE(id.status().message().find(words), std::string::npos) << id.status().message();
  };
  refused([](auto& r) { r.resume->tokens = {1, 100000}; }, "100000");
  refused([](auto& r) { r.resume->tokens.assign(8, 1); }, "max_tokens");
  refused([](auto& r) { r.resume->sequence = -1; }, "sequence");
  refused([](auto& r) { r.sampling.n = 2; }, "n is 2");
  refused([](auto& r) { r.sampling.temperature = 1; }, "seed");
  refused([](auto& r) { r.forced = {1}; }, "forced");
  refused([](auto& r) { r.stopping.max_tokens = 1 << 20, r.resume->tokens.assign(1 << 19, 1); }, "room");
}

}  // namespace
}  // namespace quire

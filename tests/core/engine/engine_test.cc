#include "core/engine/engine.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "tests/core/engine/engine_fixture.h"

namespace quire {
namespace {

const char kStories[] = "stories260K";
const char kRetriever[] = "retriever-2m";

TEST(Engine, ReproducesTheGreedyReferencesAtAnyPageSizeDenseAndAtFullBudget) {
  const auto prompt = JsonInts(DataPath("stories260K/greedy_reference.json"), "prompt_ids");
  const auto want = JsonInts(DataPath("stories260K/greedy_reference.json"), "greedy_ids");
  for (const int page_size : {1, 3, 16, 64}) {
    EngineOptions options = ModelOptions(kStories);
    options.max_num_batched_tokens = 64;
    options.page_size = page_size;
    options.attention = {{}, {"quest", {{"token_budget", "512"}}}};
    auto engine = MakeEngine(options);
    ASSERT_NE(engine, nullptr);
    for (const AttentionSpec& attention : options.attention) {
      GenerationRequest request = Greedy(prompt, static_cast<int>(want.size()));
      request.attention = attention;
      const Output out = RunOne(*engine, request);
      EXPECT_EQ(out.ids, want) << attention.ToString() << " page size " << page_size;
      EXPECT_EQ(out.last.reason, FinishReason::kLength);
      EXPECT_EQ(out.last.attention.pages_read, out.last.attention.pages_total);
    }
  }
}

TEST(Engine, RetrieverReferenceWholeAndChunkedAndQuestReadsFewerPages) {
  const auto prompt = JsonInts(DataPath("retriever-2m/greedy_reference.json"), "prompt_ids");
  const auto want = JsonInts(DataPath("retriever-2m/greedy_reference.json"), "greedy_ids");
  for (const int rows : {100, 2048}) {
    EngineOptions options = ModelOptions(kRetriever);
    options.max_num_batched_tokens = rows;
    options.attention = {{}, {"quest", {{"token_budget", "128"}, {"dense_layers", "0"}}}};
    auto engine = MakeEngine(options);
    ASSERT_NE(engine, nullptr);
    EXPECT_EQ(RunOne(*engine, Greedy(prompt, static_cast<int>(want.size()))).ids, want);
    GenerationRequest quest = Greedy(prompt, 6);
    quest.attention = options.attention[1];
    const Output out = RunOne(*engine, quest);
    // The pass key's five digits come out of a tenth of the pages.
    EXPECT_TRUE(std::equal(out.ids.begin(), out.ids.begin() + 5, want.begin()));
    EXPECT_GT(out.last.attention.pages_read, 0);
    EXPECT_LT(out.last.attention.pages_read * 5, out.last.attention.pages_total);
  }
}

TEST(Engine, UsageCountsExactlyTheRequestsOwnRows) {
  EngineOptions options = ModelOptions(kRetriever);
  options.attention = {{}, {"quest", {{"token_budget", "64"}, {"dense_layers", "1"}}}};
  auto engine = MakeEngine(options);
  ASSERT_NE(engine, nullptr);
  Collector collector;
  GenerationRequest dense = Greedy(BytePrompt(100), 9), quest = Greedy(BytePrompt(200), 5);
  dense.request_id = "dense";
  quest.request_id = "quest";
  quest.attention = options.attention[1];
  ASSERT_TRUE(engine->Submit(dense, collector.callback()).ok());
  ASSERT_TRUE(engine->Submit(quest, collector.callback()).ok());
  ASSERT_TRUE(engine->Run().ok());
  const auto pages = [](int length) { return (length + 15) / 16; };
  // Eight decode rows (the first token comes of the prefill), four layers, three KV heads.
  int64_t want = 0;
  for (int i = 1; i < 9; ++i) want += 4 * 3 * pages(100 + i);
  EXPECT_EQ(collector.at("dense").last.attention.pages_total, want);
  EXPECT_EQ(collector.at("dense").last.attention.pages_read, want);
  int64_t total = 0, dense_layer = 0;
  for (int i = 1; i < 5; ++i) {
    total += 4 * 3 * pages(200 + i);
    dense_layer += 3 * pages(200 + i);
  }
  EXPECT_EQ(collector.at("quest").last.attention.pages_total, total);
  EXPECT_GT(collector.at("quest").last.attention.pages_read, dense_layer);
  EXPECT_LE(collector.at("quest").last.attention.pages_read, dense_layer + 4 * 3 * 3 * 5);
  const EngineStats stats = engine->Stats();
  EXPECT_EQ(stats.attention.pages_total, want + total);
  // A page of one KV head: 16 tokens of K and V, 64 floats each. What quest reads beside in four steps, three layers and
  // three KV heads: a minimum and a maximum for each page.
  const int64_t page_bytes = 2 * 16 * 64 * 4;
  EXPECT_EQ(stats.attention.bytes_total, stats.attention.pages_total * page_bytes);
  const int64_t selecting = stats.attention.bytes_read - stats.attention.pages_read * page_bytes;
  EXPECT_EQ(selecting, 4 * 3 * 3 * pages(201) * 2 * 64 * 4);
  EXPECT_EQ(stats.requests_finished, 2);
  EXPECT_EQ(stats.generation_tokens, 14);
  EXPECT_EQ(stats.prompt_tokens, 300);
  EXPECT_EQ(stats.pages_free, stats.pages_total);
}

TEST(Engine, CountsHowSequencesEndAndTheirTimes) {
  auto engine = MakeEngine(ModelOptions(kStories));
  ASSERT_NE(engine, nullptr);
  const Output whole = RunOne(*engine, Greedy({1}, 30));
  GenerationRequest stopped = Greedy({1}, 30);
  stopped.stopping.stop = {whole.text.substr(20, 5)};
  GenerationRequest two = Greedy({1, 2, 3}, 1);
  two.sampling.n = 2;
  GenerationRequest cancelled = Greedy({1}, 100);
  cancelled.request_id = "cancelled";
  RequestTimings sum = whole.last.timings;
  double per_token = whole.last.timings.decode_s / 29;
  const auto collect = [&](const TokenEvent& event) {
    if (!event.finished || event.reason == FinishReason::kAborted) return;
    sum.queue_s += event.timings.queue_s;
    sum.prefill_s += event.timings.prefill_s;
    sum.decode_s += event.timings.decode_s;
    sum.ttft_s += event.timings.ttft_s;
    if (event.completion_tokens > 1) per_token += event.timings.decode_s / (event.completion_tokens - 1);
  };
  ASSERT_TRUE(engine->Submit(stopped, collect).ok());
  ASSERT_TRUE(engine->Submit(two, collect).ok());
  ASSERT_TRUE(engine->Submit(cancelled, collect).ok());
  ASSERT_TRUE(engine->Step().ok());
  engine->Cancel("cancelled");
  ASSERT_TRUE(engine->Run().ok());
  const FinishedSequences counted = engine->Stats().sequences;
  EXPECT_EQ(counted.stop, 1);
  EXPECT_EQ(counted.length, 3);
  EXPECT_EQ(counted.aborted, 1);
  for (const DurationHistogram* times : {&counted.time_to_first_token, &counted.e2e, &counted.queue, &counted.prefill,
                                         &counted.decode}) {
    EXPECT_EQ(times->count(), 4);
  }
  EXPECT_EQ(counted.time_per_output_token.count(), 2);
  EXPECT_DOUBLE_EQ(counted.time_to_first_token.sum, sum.ttft_s);
  EXPECT_DOUBLE_EQ(counted.queue.sum, sum.queue_s);
  EXPECT_DOUBLE_EQ(counted.prefill.sum, sum.prefill_s);
  EXPECT_DOUBLE_EQ(counted.decode.sum, sum.decode_s);
  EXPECT_NEAR(counted.e2e.sum, sum.ttft_s + sum.decode_s, 1e-9);
  EXPECT_NEAR(counted.time_per_output_token.sum, per_token, 1e-9);
}

TEST(Engine, StopStringsSplitOverTokensAndCharactersEndTheText) {
  auto engine = MakeEngine(ModelOptions(kStories));
  ASSERT_NE(engine, nullptr);
  const GenerationRequest plain = Greedy({1}, 60);
  const Output whole = RunOne(*engine, plain);
  ASSERT_GT(whole.text.size(), 60u);
  EXPECT_EQ(whole.text, engine->tokenizer()->Decode(whole.ids, true));
  // Every place of the text as a stop string, whatever tokens it spans.
  for (size_t at = 5; at + 9 < whole.text.size(); at += 23) {
    GenerationRequest request = plain;
    const std::string stop = whole.text.substr(at, 9);
    request.stopping.stop = {"never there", stop};
    const size_t first = whole.text.find(stop);
    Output out = RunOne(*engine, request);
    EXPECT_EQ(out.text, whole.text.substr(0, first)) << stop;
    EXPECT_EQ(out.last.reason, FinishReason::kStop);
    EXPECT_EQ(out.last.matched_stop, stop);
    EXPECT_LT(out.ids.size(), whole.ids.size());
    request.stopping.include_stop = true;
    out = RunOne(*engine, request);
    EXPECT_EQ(out.text, whole.text.substr(0, first + stop.size()));
  }
}

TEST(Engine, TextComesInWholeCharacters) {
  auto engine = MakeEngine(ModelOptions(kRetriever));  // a token is a byte
  ASSERT_NE(engine, nullptr);
  const std::string text = "a\xC3\xBC\xE2\x82\xAC\xF0\x9F\x99\x82z";
  for (const bool cut : {false, true}) {
    GenerationRequest request = Greedy({256, 65}, 1);
    for (unsigned char c : text) request.forced.push_back(c);
    if (cut) request.forced.resize(request.forced.size() - 3);  // within the last character
    std::vector<std::string> pieces;
    ASSERT_TRUE(engine->Submit(request, [&](const TokenEvent& event) { pieces.push_back(event.text); }).ok());
    ASSERT_TRUE(engine->Run().ok());
    std::vector<std::string> want = {"a", "", "\xC3\xBC", "", "", "\xE2\x82\xAC", "", ""};
    if (cut) {
      EXPECT_EQ(pieces.size(), want.size());
      EXPECT_EQ(pieces.back(), "\xEF\xBF\xBD");
      pieces.back().clear();
    } else {
      want.insert(want.end(), {"", "\xF0\x9F\x99\x82", "z"});
    }
    EXPECT_EQ(pieces, want);
  }
}

TEST(Engine, StopIdsEosMinTokensAndIncludeStop) {
  auto engine = MakeEngine(ModelOptions(kStories));
  ASSERT_NE(engine, nullptr);
  const Output whole = RunOne(*engine, Greedy({1}, 30));
  const int32_t stop = whole.ids[7];
  const size_t first = std::find(whole.ids.begin(), whole.ids.end(), stop) - whole.ids.begin();
  GenerationRequest request = Greedy({1}, 30);
  request.stopping.stop_token_ids = {stop};
  Output out = RunOne(*engine, request);
  EXPECT_EQ(out.ids, std::vector<int32_t>(whole.ids.begin(), whole.ids.begin() + first));
  EXPECT_EQ(out.last.reason, FinishReason::kStop);
  EXPECT_EQ(out.last.matched_stop_id, stop);
  EXPECT_EQ(out.last.completion_tokens, static_cast<int>(first));
  request.stopping.include_stop = true;
  out = RunOne(*engine, request);
  EXPECT_EQ(out.ids, std::vector<int32_t>(whole.ids.begin(), whole.ids.begin() + first + 1));
  // Masked until min_tokens: it comes later, or not at all.
  request.stopping.min_tokens = static_cast<int>(first) + 5;
  out = RunOne(*engine, request);
  EXPECT_GE(out.ids.size(), first + 5);
  for (size_t i = 0; i < first + 5; ++i) EXPECT_NE(out.ids[i], stop);
  // eos by bias: at once, unless ignored.
  GenerationRequest eos = Greedy({1}, 5);
  eos.stopping.ignore_eos = false;
  eos.sampling.logit_bias = {{2, 100.0f}};
  out = RunOne(*engine, eos);
  EXPECT_TRUE(out.ids.empty());
  EXPECT_EQ(out.last.matched_stop_id, 2);
  eos.stopping.ignore_eos = true;
  out = RunOne(*engine, eos);
  EXPECT_EQ(out.ids, std::vector<int32_t>(5, 2));
  EXPECT_EQ(out.last.reason, FinishReason::kLength);
}

TEST(Engine, MaxTokensIsBoundedByTheContext) {
  EngineOptions options = ModelOptions(kStories);
  options.max_model_len = 20;
  auto engine = MakeEngine(options);
  ASSERT_NE(engine, nullptr);
  const Output out = RunOne(*engine, Greedy(std::vector<int32_t>(15, 5), 100));
  EXPECT_EQ(out.ids.size(), 5u);
  EXPECT_EQ(out.last.reason, FinishReason::kLength);
  EXPECT_EQ(out.last.prompt_tokens, 15);
  EXPECT_EQ(out.last.completion_tokens, 5);
}

TEST(Engine, ForcedTokensAndPromptLogprobsAgree) {
  EngineOptions options = ModelOptions(kRetriever);
  options.max_num_batched_tokens = 37;
  auto engine = MakeEngine(options);
  ASSERT_NE(engine, nullptr);
  const std::vector<int32_t> ids = BytePrompt(150);
  GenerationRequest prompt = Greedy(ids, 1);
  prompt.prompt_logprobs = 3;
  const Output scored = RunOne(*engine, prompt);
  ASSERT_EQ(scored.prompt_logprobs.size(), ids.size());
  EXPECT_FALSE(scored.prompt_logprobs[0].has_value());
  GenerationRequest forced = Greedy({ids.begin(), ids.begin() + 50}, 1);
  forced.forced.assign(ids.begin() + 50, ids.end());
  forced.logprobs = 3;
  const Output out = RunOne(*engine, forced);
  EXPECT_EQ(out.ids, forced.forced);
  EXPECT_EQ(out.last.reason, FinishReason::kLength);
  ASSERT_EQ(out.logprobs.size(), 100u);
  for (size_t i = 0; i < 100; ++i) {
    const TokenLogprobs& a = out.logprobs[i];
    const TokenLogprobs& b = *scored.prompt_logprobs[50 + i];
    EXPECT_EQ(a.chosen.id, ids[50 + i]);
    EXPECT_NEAR(a.chosen.logprob, b.chosen.logprob, 2e-3);
    ASSERT_EQ(a.top.size(), 3u);
    EXPECT_LE(a.chosen.logprob, a.top[0].logprob);
    EXPECT_GE(a.top[0].logprob, a.top[1].logprob);
    EXPECT_NEAR(a.top[0].logprob, b.top[0].logprob, 2e-3);
  }
}

TEST(Engine, SeedsDecideAndAbsentOnesFollowTheEngines) {
  EngineOptions options = ModelOptions(kStories);
  GenerationRequest request = Greedy({1}, 20);
  request.sampling.temperature = 1;
  const auto run = [&](uint64_t engine_seed, std::optional<uint64_t> seed) {
    options.seed = engine_seed;
    auto engine = MakeEngine(options);
    request.sampling.seed = seed;
    const std::vector<int32_t> first = RunOne(*engine, request).ids;
    return std::pair(first, RunOne(*engine, request).ids);
  };
  const auto a = run(1, 5), b = run(2, 5), c = run(1, {}), d = run(1, {}), e = run(2, {});
  EXPECT_EQ(a.first, a.second);
  EXPECT_EQ(a, b);
  EXPECT_NE(c.first, c.second);
  EXPECT_EQ(c, d);
  EXPECT_NE(c, e);
}

TEST(Engine, CancelFreesPagesWithinAStep) {
  auto engine = MakeEngine(ModelOptions(kRetriever));
  ASSERT_NE(engine, nullptr);
  Collector collector;
  GenerationRequest request = Greedy(BytePrompt(100), 50);
  request.sampling.n = 3;
  request.request_id = "a";
  ASSERT_TRUE(engine->Submit(request, collector.callback()).ok());
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(engine->Step().ok());
  EXPECT_LT(engine->Stats().pages_free, engine->Stats().pages_total);
  engine->Cancel("a");
  engine->Cancel("a");
  engine->Cancel("nobody");
  ASSERT_TRUE(engine->Step().ok());
  EXPECT_EQ(engine->Stats().pages_free, engine->Stats().pages_total);
  ASSERT_EQ(collector.sequences("a"), 3u);
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(collector.at("a", i).last.finished);
    EXPECT_EQ(collector.at("a", i).last.reason, FinishReason::kAborted);
    EXPECT_TRUE(collector.at("a", i).last.status.ok());
  }
  // Before it ever ran, too; and its id is free again.
  Collector other;
  ASSERT_TRUE(engine->Submit(request, other.callback()).ok());
  EXPECT_EQ(engine->Submit(request, {}).status().code(), StatusCode::kAlreadyExists);
  engine->Cancel("a");
  ASSERT_TRUE(engine->Run().ok());
  EXPECT_EQ(other.sequences("a"), 3u);
}

TEST(Engine, ALateCancelDoesNotMeetTheNextRequestOfThatId) {
  auto engine = MakeEngine(ModelOptions(kStories));
  ASSERT_NE(engine, nullptr);
  GenerationRequest request = Greedy({1, 5, 9}, 4);
  request.request_id = "again";
  // The cancellation comes while the step in which the request ends is under way, as from another thread.
  int finished = 0;
  ASSERT_TRUE(engine
                  ->Submit(request,
                           [&](const TokenEvent& event) {
                             finished += event.finished ? 1 : 0;
                             if (event.finished) engine->Cancel("again");
                           })
                  .ok());
  while (finished == 0) ASSERT_TRUE(engine->Step().ok());
  const Output second = RunOne(*engine, request);
  EXPECT_EQ(second.ids.size(), 4u);
  EXPECT_EQ(second.last.reason, FinishReason::kLength);
}

TEST(Engine, ForkedSequencesEqualThoseThatRunAlone) {
  GenerationRequest request = Greedy(BytePrompt(70), 12);
  request.sampling.temperature = 1;
  request.sampling.seed = 11;
  request.sampling.n = 4;
  request.request_id = "n";
  std::vector<std::vector<int32_t>> forked, alone;
  for (const int slots : {8, 1}) {  // with one slot each sequence has its own prefill
    EngineOptions options = ModelOptions(kRetriever);
    options.batch_invariant = true;
    options.max_num_seqs = slots;
    auto engine = MakeEngine(options);
    ASSERT_NE(engine, nullptr);
    Collector collector;
    ASSERT_TRUE(engine->Submit(request, collector.callback()).ok());
    ASSERT_TRUE(engine->Run().ok());
    ASSERT_EQ(collector.sequences("n"), 4u);
    for (int i = 0; i < 4; ++i) (slots == 8 ? forked : alone).push_back(collector.at("n", i).ids);
    EXPECT_EQ(engine->Stats().prompt_tokens, slots == 8 ? 70 : 4 * 70);
    EXPECT_EQ(engine->Stats().pages_free, engine->Stats().pages_total);
    // Sequence 0 is what a request with n = 1 gives.
    GenerationRequest one = request;
    one.sampling.n = 1;
    EXPECT_EQ(RunOne(*engine, one).ids, collector.at("n", 0).ids);
  }
  EXPECT_EQ(forked, alone);
  EXPECT_NE(forked[0], forked[1]);
}

TEST(Engine, BadRequestsAreRefusedWithASentence) {
  EngineOptions options = ModelOptions(kStories);
  options.attention = {{}, {"quest", {{"token_budget", "64"}}}};
  options.kv_cache_bytes = 200000;
  auto engine = MakeEngine(options);
  ASSERT_NE(engine, nullptr);
  const auto code = [&](auto&& change) {
    GenerationRequest request = Greedy({1, 2, 3}, 5);
    change(request);
    const auto id = engine->Submit(request, {});
    if (id.ok()) return StatusCode::kOk;
    EXPECT_GT(id.status().message().size(), 20u);
    return id.status().code();
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const StatusCode bad = StatusCode::kInvalidArgument;
  EXPECT_EQ(code([](auto&) {}), StatusCode::kOk);
  EXPECT_EQ(code([](auto& r) { r.prompt.clear(); }), bad);
  EXPECT_EQ(code([](auto& r) { r.prompt.assign(512, 1); }), bad);
  EXPECT_EQ(code([](auto& r) { r.prompt[1] = 512; }), bad);
  EXPECT_EQ(code([](auto& r) { r.prompt[1] = -1; }), bad);
  EXPECT_EQ(code([&](auto& r) { r.sampling.temperature = nan; }), bad);
  EXPECT_EQ(code([](auto& r) { r.sampling.temperature = -1; }), bad);
  EXPECT_EQ(code([](auto& r) { r.sampling.top_k = -2; }), bad);
  EXPECT_EQ(code([](auto& r) { r.sampling.top_p = 0; }), bad);
  EXPECT_EQ(code([&](auto& r) { r.sampling.top_p = nan; }), bad);
  EXPECT_EQ(code([](auto& r) { r.sampling.min_p = 1.5f; }), bad);
  EXPECT_EQ(code([](auto& r) { r.sampling.n = 0; }), bad);
  EXPECT_EQ(code([](auto& r) { r.sampling.repetition_penalty = 0; }), bad);
  EXPECT_EQ(code([&](auto& r) { r.sampling.presence_penalty = nan; }), bad);
  EXPECT_EQ(code([](auto& r) { r.sampling.frequency_penalty = 3; }), bad);
  EXPECT_EQ(code([](auto& r) { r.sampling.logit_bias = {{512, 1.0f}}; }), bad);
  EXPECT_EQ(code([](auto& r) { r.sampling.logit_bias = {{5, 101.0f}}; }), bad);
  EXPECT_EQ(code([](auto& r) { r.stopping.max_tokens = 0; }), bad);
  EXPECT_EQ(code([](auto& r) { r.stopping.min_tokens = 6; }), bad);
  EXPECT_EQ(code([](auto& r) { r.stopping.stop = {""}; }), bad);
  EXPECT_EQ(code([](auto& r) { r.stopping.stop_token_ids = {-5}; }), bad);
  EXPECT_EQ(code([](auto& r) { r.logprobs = -2; }), bad);
  EXPECT_EQ(code([](auto& r) { r.prompt_logprobs = 513; }), bad);
  EXPECT_EQ(code([](auto& r) { r.forced = {600}; }), bad);
  EXPECT_EQ(code([](auto& r) { r.forced.assign(510, 1); }), bad);
  EXPECT_EQ(code([](auto& r) { r.attention = AttentionSpec{"quest", {{"token_budget", "47"}}}; }), bad);
  EXPECT_EQ(code([](auto& r) { r.attention = AttentionSpec{"quest", {{"budget", "64"}}}; }), bad);
  EXPECT_EQ(code([](auto& r) { r.attention = AttentionSpec{"quest", {{"dense_layers", "-1"}}}; }), bad);
  EXPECT_EQ(code([](auto& r) { r.attention = AttentionSpec{"hybrid", {}}; }), bad);  // the engine was not started with it
  EXPECT_EQ(code([](auto& r) { r.attention = AttentionSpec{"nonsense", {}}; }), bad);
  EXPECT_EQ(code([](auto& r) { r.attention = AttentionSpec{"quest", {}}; }), StatusCode::kOk);  // the one of that name
  EXPECT_EQ(code([](auto& r) { r.stopping.max_tokens = 500; }), StatusCode::kResourceExhausted);
  EXPECT_EQ(engine->SubmitRandomCache(512, 1, 1, {}, {}).status().code(), bad);
  EXPECT_EQ(engine->SubmitRandomCache(5, 0, 1, {}, {}).status().code(), bad);
  ASSERT_TRUE(engine->Run().ok());
}

TEST(Engine, BadOptionsAreRefusedWithASentence) {
  const auto code = [&](auto&& change) {
    EngineOptions options = ModelOptions(kStories);
    change(options);
    const auto engine = Engine::Create(options);
    const auto memory = PredictMemory(options);
    EXPECT_EQ(memory.ok(), engine.ok());
    return engine.ok() ? StatusCode::kOk : engine.status().code();
  };
  const StatusCode bad = StatusCode::kInvalidArgument;
  EXPECT_EQ(code([](auto& o) { o.page_size = 0; }), bad);
  EXPECT_EQ(code([](auto& o) { o.max_num_seqs = 0; }), bad);
  EXPECT_EQ(code([](auto& o) { o.max_num_batched_tokens = 7; }), bad);
  EXPECT_EQ(code([](auto& o) { o.threads = -1; }), bad);
  EXPECT_EQ(code([](auto& o) { o.max_model_len = 513; }), bad);
  EXPECT_EQ(code([](auto& o) { o.dtype = "int3"; }), bad);
  EXPECT_EQ(code([](auto& o) { o.kv_cache_dtype = "int3"; }), bad);
  EXPECT_EQ(code([](auto& o) { o.attention = {}; }), bad);
  EXPECT_EQ(code([](auto& o) { o.attention = {{"quest", {{"token_budget", "0"}}}}; }), bad);
  EXPECT_EQ(code([](auto& o) { o.kv_cache_bytes = 100; }), StatusCode::kResourceExhausted);
  EXPECT_EQ(code([](auto& o) { o.model = "/nonexistent/model"; }), StatusCode::kNotFound);
}

TEST(Engine, MemoryIsAsPredicted) {
  for (const char* model : {kStories, kRetriever}) {
    for (const char* dtype : {"float32", "bfloat16"}) {
      EngineOptions options = ModelOptions(model);
      options.dtype = dtype;
      options.kv_cache_bytes = 0;
      options.max_num_seqs = 4;
      options.max_num_batched_tokens = 256;
      options.attention = {{}, {"quest", {{"token_budget", "64"}}}};
      const auto predicted = PredictMemory(options);
      ASSERT_TRUE(predicted.ok()) << predicted.status().ToString();
      auto engine = MakeEngine(options);
      ASSERT_NE(engine, nullptr);
      Collector collector;
      for (int i = 0; i < 4; ++i) {
        GenerationRequest request = Greedy(std::vector<int32_t>(300, 7 + i), 10);
        request.attention = options.attention[i % 2];
        ASSERT_TRUE(engine->Submit(request, collector.callback()).ok());
      }
      ASSERT_TRUE(engine->Run().ok());
      const MemoryBytes actual = engine->Memory();
      const auto near = [](size_t a, size_t b) { return std::abs(static_cast<double>(a) - b) <= 0.05 * b; };
      EXPECT_TRUE(near(predicted->weights, actual.weights)) << predicted->weights << " vs " << actual.weights;
      EXPECT_TRUE(near(predicted->kv_cache, actual.kv_cache)) << predicted->kv_cache << " vs " << actual.kv_cache;
      EXPECT_TRUE(near(predicted->kv_metadata, actual.kv_metadata));
      EXPECT_TRUE(near(predicted->scratch, actual.scratch)) << predicted->scratch << " vs " << actual.scratch;
      EXPECT_TRUE(near(predicted->total(), actual.total())) << predicted->total() << " vs " << actual.total();
    }
  }
}

TEST(Engine, RandomCachesDecodeAtDepthDenseAndWindowed) {
  EngineOptions options = ModelOptions(kRetriever);
  options.attention = {{}, {"quest", {{"token_budget", "64"}, {"dense_layers", "0"}}}};
  auto engine = MakeEngine(options);
  ASSERT_NE(engine, nullptr);
  const auto run = [&](int64_t length, uint64_t seed, std::optional<AttentionSpec> attention) {
    Collector collector;
    auto id = engine->SubmitRandomCache(length, 6, seed, attention, collector.callback());
    EXPECT_TRUE(id.ok()) << id.status().ToString();
    EXPECT_TRUE(engine->Run().ok());
    EXPECT_TRUE(collector.at(*id).last.status.ok());
    EXPECT_EQ(collector.at(*id).ids.size(), 6u);
    return collector.at(*id);
  };
  const Output a = run(1000, 3, {}), b = run(1000, 3, {}), c = run(1000, 4, {});
  EXPECT_EQ(a.ids, b.ids);
  EXPECT_NE(a.ids, c.ids);
  EXPECT_EQ(engine->Stats().prompt_tokens, 0);
  run(0, 3, {});
  const Output quest = run(1000, 3, options.attention[1]);
  EXPECT_LE(quest.last.attention.pages_read, 6 * 4 * 3 * 4);
  EXPECT_EQ(engine->Stats().pages_free, engine->Stats().pages_total);

  EngineOptions windowed = ModelOptions("golden/mistral");
  windowed.load_tokenizer = false;
  windowed.page_size = 4;
  windowed.max_num_batched_tokens = 16;
  engine = MakeEngine(windowed);
  ASSERT_NE(engine, nullptr);
  const Output deep = run(200, 3, {});
  EXPECT_EQ(deep.ids, run(200, 3, {}).ids);
}

TEST(Engine, WindowsFreePagesThatFellOut) {
  EngineOptions options = ModelOptions("golden/mistral");  // window 16
  options.load_tokenizer = false;
  options.page_size = 4;
  options.batch_invariant = true;
  options.max_num_seqs = 4;
  options.max_num_batched_tokens = 8;
  GenerationRequest request = Greedy({1, 5, 9, 20, 33, 40, 41, 42, 43, 44, 45, 46}, 200);
  auto roomy = MakeEngine(options);
  ASSERT_NE(roomy, nullptr);
  const Output want = RunOne(*roomy, request);
  // Room for 64 tokens (a token takes 3 layers · 2 · 2 heads · 12 channels · 4 bytes), of a sequence of 212.
  options.kv_cache_bytes = 64 * 3 * 2 * 2 * 12 * 4;
  auto tight = MakeEngine(options);
  ASSERT_NE(tight, nullptr);
  EXPECT_LE(tight->Stats().pages_total, 16);
  EXPECT_EQ(RunOne(*tight, request).ids, want.ids);
  EXPECT_EQ(tight->Stats().preemptions, 0);
}

TEST(Engine, SubmitAndCancelFromOtherThreads) {
  auto engine = MakeEngine(ModelOptions(kStories));
  ASSERT_NE(engine, nullptr);
  std::atomic<int> finished{0}, submitted{0};
  std::atomic<bool> done{false};
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 15; ++i) {
        GenerationRequest request = Greedy({1, 5 + t, 9 + i}, 10);
        auto id = engine->Submit(request, [&](const TokenEvent& event) { finished += event.finished ? 1 : 0; });
        EXPECT_TRUE(id.ok());
        ++submitted;
        if (i % 3 == 0) engine->Cancel(*id);
        (void)engine->Stats();
      }
    });
  }
  std::thread runner([&] {
    while (!done || engine->Stats().running + engine->Stats().waiting > 0) {
      auto more = engine->Step();
      EXPECT_TRUE(more.ok());
      if (!*more) std::this_thread::yield();
    }
    EXPECT_TRUE(engine->Run().ok());
  });
  for (std::thread& thread : threads) thread.join();
  done = true;
  runner.join();
  EXPECT_EQ(finished, submitted);
  EXPECT_EQ(engine->Stats().pages_free, engine->Stats().pages_total);
}

TEST(Engine, TwoHundredRandomRequestsInATinyCacheAllEnd) {
  EngineOptions options = ModelOptions(kStories);
  options.threads = 2;
  options.attention = {{}, {"quest", {{"token_budget", "24"}, {"dense_layers", "0"}}}};
  options.page_size = 4;
  options.kv_cache_bytes = 34 * 4 * 5 * 2 * 4 * 8 * 4 * 3 / 2;  // about 34 pages and their metadata
  options.max_num_seqs = 6;
  options.max_num_batched_tokens = 24;
  auto engine = MakeEngine(options);
  ASSERT_NE(engine, nullptr);
  std::mt19937 rng(20260202);
  int finished = 0, sequences = 0;
  for (int i = 0; i < 200; ++i) {
    GenerationRequest request;
    const int length = 1 + static_cast<int>(rng() % 24);
    for (int k = 0; k < length; ++k) request.prompt.push_back(static_cast<int32_t>(3 + rng() % 500));
    request.stopping.max_tokens = 1 + static_cast<int>(rng() % 16);
    request.sampling.n = 1 + (rng() % 5 == 0 ? 2 : 0);
    request.sampling.temperature = rng() % 2 == 0 ? 0.0f : 1.0f;
    request.sampling.repetition_penalty = rng() % 4 == 0 ? 1.2f : 1.0f;
    request.priority = static_cast<int>(rng() % 3);
    request.attention = options.attention[rng() % 2];
    request.prompt_logprobs = rng() % 6 == 0 ? 2 : -1;
    sequences += request.sampling.n;
    auto id = engine->Submit(request, [&](const TokenEvent& event) {
      finished += event.finished ? 1 : 0;
      EXPECT_TRUE(event.status.ok()) << event.status.ToString();
    });
    ASSERT_TRUE(id.ok()) << id.status().ToString();
  }
  ASSERT_TRUE(engine->Run().ok());
  EXPECT_EQ(finished, sequences);
  const EngineStats stats = engine->Stats();
  EXPECT_GT(stats.preemptions, 0);
  EXPECT_EQ(stats.pages_free, stats.pages_total);
  EXPECT_EQ(stats.requests_finished, 200);
  EXPECT_EQ(stats.sequences.stop + stats.sequences.length, sequences);
}

}  // namespace
}  // namespace quire

// Evicting sequences end to end: they are held to a slow model with lists for a cache, own a fixed number of pages for
// ever, and what they give doesn't depend on pages, threads, company, cuts, preemption, forks, lost engines or ranks.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <set>

#include "core/engine/slot_maps.h"
#include "tests/core/engine/evicting_reference.h"
#include "tests/core/engine/group_fixture.h"

namespace quire {
namespace {

AttentionSpec Spec(const std::string& text) { return AttentionSpec::Parse(text).value(); }

EngineOptions Stories(const std::string& attention, int page_size = 16) {
  EngineOptions options = ModelOptions("stories260K");
  options.load_tokenizer = false;
  options.max_num_seqs = 2;
  options.page_size = page_size;
  options.kv_cache_bytes = 0;
  options.attention = {Spec(attention)};
  return options;
}

// Tokens of stories260K without a pattern.
std::vector<int32_t> StoryIds(int count, uint32_t seed) { return Ids(count, seed, 512); }

int64_t ResidentBytes() {
  std::ifstream file("/proc/self/statm");
  int64_t size = 0, resident = 0;
  file >> size >> resident;
  return resident * 4096;
}

struct Kind {
  const char* spec;
  EvictingReference::Options reference;
};
constexpr EvictingReference::Kind kStreaming = EvictingReference::Kind::kStreaming;
constexpr EvictingReference::Kind kH2o = EvictingReference::Kind::kH2o;
constexpr EvictingReference::Kind kTova = EvictingReference::Kind::kTova;

class EvictingModel : public ::testing::TestWithParam<Kind> {};

INSTANTIATE_TEST_SUITE_P(
    Kinds, EvictingModel,
    ::testing::Values(Kind{"streaming:evict=true:token_budget=26:sink_tokens=3", {kStreaming, 26, 3, 0}},
                      Kind{"h2o:evict=true:token_budget=26:sink_tokens=0", {kH2o, 26, 0, 13}},
                      Kind{"h2o:evict=true:token_budget=25:sink_tokens=2:recent_tokens=5", {kH2o, 25, 2, 5}},
                      Kind{"tova:evict=true:token_budget=26", {kTova, 26, 4, 0}},
                      Kind{"tova:evict=true:token_budget=25:sink_tokens=0:recent_tokens=3", {kTova, 25, 0, 3}}),
    [](const auto& info) {
      const std::string spec = info.param.spec;
      return spec.substr(0, spec.find(':')) + std::to_string(info.index);
    });

// Prompts shorter and longer than the budget, cut in two ways, each token's log-probability; and a page size that does
// not divide the budget.
TEST_P(EvictingModel, GivesWhatAReferenceWithListsForACacheGives) {
  constexpr int kTokens = 150;
  const std::vector<int32_t> ids = StoryIds(kTokens + 1, 5);
  EvictingReference reference(DataPath("stories260K"), GetParam().reference);
  std::vector<double> want;
  for (int i = 0; i < kTokens; ++i) want.push_back(reference.Next(ids[i])[static_cast<size_t>(ids[i + 1])]);
  for (const int page_size : {1, 3, 16}) {
    for (const int prompt : {9, 26, 97}) {
      SCOPED_TRACE(std::to_string(page_size) + " tokens a page, a prompt of " + std::to_string(prompt));
      EngineOptions options = Stories(GetParam().spec, page_size);
      options.max_num_batched_tokens = page_size == 3 ? 7 : 512;
      auto engine = MakeEngine(options);
      ASSERT_NE(engine, nullptr);
      GenerationRequest request = Greedy({ids.begin(), ids.begin() + prompt}, 1);
      request.forced.assign(ids.begin() + prompt, ids.end());
      request.logprobs = 0;
      request.prompt_logprobs = 0;
      const Output out = RunOne(*engine, request);
      ASSERT_EQ(out.prompt_logprobs.size(), static_cast<size_t>(prompt));
      ASSERT_EQ(out.logprobs.size(), static_cast<size_t>(kTokens + 1 - prompt));
      double worst = 0;
      for (int i = 0; i < kTokens; ++i) {
        const double got = i + 1 < prompt ? out.prompt_logprobs[static_cast<size_t>(i) + 1]->chosen.logprob
                                          : out.logprobs[static_cast<size_t>(i + 1 - prompt)].chosen.logprob;
        worst = std::max(worst, std::abs(got - want[static_cast<size_t>(i)]));
        ASSERT_NEAR(got, want[static_cast<size_t>(i)], 2e-4) << "token " << i;
      }
      // Each step reads the same pages, and never has any more.
      const int64_t pages = (GetParam().reference.budget + page_size - 1) / page_size;
      int64_t read = 0;
      for (int i = prompt; i < kTokens; ++i) read += std::min<int64_t>(pages, i / page_size + 1);
      EXPECT_EQ(out.last.attention.pages_read, read * 5 * 4);
      EXPECT_EQ(engine->Stats().pages_total, 2 * pages);
    }
  }
}

TEST_P(EvictingModel, AtFullBudgetItIsDense) {
  EngineOptions options = Stories(std::string(GetParam().spec));
  options.attention[0].options["token_budget"] = "160";
  options.attention.push_back({});
  auto engine = MakeEngine(options);
  ASSERT_NE(engine, nullptr);
  GenerationRequest request = Greedy(StoryIds(90, 3), 70);
  request.logprobs = 3;
  const Output evicting = RunOne(*engine, request);
  request.attention = AttentionSpec{};
  const Output dense = RunOne(*engine, request);
  ASSERT_EQ(evicting.ids, dense.ids);
  for (size_t i = 0; i < dense.logprobs.size(); ++i) {
    ASSERT_EQ(evicting.logprobs[i].chosen.logprob, dense.logprobs[i].chosen.logprob) << i;
  }
}

// A page spans layers and heads, so pages stay, and their number is that of the budget from the first step to the last.
TEST_P(EvictingModel, OwnsAFixedNumberOfPages) {
  ConfigFolder folder(std::string("evicting_pages_") + std::to_string(GetParam().reference.budget) +
                          std::to_string(static_cast<int>(GetParam().reference.kind)),
                      {{"\"max_position_embeddings\": 512", "\"max_position_embeddings\": 4096"}});
  EngineOptions options = GqaOptions({Spec(GetParam().spec)});
  options.model = folder.path();
  options.page_size = 16;
  options.max_num_seqs = 1;
  auto engine = MakeEngine(options);
  ASSERT_NE(engine, nullptr);
  Collector collector;
  const std::string id = engine->Submit(Greedy(Ids(40, 1), 2000), collector.callback()).value();
  const int64_t all = engine->Stats().pages_total;
  int steps = 0;
  while (*engine->Step()) {
    if (collector.at(id).last.finished) break;
    ++steps;
    if (steps > 1) {
      ASSERT_EQ(all - engine->Stats().pages_free, 2) << "step " << steps;
    }
  }
  EXPECT_GT(steps, 1990);
  EXPECT_EQ(collector.at(id).ids.size(), 2000u);
  EXPECT_EQ(engine->Stats().pages_free, all);
}

class Evicting : public ::testing::TestWithParam<const char*> {
 protected:
  static constexpr int kPrompt = 60, kOutputs = 25;
  EngineOptions Options() const {
    EngineOptions options = GqaOptions({Spec(GetParam()), {}});
    options.max_model_len = 256;
    options.batch_invariant = true;
    return options;
  }
  static GenerationRequest Request() {
    GenerationRequest request = Greedy(Ids(kPrompt, 1), kOutputs);
    request.logprobs = 1;
    return request;
  }
  static GenerationRequest Dense(int prompt, int tokens, uint32_t seed) {
    GenerationRequest request = Greedy(Ids(prompt, seed), tokens);
    request.attention = AttentionSpec{};
    return request;
  }
};

INSTANTIATE_TEST_SUITE_P(All, Evicting,
                         ::testing::Values("streaming:evict=true:token_budget=33:sink_tokens=2",
                                           "h2o:evict=true:token_budget=33", "tova:evict=true:token_budget=33"),
                         [](const auto& info) {
                           const std::string spec = info.param;
                           return spec.substr(0, spec.find(':'));
                         });

TEST_P(Evicting, BitsAreTheSameOnAnyThreadsCutsAndCompany) {
  Output alone;
  {
    auto engine = MakeEngine(Options());
    ASSERT_NE(engine, nullptr);
    alone = RunOne(*engine, Request());
    EXPECT_LT(alone.last.attention.pages_read, alone.last.attention.pages_total * 2 / 3);
    GenerationRequest dense = Request();
    dense.attention = AttentionSpec{};
    EXPECT_NE(RunOne(*engine, dense).logprobs.back().chosen.logprob, alone.logprobs.back().chosen.logprob);
    Collector collector;
    std::string id;
    for (int i = 0; i < 3; ++i) {
      GenerationRequest other = Greedy(Ids(20 + 45 * i, 5 + static_cast<uint32_t>(i)), 35);
      if (i == 1) other.attention = AttentionSpec{};
      ASSERT_TRUE(engine->Submit(other, collector.callback()).ok());
      ASSERT_TRUE(*engine->Step());
      if (i == 1) id = engine->Submit(Request(), collector.callback()).value();
    }
    ASSERT_TRUE(engine->Run().ok());
    ExpectSame(collector.at(id), alone);
  }
  for (const int rows : {5, 35}) {
    EngineOptions cut = Options();
    cut.threads = rows == 35 ? 2 : 1;
    cut.max_num_batched_tokens = rows;
    cut.max_num_seqs = 3;
    auto engine = MakeEngine(cut);
    ASSERT_NE(engine, nullptr);
    ExpectSame(RunOne(*engine, Request()), alone);
    // Two prompts past their capacity in one step, and a dense one between.
    Collector collector;
    ASSERT_TRUE(engine->Submit(Greedy(Ids(70, 9), 5), collector.callback()).ok());
    ASSERT_TRUE(engine->Submit(Dense(40, 9, 4), collector.callback()).ok());
    const std::string id = engine->Submit(Request(), collector.callback()).value();
    ASSERT_TRUE(engine->Run().ok());
    ExpectSame(collector.at(id), alone);
  }
}

// An evicting sequence's pages are promised when it is admitted; who was there before it may still need them.
TEST_P(Evicting, BitsAreTheSameAfterAPreemption) {
  Output want;
  {
    auto whole = MakeEngine(Options());
    ASSERT_NE(whole, nullptr);
    want = RunOne(*whole, Request());
  }
  EngineOptions small = Options();
  small.max_num_seqs = 2;
  small.max_num_batched_tokens = 19;
  // 3 layers of 2 KV heads of 8 channels, K and V: 19 pages; 9 for who evicts, and 10 for who comes first until it
  // has 40.
  small.kv_cache_bytes = int64_t{19} * 4 * 3 * 2 * 8 * 2 * 4;
  auto engine = MakeEngine(small);
  ASSERT_NE(engine, nullptr);
  ASSERT_EQ(engine->Stats().pages_total, 19);
  Collector collector;
  GenerationRequest other = Dense(20, 50, 3);
  other.priority = -1;
  ASSERT_TRUE(engine->Submit(other, collector.callback()).ok());
  const std::string id = engine->Submit(Request(), collector.callback()).value();
  ASSERT_TRUE(engine->Run().ok());
  EXPECT_GT(collector.at(id).last.preemptions, 0);
  ExpectSame(collector.at(id), want);
  EXPECT_EQ(engine->Stats().pages_free, 19);
}

TEST_P(Evicting, ALostEnginesTokensGoOnAsTheyWould) {
  auto engine = MakeEngine(Options());
  ASSERT_NE(engine, nullptr);
  const Output want = RunOne(*engine, Request());
  for (const int done : {1, 17}) {
    GenerationRequest rest = Request();
    rest.resume.emplace();
    rest.resume->tokens.assign(want.ids.begin(), want.ids.begin() + done);
    std::vector<int32_t> ids = rest.resume->tokens;
    Collector collector;
    std::vector<TokenLogprobs> logprobs;
    ASSERT_TRUE(engine
                    ->Submit(rest,
                             [&](const TokenEvent& event) {
                               ids.insert(ids.end(), event.token_ids.begin(), event.token_ids.end());
                               logprobs.insert(logprobs.end(), event.logprobs.begin(), event.logprobs.end());
                             })
                    .ok());
    ASSERT_TRUE(engine->Run().ok());
    EXPECT_EQ(ids, want.ids);
    ASSERT_FALSE(logprobs.empty());
    EXPECT_EQ(logprobs.back().chosen.logprob, want.logprobs.back().chosen.logprob);
  }
}

// Each fork writes over its own pages and map: prompts that end before, at and behind the capacity.
TEST_P(Evicting, ForksEqualSequencesThatRunAlone) {
  for (const int prompt : {20, 33, 50}) {
    SCOPED_TRACE(std::to_string(prompt) + " tokens");
    GenerationRequest request = Request();
    request.prompt = Ids(prompt, 2);
    ExpectForksAsAlone(Options(), request);
  }
}

TEST_P(Evicting, TokensAreTheSameOnAnyNumberOfRanks) {
  EngineOptions options = Options();
  GenerationRequest request = Request();
  request.stopping.max_tokens = 60;
  Output one;
  {
    auto engine = MakeEngine(options);
    ASSERT_NE(engine, nullptr);
    one = RunOne(*engine, request);
  }
  // 8 query and 2 KV heads: from 3 ranks on they are shared, of 10 two have none.
  for (const int size : {2, 3, 4, 10}) {
    SCOPED_TRACE(std::to_string(size) + " ranks");
    TestRanks ranks(size);
    auto engine = MakeEngine(ranks.Options(options));
    ASSERT_NE(engine, nullptr);
    const Output many = RunOne(*engine, request);
    EXPECT_EQ(many.ids, one.ids);
    EXPECT_EQ(many.last.attention.pages_read, one.last.attention.pages_read);
    EXPECT_EQ(many.last.attention.pages_total, one.last.attention.pages_total);
    ASSERT_EQ(many.logprobs.size(), one.logprobs.size());
    for (size_t i = 0; i < one.logprobs.size(); ++i) {
      EXPECT_NEAR(many.logprobs[i].chosen.logprob, one.logprobs[i].chosen.logprob, 1e-4) << "token " << i;
    }
  }
}

// Caches for benchmarks, shorter than the capacity, as long, and much longer: of the pages that are kept alone.
TEST_P(Evicting, RandomCachesGoOnAlikeOnAnyThreadsAndRanks) {
  for (const int length : {20, 33, 200}) {
    SCOPED_TRACE(std::to_string(length) + " tokens");
    const auto run = [&](EngineOptions options, uint64_t seed) {
      auto engine = MakeEngine(std::move(options));
      EXPECT_NE(engine, nullptr);
      Collector collector;
      const auto id = engine->SubmitRandomCache(length, 12, seed, {}, collector.callback());
      EXPECT_TRUE(id.ok()) << id.status().ToString();
      const int64_t all = engine->Stats().pages_total;
      for (int step = 0; !collector.at(*id).last.finished; ++step) {
        const auto more = engine->Step();
        EXPECT_TRUE(more.ok()) << more.status().ToString();
        if (!more.ok()) break;
        if (!collector.at(*id).last.finished) {
          EXPECT_EQ(all - engine->Stats().pages_free, (std::min(length + step + 1, 33) + 3) / 4);
        }
      }
      return collector.at(*id);
    };
    const EngineOptions options = Options();
    const Output one = run(options, 7);
    EXPECT_EQ(one.ids.size(), 12u);
    EXPECT_NE(run(options, 8).ids, one.ids);
    EngineOptions alone = options;
    alone.threads = 1;
    EXPECT_EQ(run(alone, 7).ids, one.ids);
    for (const int size : {2, 3}) {  // 2 KV heads
      TestRanks ranks(size);
      const Output many = run(ranks.Options(options), 7);
      EXPECT_EQ(many.ids, one.ids) << size << " ranks";
      EXPECT_EQ(many.last.attention.pages_read, one.last.attention.pages_read);
    }
  }
}

TEST_P(Evicting, MemoryIsAsPredictedAndTheMapsAreCounted) {
  EngineOptions options = Options();
  options.attention = {Spec(GetParam())};
  options.attention[0].options["token_budget"] = "160";
  options.kv_cache_bytes = 0;
  options.max_num_batched_tokens = 250;
  const auto predicted = PredictMemory(options);
  ASSERT_TRUE(predicted.ok()) << predicted.status().ToString();
  auto engine = MakeEngine(options);
  ASSERT_NE(engine, nullptr);
  EXPECT_EQ(engine->Stats().pages_total, 4 * 160 / 4);  // for four sequences, whatever the context
  Collector collector;
  for (uint32_t i = 0; i < 4; ++i) {
    ASSERT_TRUE(engine->Submit(Greedy(Ids(200, 1 + i), 20), collector.callback()).ok());
  }
  ASSERT_TRUE(engine->Run().ok());
  const MemoryBytes actual = engine->Memory();
  const bool maps = MakePolicy(options.attention[0], 4).value()->Declare().slot_map;
  EXPECT_EQ(actual.history, maps ? size_t{4} * 3 * 2 * 160 * 8 : 0);  // a position and a weight
  EXPECT_EQ(actual.history, predicted->history);
  EXPECT_EQ(actual.kv_cache, predicted->kv_cache);
  EXPECT_NEAR(static_cast<double>(actual.scratch), static_cast<double>(predicted->scratch), 0.05 * predicted->scratch);
}

// The same attention over what is kept, whether the rest is there or not.
TEST(EvictingStreaming, GivesTheTokensOfStreamingThatKeepsEverything) {
  const std::string kept = "streaming:token_budget=48:sink_tokens=4:dense_layers=0";
  for (const int page_size : {1, 3, 16}) {
    EngineOptions options = Stories(kept + ":evict=true", page_size);
    options.attention.push_back(Spec(kept + ":evict=false"));
    options.kv_cache_bytes = 8 << 20;
    auto engine = MakeEngine(options);
    ASSERT_NE(engine, nullptr);
    GenerationRequest request = Greedy(StoryIds(40, 8), 400);
    request.logprobs = 5;
    const Output evicting = RunOne(*engine, request);
    request.attention = options.attention[1];
    const Output keeping = RunOne(*engine, request);
    ASSERT_EQ(evicting.ids, keeping.ids);
    ASSERT_EQ(evicting.logprobs.size(), 400u);
    for (size_t i = 0; i < 400; ++i) {
      for (size_t k = 0; k < 5; ++k) {
        ASSERT_NEAR(evicting.logprobs[i].top[k].logprob, keeping.logprobs[i].top[k].logprob, 1e-5 * 20) << i;
      }
    }
  }
}

// Positions count inside the cache, so neither a prompt nor what follows ends at the model's context.
TEST(EvictingStreaming, GoesOnBehindTheContextAsTheReferenceDoes) {
  constexpr int kTokens = 700;
  const std::vector<int32_t> ids = StoryIds(kTokens + 1, 6);
  EvictingReference reference(DataPath("stories260K"), {kStreaming, 40, 4, 0});
  std::vector<double> want;
  for (int i = 0; i < kTokens; ++i) want.push_back(reference.Next(ids[i])[static_cast<size_t>(ids[i + 1])]);
  for (const int prompt : {100, 600}) {
    auto engine = MakeEngine(Stories("streaming:evict=true:token_budget=40"));
    ASSERT_NE(engine, nullptr);
    ASSERT_EQ(engine->options().max_model_len, 512);
    GenerationRequest request = Greedy({ids.begin(), ids.begin() + prompt}, 1);
    request.forced.assign(ids.begin() + prompt, ids.end());
    request.logprobs = 0;
    const Output out = RunOne(*engine, request);
    ASSERT_EQ(out.logprobs.size(), static_cast<size_t>(kTokens + 1 - prompt));
    for (int i = prompt - 1; i < kTokens; ++i) {
      ASSERT_NEAR(out.logprobs[static_cast<size_t>(i + 1 - prompt)].chosen.logprob, want[static_cast<size_t>(i)], 2e-4)
          << i;
    }
  }
}

// Dynamic scaling makes frequencies by length: inside the cache that is never more than the budget.
TEST(EvictingStreaming, DynamicRopeCountsWithWhatIsKept) {
  ConfigFolder plain("evicting_plain_rope", {{"\"max_position_embeddings\": 512", "\"max_position_embeddings\": 64"}});
  ConfigFolder dynamic(
      "evicting_dynamic_rope",
      {{"\"max_position_embeddings\": 512",
        "\"max_position_embeddings\": 64, \"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 2.0}"}});
  std::vector<Output> outs;
  for (const std::string& model : {plain.path(), dynamic.path()}) {
    EngineOptions options = GqaOptions({Spec("streaming:evict=true:token_budget=48")});
    options.model = model;
    auto engine = MakeEngine(options);
    ASSERT_NE(engine, nullptr);
    GenerationRequest request = Greedy(Ids(100, 3), 60);
    request.logprobs = 0;
    outs.push_back(RunOne(*engine, request));
  }
  EXPECT_EQ(outs[0].ids, outs[1].ids);
  EXPECT_EQ(outs[0].logprobs.back().chosen.logprob, outs[1].logprobs.back().chosen.logprob);
}

TEST(EvictingOptions, H2oAndTovaEndAtTheContext) {
  for (const char* spec : {"h2o:evict=true:token_budget=40", "tova:evict=true:token_budget=40"}) {
    auto engine = MakeEngine(Stories(spec));
    ASSERT_NE(engine, nullptr);
    const Output out = RunOne(*engine, Greedy(StoryIds(500, 1), 1000));
    EXPECT_EQ(out.ids.size(), 12u);
    EXPECT_EQ(out.last.reason, FinishReason::kLength);
    const auto refused = engine->Submit(Greedy(StoryIds(512, 1), 1), nullptr);
    EXPECT_EQ(refused.status().code(), StatusCode::kInvalidArgument);
  }
}

void ExpectRefused(const Status& status, StatusCode code, const std::string& words) {
  EXPECT_EQ(status.code(), code) << status.ToString();
  EXPECT_NE(std::string(status.message()).find(words), std::string::npos) << status.ToString();
}

TEST(EvictingOptions, WhatCannotHoldIsRefusedWithASentence) {
  const auto make = [](const std::string& spec) { return MakePolicy(Spec(spec), 16).status(); };
  const StatusCode bad = StatusCode::kInvalidArgument;
  ExpectRefused(make("quest:evict=true"), bad, "'quest'");
  ExpectRefused(make("swa:evict=true"), bad, "'swa'");
  ExpectRefused(make("top-p:selector=h2o:evict=true"), bad, "'top-p' has no option 'evict'");
  ExpectRefused(make("h2o:evict=yes"), bad, "evict=yes");
  ExpectRefused(make("h2o:evict=true:dense_layers=2"), bad, "dense_layers=2");
  ExpectRefused(make("tova:evict=true:budget_share=0.5"), bad, "budget_share");
  ExpectRefused(make("tova:evict=true:token_budget=20:sink_tokens=10:recent_tokens=10"), bad, "at least 21");
  ExpectRefused(make("h2o:evict=true:token_budget=4"), bad, "token_budget 4 has no room for 4 sink tokens");
  ExpectRefused(make("streaming:evict=true:token_budget=20:recent_tokens=8"), bad, "leave out recent_tokens");
  ExpectRefused(make("streaming:evict=true:token_budget=4"), bad, "");
  EXPECT_TRUE(make("h2o:evict=false:dense_layers=2:token_budget=160").ok());
  EXPECT_TRUE(make("tova:evict=true:token_budget=5:dense_layers=0").ok());
  for (const char* spec : {"streaming:evict=true", "h2o:evict=true", "tova:evict=true"}) {
    EXPECT_TRUE(MakePolicy(Spec(spec), 16).value()->RunsOnGpu());
  }

  const auto create = [](EngineOptions options) { return Engine::Create(std::move(options)).status(); };
  ExpectRefused(create(Stories("streaming:evict=true")), bad, "the context has 512");
  EngineOptions windows = Stories("h2o:evict=true:token_budget=32");
  windows.model = DataPath("gemma-dummy");
  windows.load_format = "dummy";
  ExpectRefused(create(windows), StatusCode::kUnimplemented, "'h2o:evict=true:token_budget=32' evicts");

  // Requests may ask for what the engine keeps memory for.
  EngineOptions options = Stories("h2o:evict=true:token_budget=64");
  options.attention.push_back(Spec("tova:token_budget=64"));
  options.attention.push_back(Spec("streaming:token_budget=64"));
  auto engine = MakeEngine(options);
  ASSERT_NE(engine, nullptr);
  const auto submit = [&](const std::string& spec, int prompt = 10) {
    GenerationRequest request = Greedy(StoryIds(prompt, 1), 1);
    request.attention = Spec(spec);
    return engine->Submit(request, [](const TokenEvent&) {}).status();
  };
  EXPECT_TRUE(submit("h2o:token_budget=40").ok());
  EXPECT_TRUE(submit("tova:evict=true").ok());
  EXPECT_TRUE(submit("streaming:evict=true:token_budget=100").ok());
  ExpectRefused(submit("h2o:token_budget=65"), bad, "maps of 65 slots, and this engine keeps some of 64");
  ExpectRefused(submit("streaming:evict=true:token_budget=600"), bad, "the context has 512");
  // Without the engine's own policy saying so, a sequence ends at the context.
  ExpectRefused(submit("streaming:evict=true:token_budget=100", 600), bad, "shorter than the context of 512");
  ExpectRefused(engine->SubmitRandomCache(100, 1, 1, Spec("streaming:evict=true:token_budget=600"), nullptr).status(),
                bad, "the context has 512");
  ASSERT_TRUE(engine->Run().ok());

  EngineOptions no_maps = Stories("tova:token_budget=64");
  auto plain = MakeEngine(no_maps);
  ASSERT_NE(plain, nullptr);
  GenerationRequest request = Greedy(StoryIds(10, 1), 1);
  request.attention = Spec("tova:evict=true");
  ExpectRefused(plain->Submit(request, nullptr).status(), bad, "this engine keeps none");
}

// Each head's weights are its own, whichever rank has it, and nothing is left of what was there.
TEST(SlotMaps, RandomOnesAreThoseOfTheHeadsOnAnyRank) {
  CacheConfig both, second;
  both.page_size = second.page_size = 4;
  both.groups = {{{0, 1}, 2, 8, 8, 0, DType::kF32}};
  second.groups = {{{0, 1}, 1, 8, 8, 0, DType::kF32}};
  const auto policy = MakePolicy(Spec("h2o:evict=true:token_budget=20"), 4).value();
  auto a = SlotMaps::Create({}, both, 20, 1), b = SlotMaps::Create({}, second, 20, 1);
  ASSERT_TRUE(a.ok() && b.ok());
  for (const int64_t length : {50, 12}) {
    for (auto* maps : {&*a, &*b}) ASSERT_TRUE(maps->Start(0, policy.get()).ok());
    ASSERT_TRUE(a->FillRandom(0, length, 3, 0).ok());
    ASSERT_TRUE(b->FillRandom(0, length, 3, 1).ok());
    std::set<float> weights;
    for (int layer = 0; layer < 2; ++layer) {
      for (int64_t slot = 0; slot < 20; ++slot) {
        const SlotMap &mine = a->Of(0)[layer], &other = b->Of(0)[layer];
        EXPECT_EQ(mine.Weights(1)[slot], other.Weights(0)[slot]);
        EXPECT_EQ(mine.Positions(1)[slot], length == 12 || slot < 10 ? slot : slot + 30);
        EXPECT_EQ(mine.Weights(0)[slot] > 0, slot < length);
        for (int head = 0; head < 2; ++head) weights.insert(mine.Weights(head)[slot]);
      }
    }
    EXPECT_GE(weights.size(), length == 12 ? 48u : 80u);
  }
}

class SlowEvicting : public ::testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(Slow, SlowEvicting,  // names begin with the first
                         ::testing::Values("streaming:evict=true:token_budget=256", "h2o:evict=true:token_budget=256",
                                           "tova:evict=true:token_budget=256"),
                         [](const auto& info) {
                           const std::string spec = info.param;
                           return spec.substr(0, spec.find(':'));
                         });

TEST_P(SlowEvicting, MemoryIsFlatOverAHundredThousandTokens) {
  ConfigFolder folder("evicting_long", {{"\"max_position_embeddings\": 512", "\"max_position_embeddings\": 131072"}});
  EngineOptions options =
      std::string(GetParam()).starts_with("streaming") ? Stories(GetParam()) : GqaOptions({Spec(GetParam())});
  if (options.load_format == "dummy") options.model = folder.path();
  options.page_size = 16;
  options.max_num_seqs = 1;
  auto engine = MakeEngine(options);
  ASSERT_NE(engine, nullptr);
  constexpr int kTokens = 100000;
  Collector collector;
  const std::string id = engine->Submit(Greedy(Ids(100, 1, 500), kTokens), collector.callback()).value();
  const int64_t all = engine->Stats().pages_total;
  int64_t settled = 0, most = 0;
  for (int step = 0; !collector.at(id).last.finished; ++step) {
    ASSERT_TRUE(*engine->Step());
    const int64_t used = all - engine->Stats().pages_free;
    ASSERT_LE(used, 16);
    if (step >= 200 && step < kTokens - 1) {
      ASSERT_EQ(used, 16) << step;
    }
    if (step == 10000) settled = ResidentBytes();
    if (step > 10000 && step % 1000 == 0) most = std::max(most, ResidentBytes());
  }
  EXPECT_EQ(collector.at(id).ids.size(), static_cast<size_t>(kTokens));
  std::printf("%s: resident %.1f MB after 10000 tokens, at most %.1f MB later\n", GetParam(), settled / 1e6,
              most / 1e6);
  // The tokens themselves, here and in the engine's vectors as they grow, are all there is more of.
  EXPECT_LT(most - settled, 4 << 20);
}

}  // namespace
}  // namespace quire

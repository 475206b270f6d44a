// Every policy end to end: what a request gets doesn't depend on threads, on what runs beside it, on how its prompt was
// cut, on whether it was preempted, forked or resumed, nor (rounding aside) on the number of ranks. A policy that
// remembers must have the same history each time for that.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>

#include "core/engine/attention_history.h"
#include "core/engine/request_check.h"
#include "kernels/selection/cost_model.h"
#include "tests/core/engine/group_fixture.h"

namespace quire {
namespace {

constexpr int kPrompt = 90;
constexpr int kOutputs = 30;

class EnginePolicies : public ::testing::TestWithParam<const char*> {
 protected:
  AttentionSpec Spec() const { return AttentionSpec::Parse(GetParam()).value(); }
  EngineOptions Options() const {
    EngineOptions options = GqaOptions({{}, Spec()});
    options.threads = 2;
    options.max_model_len = 256;
    options.batch_invariant = true;
    return options;
  }
  GenerationRequest Request() const {
    GenerationRequest request = Greedy(Ids(kPrompt, 1), kOutputs);
    request.attention = Spec();
    request.logprobs = 1;
    return request;
  }
};

INSTANTIATE_TEST_SUITE_P(
    All, EnginePolicies,
    ::testing::Values("quest:token_budget=32:dense_layers=0", "hierarchical:token_budget=32:dense_layers=1",
                      "hybrid:token_budget=32:dense_layers=0", "sparq:token_budget=32:dense_layers=0:channels=8",
                      "h2o:token_budget=32:dense_layers=0", "swa:token_budget=32:dense_layers=1",
                      "swa:token_budget=40:dense_layers=0:rows=9", "tova:token_budget=32:dense_layers=0",
                      "streaming:token_budget=30:dense_layers=0", "top-p:token_budget=32:loose=0.5:dense_layers=0",
                      "top-p:selector=h2o:token_budget=40:p=0.8:dense_layers=1",
                      "hierarchical:token_budget=32:dense_layers=0:reuse=4",
                      "hierarchical:token_budget=32:dense_layers=0:keep=0.5:metadata=int8",
                      "sparq:level=token:token_budget=33:dense_layers=0:channels=8",
                      "sparq:v_mean=on:token_budget=32:dense_layers=1:channels=8",
                      "sparq:level=token:v_mean=on:token_budget=24:dense_layers=0:channels=4",
                      "auto:crossover=100:token_budget=32:dense_layers=0"),  // in the middle of the outputs
    [](const auto& info) {
      std::string name = std::string(info.param).substr(0, std::string(info.param).find(':'));
      std::erase(name, '-');
      return name + std::to_string(info.index);
    });

TEST_P(EnginePolicies, BitsAreTheSameOnAnyThreadsCutsAndCompany) {
  Output alone;
  {
    auto engine = MakeEngine(Options());
    ASSERT_NE(engine, nullptr);
    alone = RunOne(*engine, Request());
    ASSERT_EQ(alone.ids.size(), static_cast<size_t>(kOutputs));
    EXPECT_LT(alone.last.attention.pages_read, alone.last.attention.pages_total * 3 / 4);
    GenerationRequest dense = Request();
    dense.attention.reset();
    EXPECT_NE(RunOne(*engine, dense).logprobs.back().chosen.logprob, alone.logprobs.back().chosen.logprob);
    ExpectSame(RunOne(*engine, Request()), alone);
    // Among others of both policies, some ahead of it.
    Collector collector;
    std::string id;
    for (int i = 0; i < 3; ++i) {
      GenerationRequest other = Greedy(Ids(20 + 45 * i, 5 + static_cast<uint32_t>(i)), 35);
      if (i != 1) other.attention = Spec();
      ASSERT_TRUE(engine->Submit(other, collector.callback()).ok());
      ASSERT_TRUE(*engine->Step());
      if (i == 1) id = engine->Submit(Request(), collector.callback()).value();
    }
    ASSERT_TRUE(engine->Run().ok());
    ExpectSame(collector.at(id), alone);
  }
  for (const int rows : {5, 33}) {
    EngineOptions cut = Options();
    cut.threads = 1;
    cut.max_num_batched_tokens = rows;
    auto engine = MakeEngine(cut);
    ASSERT_NE(engine, nullptr);
    ExpectSame(RunOne(*engine, Request()), alone);
  }
}

TEST_P(EnginePolicies, BitsAreTheSameAfterAPreemptionAndBehindALostEngine) {
  auto whole = MakeEngine(Options());
  ASSERT_NE(whole, nullptr);
  const Output want = RunOne(*whole, Request());
  // Two sequences that don't fit together to their ends; the other is first in order.
  EngineOptions small = Options();
  small.max_num_seqs = 2;
  small.kv_cache_bytes = 0;
  small.max_num_batched_tokens = 19;
  small.max_model_len = kPrompt + kOutputs + 60;
  // Room for one of them and half of the other, whatever metadata takes.
  std::unique_ptr<Engine> engine;
  for (small.kv_cache_bytes = 400000; engine == nullptr || engine->Stats().pages_total > 58;) {
    engine.reset();
    small.kv_cache_bytes -= small.kv_cache_bytes / 20;
    engine = MakeEngine(small);
    ASSERT_NE(engine, nullptr);
  }
  EXPECT_GT(engine->Stats().pages_total, 50);
  Collector collector;
  GenerationRequest other = Greedy(Ids(kPrompt, 3), 80);
  other.priority = -1;
  other.attention = Spec();
  ASSERT_TRUE(engine->Submit(other, collector.callback()).ok());
  const std::string id = engine->Submit(Request(), collector.callback()).value();
  ASSERT_TRUE(engine->Run().ok());
  EXPECT_GT(collector.at(id).last.preemptions, 0);
  ExpectSame(collector.at(id), want);

  for (const int done : {1, 17}) {
    GenerationRequest resumed = Request();
    resumed.resume = {0, {want.ids.begin(), want.ids.begin() + done}};
    std::vector<int32_t> rest;
    ASSERT_TRUE(
        engine
            ->Submit(resumed,
                     [&](const TokenEvent& e) { rest.insert(rest.end(), e.token_ids.begin(), e.token_ids.end()); })
            .ok());
    ASSERT_TRUE(engine->Run().ok());
    EXPECT_EQ(rest, std::vector<int32_t>(want.ids.begin() + done, want.ids.end())) << "behind " << done;
  }
}

TEST_P(EnginePolicies, ForksEqualSequencesThatRunAlone) {
  ExpectForksAsAlone(Options(), Request());
}

TEST_P(EnginePolicies, ABudgetForTheWholeSequenceGivesTheBitsOfDense) {
  EngineOptions options = Options();
  options.attention = {{}, {Spec().name, {{"token_budget", "256"}, {"dense_layers", "0"}}}};
  auto engine = MakeEngine(options);
  ASSERT_NE(engine, nullptr);
  GenerationRequest request = Request();
  request.attention = options.attention[1];
  const Output full = RunOne(*engine, request);
  request.attention.reset();
  ExpectSame(full, RunOne(*engine, request));
}

TEST_P(EnginePolicies, MemoryIsAsPredicted) {
  for (const bool bound : {false, true}) {
    EngineOptions options = Options();
    options.kv_cache_bytes = 0;
    options.max_num_batched_tokens = 250;
    options.max_model_len = 255;
    options.missing_mass_bound = bound;
    const auto predicted = PredictMemory(options);
    ASSERT_TRUE(predicted.ok()) << predicted.status().ToString();
    auto engine = MakeEngine(options);
    ASSERT_NE(engine, nullptr);
    Collector collector;
    for (uint32_t i = 0; i < 4; ++i) {
      GenerationRequest request = Greedy(Ids(245, 1 + i), 10);
      request.attention = Spec();
      ASSERT_TRUE(engine->Submit(request, collector.callback()).ok());
    }
    ASSERT_TRUE(engine->Run().ok());
    const MemoryBytes actual = engine->Memory();
    EXPECT_EQ(actual.history, predicted->history);
    const auto policy = MakePolicy(Spec(), options.page_size).value();
    EXPECT_EQ(actual.history > 0, policy->Declare().history > 0);
    EXPECT_EQ(actual.kv_cache, predicted->kv_cache);
    EXPECT_EQ(actual.kv_metadata, predicted->kv_metadata);
    EXPECT_NEAR(static_cast<double>(actual.scratch), static_cast<double>(predicted->scratch), 0.05 * predicted->scratch);
  }
}

TEST_P(EnginePolicies, TokensAndPagesAreTheSameOnAnyNumberOfRanks) {
  EngineOptions options = Options();
  options.threads = 1;
  const auto at_depth = [&](Engine& engine) {  // behind a cache of made-up contents, and a history to go with it
    Collector collector;
    const auto id = engine.SubmitRandomCache(150, 5, 42, Spec(), collector.callback());
    EXPECT_TRUE(id.ok() && engine.Run().ok());
    return collector.at(*id);
  };
  Output one, deep;
  {
    auto engine = MakeEngine(options);
    ASSERT_NE(engine, nullptr);
    one = RunOne(*engine, Request());
    deep = at_depth(*engine);
    EXPECT_LT(deep.last.attention.pages_read, deep.last.attention.pages_total);
  }
  // 8 query and 2 KV heads: from 3 ranks on they are shared, of 10 two have none.
  for (const int size : {2, 3, 4, 10}) {
    SCOPED_TRACE(std::to_string(size) + " ranks");
    TestRanks ranks(size);
    auto engine = MakeEngine(ranks.Options(options));
    ASSERT_NE(engine, nullptr);
    const Output many = RunOne(*engine, Request());
    EXPECT_EQ(many.ids, one.ids);
    EXPECT_EQ(many.last.attention.pages_read, one.last.attention.pages_read);
    EXPECT_EQ(many.last.attention.pages_total, one.last.attention.pages_total);
    ASSERT_EQ(many.logprobs.size(), one.logprobs.size());
    for (size_t i = 0; i < one.logprobs.size(); ++i) {
      EXPECT_NEAR(many.logprobs[i].chosen.logprob, one.logprobs[i].chosen.logprob, 1e-4) << "token " << i;
    }
    const Output many_deep = at_depth(*engine);
    EXPECT_EQ(many_deep.ids, deep.ids);
    EXPECT_EQ(many_deep.last.attention.pages_read, deep.last.attention.pages_read);
    // And the same again among others.
    Collector collector;
    ASSERT_TRUE(engine->Submit(Greedy(Ids(50, 8), 20), collector.callback()).ok());
    const std::string id = engine->Submit(Request(), collector.callback()).value();
    ASSERT_TRUE(engine->Run().ok());
    EXPECT_EQ(collector.at(id).ids, many.ids);
  }
}

// Asks quest for the same rows, and compares its lists with those that the engine's policy made.
class LikeQuest final : public SelectionObserver {
 public:
  LikeQuest(const std::string& spec, int page_size)
      : quest_(MakePolicy(AttentionSpec::Parse(spec).value(), page_size).value()), pool_(1) {}
  void OnSelect(const SelectParams& p, const SelectionView& s) override {
    Context ctx;
    ctx.pool = &pool_;
    const int64_t lists = int64_t{p.rows} * p.table.format.kv_heads;
    std::vector<int32_t> pages(static_cast<size_t>(lists * s.max_pages)), counts(static_cast<size_t>(lists));
    SelectionView view;
    view.pages = pages.data();
    view.counts = counts.data();
    view.max_pages = s.max_pages;
    std::vector<char> workspace(quest_->SelectWorkspace(p));
    quest_->Select(ctx, p, view, workspace.data());
    for (int64_t list = 0; list < lists; ++list) {
      const int32_t *got = s.pages + list * s.max_pages, *want = pages.data() + list * s.max_pages;
      EXPECT_EQ(std::vector<int32_t>(got, got + s.counts[list]),
                std::vector<int32_t>(want, want + counts[static_cast<size_t>(list)]));
    }
    for (int row = 0; row < p.rows; ++row) lengths.insert(p.row_len[row]);
  }
  std::set<int64_t> lengths;  // at which something was selected

 private:
  std::unique_ptr<AttentionPolicy> quest_;
  ThreadPool pool_;
};

TEST(AutoAttention, IsDenseBitForBitBelowTheCrossoverAndQuestFromItOn) {
  const std::string options = ":dense_layers=0:token_budget=32";
  const auto spec = [&](const std::string& name) { return AttentionSpec::Parse(name + options).value(); };
  EngineOptions engine_options = GqaOptions({{}, spec("quest"), spec("auto")});
  engine_options.max_model_len = 256;
  auto engine = MakeEngine(engine_options);
  ASSERT_NE(engine, nullptr);
  const auto run = [&](std::optional<AttentionSpec> attention) {
    GenerationRequest request = Greedy(Ids(kPrompt, 1), kOutputs);
    request.attention = std::move(attention);
    request.logprobs = 1;
    return RunOne(*engine, request);
  };
  const auto logprob = [](const Output& out, int i) { return out.logprobs[static_cast<size_t>(i)].chosen.logprob; };
  const Output dense = run(AttentionSpec{});
  const Output quest = run(spec("quest"));
  ASSERT_NE(logprob(dense, 1), logprob(quest, 1));

  LikeQuest watcher("quest" + options, engine_options.page_size);
  engine->set_selection_observer(&watcher);
  const Output above = run(spec("auto:crossover=0"));
  EXPECT_EQ(above.ids, quest.ids);
  EXPECT_EQ(above.last.attention.pages_read, quest.last.attention.pages_read);
  for (int i = 0; i < kOutputs; ++i) EXPECT_EQ(logprob(above, i), logprob(quest, i)) << i;
  EXPECT_EQ(*watcher.lengths.begin(), kPrompt + 1);

  watcher.lengths.clear();
  const Output below = run(spec("auto:crossover=120"));  // the last step has 119 tokens
  EXPECT_TRUE(watcher.lengths.empty());
  EXPECT_EQ(below.ids, dense.ids);
  EXPECT_EQ(below.last.attention.pages_read, dense.last.attention.pages_read);
  for (int i = 0; i < kOutputs; ++i) EXPECT_EQ(logprob(below, i), logprob(dense, i)) << i;

  // The step at length n gives token n − kPrompt.
  const Output between = run(spec("auto:crossover=104"));
  EXPECT_EQ(*watcher.lengths.begin(), 104);
  EXPECT_EQ(*watcher.lengths.rbegin(), kPrompt + kOutputs - 1);
  for (int i = 0; i < 104 - kPrompt; ++i) EXPECT_EQ(logprob(between, i), logprob(dense, i)) << i;
  EXPECT_NE(logprob(between, 104 - kPrompt), logprob(dense, 104 - kPrompt));
  engine->set_selection_observer(nullptr);
  // Per request: all of them in one batch, each as alone.
  Collector collector;
  std::vector<std::string> ids;
  for (const char* name : {"auto:crossover=0", "auto:crossover=104", "auto:crossover=120"}) {
    GenerationRequest request = Greedy(Ids(kPrompt, 1), kOutputs);
    request.attention = spec(name);
    ids.push_back(engine->Submit(request, collector.callback()).value());
  }
  ASSERT_TRUE(engine->Run().ok());
  EXPECT_EQ(collector.at(ids[0]).ids, quest.ids);
  EXPECT_EQ(collector.at(ids[1]).ids, between.ids);
  EXPECT_EQ(collector.at(ids[2]).ids, dense.ids);
  EXPECT_EQ(collector.at(ids[1]).last.attention.pages_read, between.last.attention.pages_read);
}

// Eight channels of f32 a head: a list's fixed cost is worth hundreds of tokens there, of the shape that a page size
// alone stands for only some.
TEST(AutoAttention, TheCrossoverIsThatOfTheModelsOwnShape) {
  const AttentionSpec spec = AttentionSpec::Parse("auto:token_budget=16:dense_layers=0").value();
  EngineOptions options = GqaOptions({spec});
  options.max_model_len = 512;
  const int64_t own = AttentionCostModel(kCpuCosts, {4, 8, 8, DType::kF32, 4}, 16, 0).Crossover();
  const int64_t usual = DenseUpTo(*MakePolicy(spec, options.page_size).value(), 100000, options.page_size) + 1;
  ASSERT_LT(usual, 480);
  ASSERT_GT(own, usual + 10);
  // Steps on both sides of the own crossover where the context reaches it, else at its end.
  const int prompt = static_cast<int>(std::min<int64_t>(own, 504)) - 4;
  for (const int ranks : {1, 4}) {  // with four, two ranks share a KV head
    TestRanks group(ranks);
    auto engine = MakeEngine(group.Options(options));
    ASSERT_NE(engine, nullptr);
    const Output out = RunOne(*engine, Greedy(Ids(prompt, 1), 8));
    int64_t read = 0;  // in each of 3 layers and 2 KV heads; 4 pages are the budget
    for (int64_t n = prompt + 1; n < prompt + 8; ++n) read += n < own ? (n + 3) / 4 * 6 : 4 * 6;
    EXPECT_EQ(out.last.attention.pages_read, read) << ranks << " ranks";
  }
}

// With one layer a token's K and V depend on the token alone, so a long sequence under streaming and a short one of the
// kept tokens under dense attention give the same distribution: if the query is turned for its sinks by as much as lies
// between, and the right way.
TEST(StreamingModel, SeesWhatAModelSeesThatHoldsTheKeptTokensAlone) {
  const std::filesystem::path folder = std::filesystem::path(::testing::TempDir()) / "one_layer_streaming";
  std::filesystem::create_directories(folder);
  std::string config = ReadAll(DataPath("gqa-dummy/config.json"));
  const std::string layers = "\"num_hidden_layers\": 3";
  ASSERT_NE(config.find(layers), std::string::npos);
  config.replace(config.find(layers), layers.size(), "\"num_hidden_layers\": 1");
  std::ofstream(folder / "config.json") << config;
  EngineOptions options;
  options.model = folder.string();
  options.load_format = "dummy";
  options.load_tokenizer = false;
  options.threads = 1;
  options.dtype = "float32";
  options.page_size = 4;
  options.max_num_seqs = 1;
  options.max_model_len = 256;
  options.attention = {{}, AttentionSpec::Parse("streaming:token_budget=24:sink_tokens=5:dense_layers=0").value()};
  auto engine = MakeEngine(options);
  ASSERT_NE(engine, nullptr);
  const std::vector<int32_t> all = Ids(150, 3);
  const auto last_logprobs = [&](std::vector<int32_t> prompt, int policy) {
    GenerationRequest request = Greedy(std::move(prompt), 2);
    request.attention = options.attention[static_cast<size_t>(policy)];
    request.forced = {all[149], 7};  // the second is what a decode row gives
    request.logprobs = 20;
    return RunOne(*engine, request).logprobs.back();
  };
  const TokenLogprobs streaming = last_logprobs({all.begin(), all.begin() + 149}, 1);
  std::vector<int32_t> kept(all.begin(), all.begin() + 5);
  kept.insert(kept.end(), all.begin() + 150 - 19, all.begin() + 149);
  const TokenLogprobs compact = last_logprobs(kept, 0), dense = last_logprobs({all.begin(), all.begin() + 149}, 0);
  EXPECT_NEAR(streaming.chosen.logprob, compact.chosen.logprob, 1e-4);
  for (size_t i = 0; i < compact.top.size(); ++i) EXPECT_EQ(streaming.top[i].id, compact.top[i].id) << i;
  EXPECT_GT(std::abs(dense.chosen.logprob - compact.chosen.logprob), 1e-3);  // what is left out matters
  std::filesystem::remove_all(folder);
}

TEST(EnginePolicyOptions, ARequestsMayNotNeedMoreThanTheEngineKeeps) {
  const auto spec = [](const char* text) { return AttentionSpec::Parse(text).value(); };
  const std::vector<AttentionSpec> swa = {{}, spec("swa:rows=4")};
  EXPECT_TRUE(ResolveAttention(spec("swa:rows=2:dense_layers=0"), swa, 16).ok());
  EXPECT_TRUE(ResolveAttention(spec("swa:rows=4:token_budget=64"), swa, 16).ok());
  const auto more = ResolveAttention(spec("swa:rows=5"), swa, 16);
  EXPECT_EQ(more.status().code(), StatusCode::kInvalidArgument);
  EXPECT_NE(more.status().message().find("5 floats of history a page, and this engine keeps 4"), std::string::npos);
  const std::vector<AttentionSpec> sparq = {spec("top-p:selector=sparq")};
  EXPECT_TRUE(ResolveAttention(spec("top-p:p=0.5"), sparq, 16).ok());
  for (const char* needs : {"top-p:selector=quest", "top-p:selector=h2o"}) {
    EXPECT_EQ(ResolveAttention(spec(needs), sparq, 16).status().code(), StatusCode::kInvalidArgument) << needs;
  }
  const std::vector<AttentionSpec> both = {spec("top-p:selector=sparq"), spec("quest"), spec("h2o")};
  EXPECT_TRUE(ResolveAttention(spec("top-p:selector=h2o"), both, 16).ok());
}

TEST(AttentionHistory, BelongsToTheSequenceOfItsSlot) {
  CacheConfig cache;
  cache.page_size = 4;
  cache.groups = {{{0, 1, 3}, 2, 8, 8, 0, DType::kF32}, {{2}, 2, 8, 8, 32, DType::kF32}};
  const auto h2o = MakePolicy(AttentionSpec::Parse("h2o:dense_layers=1:token_budget=16").value(), 4).value();
  const auto swa = MakePolicy(AttentionSpec::Parse("swa:dense_layers=3:rows=2:token_budget=16").value(), 4).value();
  const auto quest = MakePolicy(AttentionSpec::Parse("quest:token_budget=16").value(), 4).value();
  auto history = AttentionHistory::Create(Context{}, cache, 2, 3, 30);
  ASSERT_TRUE(history.ok());
  // Three slots, three layers (2 has a window), two KV heads, eight pages, two floats.
  EXPECT_EQ(history->bytes(), 3u * 3 * 2 * 8 * 2 * 4);
  EXPECT_EQ(AttentionHistory::Bytes(cache, 2, 3, 30), history->bytes());
  EXPECT_EQ(AttentionHistory::Bytes(cache, 0, 3, 30), 0u);
  EXPECT_EQ(history->Of(0, quest.get(), 10), nullptr);

  PageHistory* a = history->Of(0, h2o.get(), 10);
  EXPECT_EQ(a[2].values, nullptr);
  ASSERT_NE(a[1].values, nullptr);
  EXPECT_EQ(a[3].pages, 3);
  std::fill_n(a[3].Head(1), 3, 5.0f);
  a = history->Of(0, h2o.get(), 30);
  EXPECT_EQ(a[3].pages, 8);
  EXPECT_EQ(a[3].Head(1)[2], 5.0f);
  EXPECT_EQ(a[3].Head(1)[3], 0.0f);
  a[3].Head(1)[7] = 6.0f;

  ASSERT_TRUE(history->Start(1).ok());
  ASSERT_TRUE(history->Fork(0, 1, h2o.get()).ok());
  PageHistory* b = history->Of(1, h2o.get(), 30);
  EXPECT_NE(b[3].values, a[3].values);
  EXPECT_EQ(b[3].Head(1)[2], 5.0f);
  EXPECT_EQ(b[3].Head(1)[7], 6.0f);
  ASSERT_TRUE(history->Truncate(1, 9).ok());
  EXPECT_EQ(history->Of(1, h2o.get(), 9)[3].pages, 3);
  EXPECT_EQ(history->Of(1, h2o.get(), 30)[3].Head(1)[7], 0.0f);
  EXPECT_EQ(history->Of(1, h2o.get(), 30)[3].Head(1)[2], 5.0f);
  EXPECT_EQ(history->Of(0, h2o.get(), 30)[3].Head(1)[7], 6.0f);

  // The slot's next sequence begins with nothing, and may have another policy.
  ASSERT_TRUE(history->Start(0).ok());
  const PageHistory* c = history->Of(0, swa.get(), 30);
  EXPECT_EQ(c[3].width, 2);
  for (int head = 0; head < 2; ++head) {
    for (int i = 0; i < 16; ++i) EXPECT_EQ(c[3].Head(head)[i], 0.0f);
  }
}

// Each gets the tokens, and reads the pages, of an engine that knows its policy alone.
TEST(PolicyOfARequest, InOneBatchHasOptionsOfItsOwn) {
  const auto spec = [](const char* text) { return AttentionSpec::Parse(text).value(); };
  EngineOptions options = ModelOptions("retriever-2m");
  options.batch_invariant = true;
  options.attention = {spec("dense"), spec("quest:token_budget=64:dense_layers=1"), spec("hierarchical")};
  auto engine = MakeEngine(options);
  ASSERT_NE(engine, nullptr);
  struct Case {
    const char* wanted;
    const char* meant;  // with what it leaves out
  };
  const Case cases[] = {{"quest:token_budget=160", "quest:token_budget=160:dense_layers=1"},
                        {"dense", "dense"},
                        {"quest", "quest:token_budget=64:dense_layers=1"},
                        {"hierarchical:token_budget=96:dense_layers=0", "hierarchical:token_budget=96:dense_layers=0"},
                        {"quest:dense_layers=0", "quest:token_budget=64:dense_layers=0"},
                        {"quest:token_budget=48:dense_layers=0", "quest:token_budget=48:dense_layers=0"},
                        {"quest:token_budget=160", "quest:token_budget=160:dense_layers=1"}};
  Collector together;
  std::vector<GenerationRequest> requests;
  for (const Case& c : cases) {
    GenerationRequest request = Greedy(BytePrompt(300 + 7 * static_cast<int>(requests.size())), 8);
    request.request_id = std::to_string(requests.size());
    request.attention = spec(c.wanted);
    requests.push_back(request);
    ASSERT_TRUE(engine->Submit(request, together.callback()).ok());
  }
  ASSERT_TRUE(engine->Run().ok());
  std::set<int64_t> read;
  for (size_t i = 0; i < requests.size(); ++i) {
    EngineOptions own = options;
    own.attention = {spec(cases[i].meant)};
    auto alone = MakeEngine(own);
    ASSERT_NE(alone, nullptr);
    requests[i].attention.reset();
    const Output want = RunOne(*alone, requests[i]);
    const Output& got = together.at(requests[i].request_id);
    EXPECT_EQ(got.ids, want.ids) << cases[i].wanted;
    EXPECT_EQ(got.last.attention.pages_read, want.last.attention.pages_read) << cases[i].wanted;
    EXPECT_EQ(got.last.attention.pages_total, want.last.attention.pages_total) << cases[i].wanted;
    read.insert(got.last.attention.pages_read);
  }
  EXPECT_GE(read.size(), 6u);  // so the budgets differed in effect
}

}  // namespace
}  // namespace quire

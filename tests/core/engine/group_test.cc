// An engine on several ranks against the same engine on one: tokens, log-probabilities, counts; what is sent; and how a
// group ends when one of its ranks can't go on. The ranks are threads.
#include "core/engine/group.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "core/engine/engine_options.h"
#include "core/engine/group_channel.h"
#include "core/model/families.h"
#include "core/model/weight_slices.h"
#include "tests/core/engine/group_fixture.h"

namespace quire {
namespace {

class GroupTest : public ::testing::Test {
 protected:
  EngineOptions Gqa() const { return GqaOptions({{}, {"quest", {{"token_budget", "32"}, {"dense_layers", "1"}}}}); }
};

// Requests of every kind at once: greedy and drawn, few and many candidates, penalties, bias, log-probabilities of
// prompt and output, forks, forced tokens, two policies and three budgets.
std::vector<GenerationRequest> Requests(int vocab) {
  std::vector<GenerationRequest> all;
  GenerationRequest greedy = Greedy(Ids(70, 1, vocab), 12);
  greedy.attention = AttentionSpec{"quest", {{"token_budget", "32"}, {"dense_layers", "1"}}};
  all.push_back(greedy);
  GenerationRequest drawn = Greedy(Ids(9, 2, vocab), 10);
  drawn.sampling.temperature = 0.8f;
  drawn.sampling.top_k = 40;
  drawn.sampling.seed = 5;
  drawn.logprobs = 3;
  drawn.prompt_logprobs = 2;
  all.push_back(drawn);
  GenerationRequest flat = Greedy(Ids(5, 3, vocab), 10);
  flat.sampling.temperature = 3.0f;  // hundreds of candidates reach 0.99 of the weight
  flat.sampling.top_p = 0.99f;
  flat.sampling.seed = 6;
  flat.sampling.n = 2;
  flat.logprobs = 0;
  all.push_back(flat);
  GenerationRequest edited = Greedy(Ids(12, 4, vocab), 10);
  edited.sampling.repetition_penalty = 1.3f;
  edited.sampling.frequency_penalty = 0.2f;
  edited.sampling.logit_bias = {{3, -5.0f}, {vocab - 1, 2.0f}};
  edited.logprobs = 1;
  all.push_back(edited);
  GenerationRequest forced = Greedy(Ids(6, 5, vocab), 4);
  forced.forced = {vocab - 1, 0, vocab / 2, std::min(7, vocab - 1)};
  forced.logprobs = 2;
  all.push_back(forced);
  GenerationRequest wider = Greedy(Ids(90, 6, vocab), 8);
  wider.attention = AttentionSpec{"quest", {{"token_budget", "56"}, {"dense_layers", "0"}}};
  all.push_back(wider);
  return all;
}

void ExpectClose(const TokenLogprobs& a, const TokenLogprobs& b) {
  EXPECT_EQ(a.chosen.id, b.chosen.id);
  EXPECT_NEAR(a.chosen.logprob, b.chosen.logprob, 1e-4);
  ASSERT_EQ(a.top.size(), b.top.size());
  for (size_t i = 0; i < a.top.size(); ++i) {
    EXPECT_EQ(a.top[i].id, b.top[i].id);
    EXPECT_NEAR(a.top[i].logprob, b.top[i].logprob, 1e-4);
  }
}

// Every sequence of the requests, run at once.
std::vector<Output> RunAll(Engine& engine, const std::vector<GenerationRequest>& requests) {
  Collector collector;
  std::vector<std::string> ids;
  for (const GenerationRequest& request : requests) {
    auto id = engine.Submit(request, collector.callback());
    EXPECT_TRUE(id.ok()) << id.status().ToString();
    ids.push_back(id.ok() ? *id : "");
  }
  EXPECT_TRUE(engine.Run().ok());
  std::vector<Output> outputs;
  for (size_t i = 0; i < ids.size(); ++i) {
    for (int s = 0; s < requests[i].sampling.n; ++s) outputs.push_back(collector.at(ids[i], s));
  }
  return outputs;
}

void ExpectSameOutputs(const std::vector<Output>& many, const std::vector<Output>& one) {
  ASSERT_EQ(many.size(), one.size());
  for (size_t i = 0; i < one.size(); ++i) {
    SCOPED_TRACE("sequence " + std::to_string(i));
    EXPECT_TRUE(many[i].last.status.ok()) << many[i].last.status.ToString();
    EXPECT_EQ(many[i].ids, one[i].ids);
    EXPECT_EQ(many[i].last.attention.pages_read, one[i].last.attention.pages_read);
    EXPECT_EQ(many[i].last.attention.pages_total, one[i].last.attention.pages_total);
    ASSERT_EQ(many[i].logprobs.size(), one[i].logprobs.size());
    for (size_t t = 0; t < one[i].logprobs.size(); ++t) ExpectClose(many[i].logprobs[t], one[i].logprobs[t]);
    ASSERT_EQ(many[i].prompt_logprobs.size(), one[i].prompt_logprobs.size());
    for (size_t t = 0; t < one[i].prompt_logprobs.size(); ++t) {
      ASSERT_EQ(many[i].prompt_logprobs[t].has_value(), one[i].prompt_logprobs[t].has_value());
      if (one[i].prompt_logprobs[t]) ExpectClose(*many[i].prompt_logprobs[t], *one[i].prompt_logprobs[t]);
    }
  }
}

TEST_F(GroupTest, GivesTheOutputsOfOneRankOnAnyNumberOfRanks) {
  const auto requests = Requests(701);
  auto alone = MakeEngine(Gqa());
  ASSERT_NE(alone, nullptr);
  const auto one = RunAll(*alone, requests);
  ASSERT_EQ(one.size(), 7u);
  EXPECT_GT(one[0].last.attention.pages_total, one[0].last.attention.pages_read);  // quest chose
  // Of ten, two have no heads.
  for (const int size : {2, 3, 4, 5, 8, 10}) {
    SCOPED_TRACE(std::to_string(size) + " ranks");
    TestRanks ranks(size);
    auto engine = MakeEngine(ranks.Options(Gqa()));
    ASSERT_NE(engine, nullptr);
    ExpectSameOutputs(RunAll(*engine, requests), one);
    const EngineStats many = engine->Stats(), single = alone->Stats();
    EXPECT_EQ(many.generation_tokens, single.generation_tokens);
    EXPECT_EQ(many.attention.pages_read, single.attention.pages_read);
    EXPECT_EQ(many.attention.pages_total, single.attention.pages_total);
    EXPECT_EQ(many.attention.bytes_read, single.attention.bytes_read);
    EXPECT_EQ(many.attention.bytes_total, single.attention.bytes_total);
    engine.reset();
    for (const Status& end : ranks.Release()) EXPECT_TRUE(end.ok()) << end.ToString();
  }
}

// What a step sends, by the kind of step.
TEST_F(GroupTest, AStepIsOneBroadcastTwoSumsALayerAndOneGather) {
  // 2 KV heads, 3 layers, the first dense
  for (const auto& [size, sparse_gathers] : {std::pair{2, 0}, {4, 2}, {9, 2}}) {
    SCOPED_TRACE(std::to_string(size) + " ranks");
    TestRanks ranks(size);
    auto engine = MakeEngine(ranks.Options(Gqa()));
    ASSERT_NE(engine, nullptr);
    const CollectiveStats loaded = engine->Stats().collectives;
    GenerationRequest quest = Greedy(Ids(70, 1), 6);
    quest.attention = AttentionSpec{"quest", {{"token_budget", "32"}, {"dense_layers", "1"}}};
    quest.sampling.temperature = 0.7f;
    quest.sampling.top_k = 50;
    quest.sampling.seed = 3;
    Collector collector;
    ASSERT_TRUE(engine->Submit(quest, collector.callback()).ok());
    ASSERT_TRUE(engine->Submit(Greedy(Ids(8, 2), 6), collector.callback()).ok());
    CollectiveStats before = loaded;
    int steps = 0;
    while (engine->Stats().generation_tokens < 12) {
      ASSERT_TRUE(*engine->Step());
      const CollectiveStats after = engine->Stats().collectives;
      EXPECT_EQ(after.broadcasts - before.broadcasts, 1);
      EXPECT_EQ(after.all_reduces - before.all_reduces, 1 + 2 * 3);  // the embedding's, and two a layer
      EXPECT_EQ(after.all_gathers - before.all_gathers, 1 + (steps == 0 ? 0 : sparse_gathers));
      EXPECT_EQ(after.others, before.others);
      before = after;
      ++steps;
    }
    EXPECT_EQ(steps, 6);
    const EngineStats stats = engine->Stats();
    EXPECT_GT(stats.step_broadcast_seconds, 0);
    EXPECT_GT(stats.collectives.all_reduce_seconds, 0);
    // The plan of long prompts takes a second broadcast; a step in the middle of a prompt has no logits to gather, and
    // no sums in its last layer.
    ASSERT_TRUE(engine->Run().ok());
    before = engine->Stats().collectives;
    ASSERT_TRUE(engine->Submit(Greedy(Ids(420, 9), 1), collector.callback()).ok());
    ASSERT_TRUE(engine->Submit(Greedy(Ids(480, 9), 1), collector.callback()).ok());
    ASSERT_TRUE(engine->Submit(Greedy(Ids(490, 9), 1), collector.callback()).ok());
    ASSERT_TRUE(*engine->Step());  // 512 rows: the whole of the first, a part of the second
    CollectiveStats after = engine->Stats().collectives;
    EXPECT_EQ(after.broadcasts - before.broadcasts, 2);
    EXPECT_EQ(after.all_gathers - before.all_gathers, 1);
    EXPECT_EQ(after.all_reduces - before.all_reduces, 7);
    EXPECT_TRUE(engine->Run().ok());
  }
}

// Counted by query head, so ranks that share a KV head count each head once.
TEST_F(GroupTest, WhatSelectionsMayLeaveOutIsBoundedAlikeOnAnyNumberOfRanks) {
  const auto run = [](EngineOptions options, bool bound, const char* policy) {
    options.missing_mass_bound = bound;
    options.attention = {*AttentionSpec::Parse(policy), {"quest", {{"token_budget", "48"}}}};  // which keeps page metadata
    auto engine = MakeEngine(options);
    GenerationRequest request = Greedy(Ids(90, 1), 6);
    Collector collector;
    EXPECT_TRUE(engine->Submit(request, collector.callback()).ok());
    AttentionReads steps;
    while (true) {
      const AttentionReads before = engine->Stats().attention;
      const auto worked = engine->Step();
      EXPECT_TRUE(worked.ok()) << worked.status().ToString();
      if (!worked.ok() || !*worked) break;
      const AttentionReads step = engine->Stats().attention - before;
      if (step.bounds > 0) {
        EXPECT_GE(step.missing_mass_bound(), 0.0);
        EXPECT_LE(step.missing_mass_bound(), 1.0);
      }
      steps += step;
    }
    return std::pair(steps, engine->config());
  };
  const char* const policy = "quest:token_budget=48:dense_layers=1";
  const auto [one, config] = run(Gqa(), true, policy);
  EXPECT_EQ(one.bounds, 5 * (config.layers - 1) * config.q_heads);  // the first token is the prompt's
  EXPECT_GT(one.missing_mass_bound(), 0);
  EXPECT_LT(one.missing_mass_bound(), 1);
  EXPECT_EQ(run(Gqa(), false, policy).first.bounds, 0);
  EXPECT_EQ(run(Gqa(), true, "dense").first.bounds, 0);
  for (const char* other : {"sparq:token_budget=48:dense_layers=1", "streaming:token_budget=48:dense_layers=1"}) {
    EXPECT_EQ(run(Gqa(), true, other).first.bounds, 0) << other;  // they don't choose by page metadata
  }
  for (const int size : {2, 3, 4, 9}) {
    TestRanks ranks(size);
    const AttentionReads many = run(ranks.Options(Gqa()), true, policy).first;
    EXPECT_EQ(many.bounds, one.bounds) << size;
    EXPECT_NEAR(many.missing_mass_bound(), one.missing_mass_bound(), 1e-5) << size;
  }
}

TEST_F(GroupTest, AStepInTheMiddleOfAPromptSendsNoCandidates) {
  TestRanks ranks(2);
  EngineOptions options = Gqa();
  options.max_num_batched_tokens = 64;
  auto engine = MakeEngine(ranks.Options(options));
  ASSERT_NE(engine, nullptr);
  Collector collector;
  ASSERT_TRUE(engine->Submit(Greedy(Ids(100, 9), 1), collector.callback()).ok());
  const CollectiveStats before = engine->Stats().collectives;
  ASSERT_TRUE(*engine->Step());
  const CollectiveStats after = engine->Stats().collectives;
  EXPECT_EQ(after.all_gathers, before.all_gathers);
  EXPECT_EQ(after.all_reduces - before.all_reduces, 5);  // the last layer ends with its cache
  EXPECT_TRUE(engine->Run().ok());
}

TEST_F(GroupTest, RandomCachesHoldTheSameAtAnyNumberOfRanks) {
  const AttentionSpec quest{"quest", {{"token_budget", "32"}, {"dense_layers", "1"}}};
  const auto run = [&](Engine& engine) {
    Collector collector;
    auto id = engine.SubmitRandomCache(200, 8, 42, quest, collector.callback());
    EXPECT_TRUE(id.ok() && engine.Run().ok());
    return collector.at(*id);
  };
  auto alone = MakeEngine(Gqa());
  const Output one = run(*alone);
  for (const int size : {2, 3, 9}) {
    TestRanks ranks(size);
    auto engine = MakeEngine(ranks.Options(Gqa()));
    const Output many = run(*engine);
    EXPECT_EQ(many.ids, one.ids);
    EXPECT_EQ(many.last.attention.pages_read, one.last.attention.pages_read);
  }
}

TEST_F(GroupTest, BatchInvariantModeGivesTheBitsOfARequestAlone) {
  TestRanks ranks(3);
  EngineOptions options = Gqa();
  options.batch_invariant = true;
  auto engine = MakeEngine(ranks.Options(options));
  ASSERT_NE(engine, nullptr);
  GenerationRequest request = Greedy(Ids(50, 8), 10);
  request.logprobs = 2;
  request.attention = AttentionSpec{"quest", {{"token_budget", "32"}, {"dense_layers", "1"}}};
  const Output alone = RunOne(*engine, request);
  std::vector<GenerationRequest> crowd = Requests(701);
  crowd.push_back(request);
  const Output among = RunAll(*engine, crowd).back();
  EXPECT_EQ(among.ids, alone.ids);
  ASSERT_EQ(among.logprobs.size(), alone.logprobs.size());
  for (size_t i = 0; i < alone.logprobs.size(); ++i) {
    EXPECT_EQ(among.logprobs[i].chosen.logprob, alone.logprobs[i].chosen.logprob);
  }
}

TEST_F(GroupTest, SequencesAreMovedOutAndBackWhenTheCacheIsSmall) {
  EngineOptions options = Gqa();
  options.max_model_len = 128;
  options.kv_cache_bytes = 0;
  auto alone = MakeEngine(options);
  ASSERT_NE(alone, nullptr);
  std::vector<GenerationRequest> requests;
  for (uint32_t i = 0; i < 4; ++i) requests.push_back(Greedy(Ids(30, 50 + i), 60));
  const auto one = RunAll(*alone, requests);
  // Room for little more than two sequences: a page is 3 layers × 1 KV head × 4 tokens × 2 × 8 channels × 4 bytes a
  // rank, but on the ninth.
  options.kv_cache_bytes = 50 * 3 * 4 * 2 * 8 * 4 * 2;
  std::vector<int64_t> pages;
  for (const int size : {2, 9}) {
    TestRanks ranks(size);
    auto engine = MakeEngine(ranks.Options(options));
    ASSERT_NE(engine, nullptr);
    const auto many = RunAll(*engine, requests);
    EXPECT_GT(engine->Stats().preemptions, 0);
    for (size_t i = 0; i < one.size(); ++i) EXPECT_EQ(many[i].ids, one[i].ids);
    EXPECT_EQ(engine->Stats().pages_free, engine->Stats().pages_total);
    pages.push_back(engine->Stats().pages_total);
  }
  EXPECT_EQ(pages[1], pages[0]);
}

// The memory of a rank with one KV head holds twice the pages of a rank with two; all take the least.
TEST_F(GroupTest, CapacityIsThatOfTheRankWithTheLeastRoom) {
  EngineOptions options = ModelOptions("retriever-2m");  // 6 query and 3 KV heads: 2 + 1 on two ranks
  options.kv_cache_bytes = 4 << 20;
  TestRanks ranks(2);
  auto engine = MakeEngine(ranks.Options(options));
  ASSERT_NE(engine, nullptr);
  const auto infos = engine->Ranks();
  ASSERT_EQ(infos.size(), 2u);
  EXPECT_EQ(infos[0].memory.kv_cache, 2 * infos[1].memory.kv_cache);
  EXPECT_GT(infos[0].memory.kv_cache, 3u << 20);
  EXPECT_EQ(infos[0].host, infos[1].host);
  EXPECT_EQ(infos[1].threads, 1);
}

TEST_F(GroupTest, EachRankReadsItsSlicesOnly) {
  for (const char* model : {"stories260K", "retriever-2m", "golden/qwen2"}) {
    EngineOptions options = ModelOptions(model);
    options.load_tokenizer = false;
    auto whole = MakeEngine(options);
    ASSERT_NE(whole, nullptr);
    const int64_t all = whole->Ranks()[0].weight_bytes_read;
    const auto checkpoint = OpenCheckpoint(DataPath(model));
    ASSERT_TRUE(checkpoint.ok());
    for (const int size : {2, 3, 9}) {
      SCOPED_TRACE(std::string(model) + " on " + std::to_string(size) + " ranks");
      TestRanks ranks(size);
      auto engine = MakeEngine(ranks.Options(options));
      ASSERT_NE(engine, nullptr);
      int64_t sum = 0;
      for (const RankInfo& info : engine->Ranks()) {
        const auto plan = ShardPlan::Create(NumbersOf(checkpoint->config), size, info.rank);
        ASSERT_TRUE(plan.ok());
        EXPECT_EQ(info.weight_bytes_read, BytesToRead(*checkpoint, *plan));
        EXPECT_LT(info.weight_bytes_read, all * 3 / 4);
        sum += info.weight_bytes_read;
      }
      EXPECT_GE(sum, all);
      EXPECT_LT(sum,
                all * (size < 9 ? 5 : 8) / 4);  // norms, and KV heads that several ranks hold, are read more than once
    }
  }
}

TEST_F(GroupTest, RanksShareTheProcessorsWhenNobodySaysHowMany) {
  EngineOptions options = Gqa();
  options.threads = 0;
  const int processors = ThreadPool(0).threads();
  TestRanks ranks(3);
  auto engine = MakeEngine(ranks.Options(options));
  ASSERT_NE(engine, nullptr);
  for (const RankInfo& info : engine->Ranks()) EXPECT_EQ(info.threads, std::max(1, processors / 3));
}

TEST_F(GroupTest, ProgressMarksTellPhasesAndMoveWithEachLayer) {
  TestRanks ranks(2);
  auto engine = MakeEngine(ranks.Options(Gqa()));
  ASSERT_NE(engine, nullptr);
  const uint64_t loaded[] = {ranks.mark(0).count(), ranks.mark(1).count()};
  for (const uint64_t count : loaded) EXPECT_GT(count, 3u * 6);  // a tensor is a step forward
  EXPECT_EQ(ranks.mark(0).phase(), Phase::kIdle);
  RunOne(*engine, Greedy(Ids(5, 3), 4));
  for (int rank = 0; rank < 2; ++rank) EXPECT_GE(ranks.mark(rank).count() - loaded[rank], 4u * 3);
  EXPECT_EQ(ranks.mark(0).phase(), Phase::kIdle);
  engine.reset();
  ranks.Release();
  EXPECT_EQ(ranks.mark(1).phase(), Phase::kStop);
}

TEST_F(GroupTest, EnginesMayFollowOneAnotherAndWhatFailsLeavesTheGroupWhole) {
  TestRanks ranks(2);
  EngineOptions missing = Gqa();
  missing.model = DataPath("nothing");
  auto none = Engine::Create(ranks.Options(missing));
  EXPECT_EQ(none.status().code(), StatusCode::kNotFound);
  EXPECT_EQ(none.status().message().find("rank"), std::string::npos) << none.status().ToString();  // all say the same
  EngineOptions text = Gqa();
  text.load_tokenizer = true;
  text.load_format = "auto";  // the folder has neither weights nor a tokenizer
  EXPECT_FALSE(Engine::Create(ranks.Options(text)).ok());
  EngineOptions wide = Gqa();
  wide.attention = {{"quest", {{"token_budget", "1"}}}};
  EXPECT_EQ(Engine::Create(ranks.Options(wide)).status().code(), StatusCode::kInvalidArgument);
  EngineOptions wrong = Gqa();
  wrong.page_size = 0;
  EXPECT_EQ(Engine::Create(ranks.Options(wrong)).status().code(), StatusCode::kInvalidArgument);
  for (int i = 0; i < 2; ++i) {
    auto engine = MakeEngine(ranks.Options(Gqa()));
    ASSERT_NE(engine, nullptr);
    EXPECT_EQ(RunOne(*engine, Greedy({1, 2, 3}, 4)).ids.size(), 4u);
  }
  for (const Status& end : ranks.Release()) EXPECT_TRUE(end.ok()) << end.ToString();
}

TEST_F(GroupTest, ARankWithoutHeadsHoldsItsOtherPartsAndNoCache) {
  EngineOptions options = Gqa();
  options.attention.push_back({"h2o", {{"token_budget", "32"}}});
  options.attention.push_back({"tova", {{"token_budget", "32"}, {"evict", "true"}}});
  options.kv_cache_bytes = 0;  // enough for all at full length
  auto alone = MakeEngine(options);
  ASSERT_NE(alone, nullptr);
  TestRanks ranks(9);
  auto engine = MakeEngine(ranks.Options(options));
  ASSERT_NE(engine, nullptr);
  EXPECT_EQ(engine->Stats().pages_total, alone->Stats().pages_total);
  const auto infos = engine->Ranks();
  for (int rank = 0; rank < 9; ++rank) {
    const auto predicted = PredictMemory(options, 9, rank);
    ASSERT_TRUE(predicted.ok()) << predicted.status().ToString();
    const MemoryBytes& memory = infos[static_cast<size_t>(rank)].memory;
    EXPECT_EQ(memory.weights, predicted->weights);
    EXPECT_EQ(memory.kv_cache, predicted->kv_cache);
    EXPECT_EQ(memory.history, predicted->history);
    for (const size_t bytes : {memory.kv_cache, memory.kv_metadata, memory.history}) EXPECT_EQ(bytes > 0, rank < 8);
  }
  // Its pages are as many as the others', beyond all numbers that ids have, too.
  options.page_size = 1;
  options.max_num_seqs = options.max_num_batched_tokens = 1 << 23;
  EXPECT_TRUE(PredictMemory(options, 9, 8).ok());
  // A ninth of 130 feed-forward columns and of 701 tokens twice, and the norms.
  EXPECT_EQ(infos[8].memory.weights, (3u * 3 * 14 * 64 + 2 * 77 * 64 + 7 * 64) * 4);
}

// A prompt whose attention mass is summed in several lots, for they have a bound in floats: 1200 rows of 1200 pages.
TEST_F(GroupTest, ARankWithoutHeadsSumsLongPromptsInTheOthersLots) {
  const ConfigFolder folder("prompts_in_lots",
                            {{"\"num_attention_heads\": 8", "\"num_attention_heads\": 2"},
                             {"\"max_position_embeddings\": 512", "\"max_position_embeddings\": 1280"}});
  EngineOptions options = GqaOptions({{"h2o", {{"token_budget", "64"}, {"dense_layers", "1"}}}});
  options.model = folder.path();
  options.page_size = 1;
  options.max_num_seqs = 1;
  options.max_num_batched_tokens = 1280;
  const GenerationRequest request = Greedy(Ids(1200, 2), 3);
  auto alone = MakeEngine(options);
  ASSERT_NE(alone, nullptr);
  const Output one = RunOne(*alone, request);
  TestRanks ranks(3);
  auto engine = MakeEngine(ranks.Options(options));
  ASSERT_NE(engine, nullptr);
  const CollectiveStats before = engine->Stats().collectives;
  const Output many = RunOne(*engine, request);
  EXPECT_EQ(many.ids, one.ids);
  EXPECT_EQ(many.last.attention.pages_read, one.last.attention.pages_read);
  // The candidates of three steps, and in two layers two lots of the prompt and two rows.
  EXPECT_EQ(engine->Stats().collectives.all_gathers - before.all_gathers, 3 + 2 * (2 + 2));
}

// Two query heads on one KV head, three feed-forward columns and five tokens.
TEST_F(GroupTest, AModelSmallerThanItsGroupGivesTheOutputsOfOneRank) {
  const ConfigFolder folder("smaller_than_its_group", {{"\"num_attention_heads\": 8", "\"num_attention_heads\": 2"},
                                                       {"\"num_key_value_heads\": 2", "\"num_key_value_heads\": 1"},
                                                       {"\"intermediate_size\": 130", "\"intermediate_size\": 3"},
                                                       {"\"vocab_size\": 701", "\"vocab_size\": 5"}});
  EngineOptions options = Gqa();
  options.model = folder.path();
  const auto requests = Requests(5);
  auto alone = MakeEngine(options);
  ASSERT_NE(alone, nullptr);
  const auto one = RunAll(*alone, requests);
  for (const int size : {2, 4, 8}) {
    SCOPED_TRACE(std::to_string(size) + " ranks");
    TestRanks ranks(size);
    auto engine = MakeEngine(ranks.Options(options));
    ASSERT_NE(engine, nullptr);
    ExpectSameOutputs(RunAll(*engine, requests), one);
    engine.reset();
    for (const Status& end : ranks.Release()) EXPECT_TRUE(end.ok()) << end.ToString();
  }
}

TEST_F(GroupTest, AnEngineIsMadeOnRankZeroOnly) {
  auto comms = MakeThreadCommunicators(2);
  EngineOptions options = Gqa();
  options.comm = comms[1].get();
  EXPECT_EQ(Engine::Create(options).status().code(), StatusCode::kFailedPrecondition);
}

// A communicator whose sums fail from some call on, as a device of one rank might.
class FailingCommunicator final : public Communicator {
 public:
  FailingCommunicator(Communicator* inner, int good_sums) : inner_(inner), left_(good_sums) {}
  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  Status AllReduce(TensorView data, Stream stream) override {
    if (left_-- <= 0) return ResourceExhausted("the device is out of memory");
    return inner_->AllReduce(data, stream);
  }
  Status AllGather(TensorView send, TensorView recv, Stream s) override { return inner_->AllGather(send, recv, s); }
  Status AllGatherV(TensorView send, TensorView recv, std::span<const int64_t> counts, Stream s) override {
    return inner_->AllGatherV(send, recv, counts, s);
  }
  Status ReduceScatter(TensorView send, TensorView recv, Stream s) override {
    return inner_->ReduceScatter(send, recv, s);
  }
  Status Broadcast(TensorView data, int root, Stream s) override { return inner_->Broadcast(data, root, s); }
  Status Send(TensorView data, int to, Stream s) override { return inner_->Send(data, to, s); }
  Status Recv(TensorView data, int from, Stream s) override { return inner_->Recv(data, from, s); }
  Status Barrier() override { return inner_->Barrier(); }
  void Abort(const Status& why) override { inner_->Abort(why); }

 private:
  Communicator* inner_;
  int left_;
};

TEST_F(GroupTest, ARankThatFailsInAStepEndsTheGroupByName) {
  auto comms = MakeThreadCommunicators(3);
  std::vector<Status> ends(3);
  std::vector<std::thread> threads;
  for (int rank = 1; rank < 3; ++rank) {
    threads.emplace_back([&, rank] {
      FailingCommunicator comm(comms[rank].get(), rank == 2 ? 40 : 1 << 30);
      ends[rank] = FollowLeader({.comm = &comm});
    });
  }
  EngineOptions options = Gqa();
  options.comm = comms[0].get();
  {
    auto engine = MakeEngine(options);
    ASSERT_NE(engine, nullptr);
    Collector collector;
    auto running = engine->Submit(Greedy(Ids(5, 3), 100), collector.callback());
    ASSERT_TRUE(running.ok());
    Status lost;
    for (int i = 0; i < 100 && lost.ok(); ++i) lost = engine->Step().status();
    EXPECT_EQ(lost.code(), StatusCode::kResourceExhausted);
    for (const char* part : {"3 ranks", "rank 2", "out of memory"}) {
      EXPECT_NE(lost.message().find(part), std::string::npos) << lost.ToString();
    }
    EXPECT_TRUE(collector.at(*running).last.finished);
    EXPECT_EQ(collector.at(*running).last.status.code(), StatusCode::kResourceExhausted);
    EXPECT_GT(collector.at(*running).ids.size(), 2u);
    // What comes now is refused in the same way, and is told so.
    auto late = engine->Submit(Greedy(Ids(5, 4), 3), collector.callback());
    ASSERT_TRUE(late.ok());
    EXPECT_EQ(engine->Run().code(), StatusCode::kResourceExhausted);
    EXPECT_TRUE(collector.at(*late).last.finished);
  }
  EXPECT_FALSE(ReleaseFollowers(comms[0].get()).ok());
  for (std::thread& thread : threads) thread.join();
  EXPECT_NE(ends[1].message().find("rank 2"), std::string::npos) << ends[1].ToString();
  EXPECT_FALSE(ends[2].ok());
}

// Whatever its size: and a plan like the one before it in one broadcast.
TEST(GroupChannel, EveryMessageArrivesWhateverCameBefore) {
  const std::pair<GroupMessage, size_t> messages[] = {
      {GroupMessage::kOpen, 300},       {GroupMessage::kPlan, 100},     {GroupMessage::kPlan, 4080},  {GroupMessage::kPlan, 4081},
      {GroupMessage::kPlan, 9000},      {GroupMessage::kPlan, 9000},    {GroupMessage::kPlan, 12000}, {GroupMessage::kPlan, 65520},
      {GroupMessage::kPlan, 65520},     {GroupMessage::kPlan, 65521},   {GroupMessage::kPlan, 1 << 20}, {GroupMessage::kPlan, 0},
      {GroupMessage::kPlan, 9000},      {GroupMessage::kClose, 0},      {GroupMessage::kOpen, 6000},  {GroupMessage::kRelease, 0}};
  const int broadcasts[] = {1, 1, 1, 2, 2, 1, 1, 2, 1, 2, 2, 1, 2, 1, 2, 1};
  auto comms = MakeThreadCommunicators(2);
  const auto bytes_of = [](size_t n, size_t seed) {
    std::vector<uint8_t> bytes(n);
    for (size_t i = 0; i < n; ++i) bytes[i] = static_cast<uint8_t>(i * 7 + i / 256 + seed);
    return bytes;
  };
  std::thread follower([&] {
    GroupChannel channel(comms[1].get());
    std::vector<uint8_t> payload;
    for (size_t i = 0; i < std::size(messages); ++i) {
      const auto got = channel.Receive(&payload);
      ASSERT_TRUE(got.ok()) << got.status().ToString();
      EXPECT_EQ(*got, messages[i].first) << i;
      EXPECT_EQ(payload, bytes_of(messages[i].second, i)) << i;
    }
  });
  CountedCommunicator counting(comms[0].get());
  std::unique_ptr<GroupChannel> channel;
  for (size_t i = 0; i < std::size(messages); ++i) {
    // Rank 0 opens and releases by channels of their own.
    if (channel == nullptr || messages[i].first == GroupMessage::kOpen || messages[i].first == GroupMessage::kRelease) {
      channel = std::make_unique<GroupChannel>(&counting);
    }
    const int64_t before = counting.stats().broadcasts;
    EXPECT_TRUE(channel->Send(messages[i].first, bytes_of(messages[i].second, i)).ok());
    EXPECT_EQ(counting.stats().broadcasts - before, broadcasts[i]) << i;
  }
  follower.join();
}

TEST_F(GroupTest, AFollowerThatIsToldNonsenseEndsTheGroup) {
  for (const bool header : {true, false}) {
    auto comms = MakeThreadCommunicators(2);
    Status end;
    std::thread follower([&] { end = FollowLeader({.comm = comms[1].get()}); });
    if (header) {
      std::vector<uint8_t> bytes(GroupChannel::kFirstBytes, 0xab);
      EXPECT_TRUE(comms[0]->Broadcast({bytes.data(), DType::kU8, {GroupChannel::kFirstBytes}, {}}, 0).ok());
    } else {
      EXPECT_TRUE(GroupChannel(comms[0].get()).Send(GroupMessage::kPlan).ok());  // no engine is open
    }
    follower.join();
    EXPECT_EQ(end.code(), StatusCode::kFailedPrecondition) << end.ToString();
    EXPECT_NE(end.message().find("rank 1"), std::string::npos) << end.ToString();
    EXPECT_EQ(comms[0]->Barrier().code(), StatusCode::kFailedPrecondition);
  }
}

TEST(GroupOptionsMessage, KeepsEveryOptionAndRefusesCutBytes) {
  EngineOptions o;
  o.model = "a/model";
  o.load_format = "dummy";
  o.dtype = "float16";
  o.kv_cache_dtype = "bfloat16";
  o.threads = 3;
  o.max_model_len = int64_t{1} << 33;
  o.max_num_seqs = 5;
  o.max_num_batched_tokens = 77;
  o.page_size = 7;
  o.kv_cache_bytes = 12345678901;
  o.attention = {{}, {"quest", {{"token_budget", "9"}, {"group_reduce", "sum"}}}};
  o.batch_invariant = true;
  o.missing_mass_bound = true;
  o.seed = ~uint64_t{0};
  std::vector<uint8_t> bytes;
  SerializeOptions(o, &bytes);
  const auto back = ParseOptions(bytes);
  ASSERT_TRUE(back.ok()) << back.status().ToString();
  std::vector<uint8_t> again;
  SerializeOptions(*back, &again);
  EXPECT_EQ(again, bytes);
  EXPECT_EQ(back->model, o.model);
  EXPECT_EQ(back->attention, o.attention);
  EXPECT_EQ(back->max_model_len, o.max_model_len);
  EXPECT_EQ(back->kv_cache_bytes, o.kv_cache_bytes);
  EXPECT_EQ(back->page_size, 7);
  EXPECT_TRUE(back->batch_invariant);
  EXPECT_TRUE(back->missing_mass_bound);
  EXPECT_EQ(back->seed, o.seed);
  EXPECT_FALSE(back->load_tokenizer);
  for (size_t n = 0; n < bytes.size(); ++n) EXPECT_FALSE(ParseOptions({bytes.data(), n}).ok()) << n;
  bytes.push_back(0);
  EXPECT_FALSE(ParseOptions(bytes).ok());
}

}  // namespace
}  // namespace quire

// Every family and rope variant of the families table on two to eight ranks against one: greedy tokens,
// log-probabilities of the whole vocabulary, and pages. Most of these models have four query heads on two KV heads or
// one, so that from five ranks on the last have no heads.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>

#include "core/model/families.h"
#include "core/model/weight_slices.h"
#include "tests/core/engine/group_fixture.h"
#include "tests/core/engine/group_run.h"

namespace quire {
namespace {

constexpr int kPrompt = 48, kTokens = 10;

std::vector<AttentionSpec> Specs() {
  std::vector<AttentionSpec> specs;
  for (const char* spec :
       {"dense", "quest:token_budget=24:dense_layers=0", "hierarchical:token_budget=24:dense_layers=0",
        "h2o:token_budget=24:dense_layers=0", "streaming:token_budget=24:dense_layers=0"}) {
    specs.push_back(AttentionSpec::Parse(spec).value());
  }
  return specs;
}

// What one policy gave, and the pages that it chose.
struct PolicyRun {
  GroupOutput output;
  PageChoices pages;
};

// One request for each policy, one after the other. recorders: of all ranks, by rank.
std::vector<PolicyRun> RunPolicies(Engine& engine, const std::vector<std::unique_ptr<PageRecorder>>& recorders) {
  engine.set_selection_observer(recorders[0].get());
  std::vector<PolicyRun> runs;
  for (const AttentionSpec& spec : Specs()) {
    for (const auto& recorder : recorders) recorder->choices.clear();
    GenerationRequest request = Greedy(Ids(kPrompt, 7, engine.config().vocab), kTokens);
    request.attention = spec;
    request.logprobs = engine.config().vocab;
    const Output out = RunOne(engine, request);
    PolicyRun& run = runs.emplace_back();
    run.output = {out.ids, out.logprobs, out.last.attention, out.last.status};
    for (const auto& recorder : recorders) {
      EXPECT_TRUE(Merge(recorder->choices, &run.pages)) << spec.ToString() << ": replicas chose differently";
    }
  }
  return runs;
}

void ExpectSameRun(const AttentionSpec& spec, const PolicyRun& many, const PolicyRun& one, int k_dim) {
  SCOPED_TRACE(spec.ToString());
  EXPECT_EQ(many.output.ids, one.output.ids);
  EXPECT_LE(LargestDifference(many.output, one.output), 1e-4);
  EXPECT_EQ(many.output.attention.pages_read, one.output.attention.pages_read);
  EXPECT_EQ(many.output.attention.pages_total, one.output.attention.pages_total);
  EXPECT_EQ(many.output.attention.bytes_read, one.output.attention.bytes_read);
  EXPECT_EQ(many.output.attention.bytes_total, one.output.attention.bytes_total);
  if (spec.name == "quest") {  // the only one that PageRecorder scores
    const PageComparison pages = ComparePages(one.pages, many.pages, k_dim);
    EXPECT_TRUE(pages.same_keys);
    EXPECT_EQ(pages.unexplained, 0) << pages.ToString();
    EXPECT_LE(pages.moved, 1e-4) << pages.ToString();
    return;
  }
  ASSERT_EQ(many.pages.size(), one.pages.size());
  for (const auto& [key, choice] : one.pages) {
    const auto found = many.pages.find(key);
    ASSERT_NE(found, many.pages.end());
    EXPECT_EQ(found->second.pages, choice.pages) << "layer " << key[0] << ", length " << key[1] << ", head " << key[2];
  }
}

class FamilyGroup : public ::testing::TestWithParam<const char*> {};

TEST_P(FamilyGroup, GivesTheTokensLogprobsAndPagesOfOneRankOnTwoToEightRanks) {
  EngineOptions options = ModelOptions(GetParam());
  options.load_tokenizer = false;
  options.page_size = 4;
  options.max_num_seqs = 1;
  options.max_num_batched_tokens = 30;  // two chunks
  options.max_model_len = 64;
  options.kv_cache_bytes = 4 << 20;
  options.attention = Specs();
  std::vector<PolicyRun> one;
  ModelConfig config;
  {
    auto engine = MakeEngine(options);
    ASSERT_NE(engine, nullptr);
    std::vector<std::unique_ptr<PageRecorder>> recorders;
    recorders.push_back(std::make_unique<PageRecorder>());
    one = RunPolicies(*engine, recorders);
    config = engine->config();
  }
  const bool selects = std::count(config.window.begin(), config.window.end(), 0) > 0;
  for (size_t i = 1; i < one.size(); ++i) EXPECT_EQ(!one[i].pages.empty(), selects);
  int without_heads = 0;
  for (int size = 2; size <= 8; ++size) {
    SCOPED_TRACE(std::to_string(size) + " ranks");
    std::vector<std::unique_ptr<PageRecorder>> recorders;
    std::vector<ShardPlan> plans;
    for (int rank = 0; rank < size; ++rank) {
      plans.push_back(ShardPlan::Create(NumbersOf(config), size, rank).value());
      recorders.push_back(std::make_unique<PageRecorder>(static_cast<int>(plans.back().kv_heads.begin)));
    }
    TestRanks ranks(size, [&](int rank) { return recorders[static_cast<size_t>(rank)].get(); });
    {
      auto engine = MakeEngine(ranks.Options(options));
      ASSERT_NE(engine, nullptr);
      const std::vector<PolicyRun> many = RunPolicies(*engine, recorders);
      for (size_t i = 0; i < one.size(); ++i) ExpectSameRun(options.attention[i], many[i], one[i], config.head_dim);
      for (const RankInfo& info : engine->Ranks()) {
        const bool heads = plans[static_cast<size_t>(info.rank)].has_heads();
        EXPECT_EQ(info.memory.kv_cache > 0, heads);
        EXPECT_EQ(info.memory.kv_metadata > 0, heads);
        without_heads += !heads;
      }
    }
    for (const Status& end : ranks.Release()) EXPECT_TRUE(end.ok()) << end.ToString();
  }
  EXPECT_EQ(without_heads, config.q_heads == 4 ? 1 + 2 + 3 + 4 : config.q_heads == 6 ? 1 + 2 : 0);
}

INSTANTIATE_TEST_SUITE_P(All, FamilyGroup,
                         ::testing::Values("golden/llama", "golden/llama-bias", "golden/llama-dynamic",
                                           "golden/llama-linear", "golden/llama-llama3", "golden/llama-yarn",
                                           "golden/llama-yarn-mscale", "golden/gemma2", "golden/gemma3",
                                           "golden/gemma3-new", "golden/mistral", "golden/qwen2", "golden/qwen2-window",
                                           "golden/qwen3", "golden/smollm2", "gguf/gemma2.gguf", "gguf/gemma3.gguf",
                                           "gguf/llama-llama3.gguf", "gguf/qwen2.gguf", "retriever-2m", "stories260K"),
                         [](const auto& info) {
                           std::string name = info.param;
                           for (char& c : name)
                             if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
                           return name;
                         });

}  // namespace
}  // namespace quire

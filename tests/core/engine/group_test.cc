// An engine on several ranks against the same engine on one: tokens, log-probabilities, counts; what is sent; and how a
// group ends when one of its ranks can't go on. The ranks are threads.
#include "core/engine/group.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "core/engine/engine_impl.h"
#include "core/model/families.h"
#include "core/model/weight_slices.h"
#include "tests/core/engine/group_fixture.h"

namespace quire {
namespace {

// Grouped-query attention with an odd vocabulary, uneven feed-forward columns and 8 query heads on 2 KV heads, so that 3
// ranks share one KV head unevenly and 8 ranks have one query head each.
constexpr const char* kGqaConfig = R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
  "intermediate_size": 130, "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 2,
  "vocab_size": 701, "max_position_embeddings": 512, "rms_norm_eps": 1e-05, "hidden_act": "silu", "bos_token_id": 1,
  "eos_token_id": 2, "tie_word_embeddings": false, "rope_theta": 10000.0, "torch_dtype": "float32"})";

class GroupTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = ::testing::TempDir() + "/group_test.XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
    std::ofstream(folder_ + "/config.json") << kGqaConfig;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  EngineOptions Gqa() const {
    EngineOptions options;
    options.model = folder_;
    options.load_format = "dummy";
    options.load_tokenizer = false;
    options.threads = 1;
    options.dtype = "float32";
    options.max_num_seqs = 4;
    options.kv_cache_bytes = 8 << 20;
    options.page_size = 4;
    options.attention = {{}, {"quest", {{"token_budget", "32"}, {"dense_layers", "1"}}}};
    return options;
  }

  std::string folder_;
};

std::vector<int32_t> Ids(int count, int vocab, uint32_t seed) {
  std::vector<int32_t> ids;
  for (int i = 0; i < count; ++i) {
    seed = seed * 1664525u + 1013904223u;
    ids.push_back(static_cast<int32_t>((seed >> 8) % static_cast<uint32_t>(vocab)));
  }
  return ids;
}

// Requests of every kind at once: greedy and drawn, few and many candidates, penalties, bias, log-probabilities of prompt
// and output, forks, forced tokens, two policies.
std::vector<GenerationRequest> Requests(int vocab) {
  std::vector<GenerationRequest> all;
  GenerationRequest greedy = Greedy(Ids(70, vocab, 1), 12);
  greedy.attention = AttentionSpec{"quest", {{"token_budget", "32"}, {"dense_layers", "1"}}};
  all.push_back(greedy);
  GenerationRequest drawn = Greedy(Ids(9, vocab, 2), 10);
  drawn.sampling.temperature = 0.8f;
  drawn.sampling.top_k = 40;
  drawn.sampling.seed = 5;
  drawn.logprobs = 3;
  drawn.prompt_logprobs = 2;
  all.push_back(drawn);
  GenerationRequest flat = Greedy(Ids(5, vocab, 3), 10);
  flat.sampling.temperature = 3.0f;  // hundreds of candidates reach 0.99 of the weight
  flat.sampling.top_p = 0.99f;
  flat.sampling.seed = 6;
  flat.sampling.n = 2;
  flat.logprobs = 0;
  all.push_back(flat);
  GenerationRequest edited = Greedy(Ids(12, vocab, 4), 10);
  edited.sampling.repetition_penalty = 1.3f;
  edited.sampling.frequency_penalty = 0.2f;
  edited.sampling.logit_bias = {{3, -5.0f}, {vocab - 1, 2.0f}};
  edited.logprobs = 1;
  all.push_back(edited);
  GenerationRequest forced = Greedy(Ids(6, vocab, 5), 4);
  forced.forced = {vocab - 1, 0, vocab / 2, 7};
  forced.logprobs = 2;
  all.push_back(forced);
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
  ASSERT_EQ(one.size(), 6u);
  EXPECT_GT(one[0].last.attention.pages_total, one[0].last.attention.pages_read);  // quest chose
  for (const int size : {2, 3, 4, 5, 8}) {
    SCOPED_TRACE(std::to_string(size) + " ranks");
    TestRanks ranks(size);
    auto engine = MakeEngine(ranks.Options(Gqa()));
    ASSERT_NE(engine, nullptr);
    ExpectSameOutputs(RunAll(*engine, requests), one);
    const EngineStats many = engine->Stats(), single = alone->Stats();
    EXPECT_EQ(many.generation_tokens, single.generation_tokens);
    EXPECT_EQ(many.attention.pages_read, single.attention.pages_read);
    EXPECT_EQ(many.attention.pages_total, single.attention.pages_total);
    engine.reset();
    for (const Status& end : ranks.Release()) EXPECT_TRUE(end.ok()) << end.ToString();
  }
}

}  // namespace
}  // namespace quire

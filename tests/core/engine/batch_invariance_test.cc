// Batch-invariant mode: a request's tokens are the same alone, among others, however its prompt is cut, and after it
// was preempted and recomputed.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/core/engine/engine_fixture.h"

namespace quire {
namespace {

constexpr int kPrompt = 150;
constexpr int kOutputs = 45;

struct Target {
  std::string name;
  GenerationRequest request;
};

std::vector<Target> Targets(const std::vector<AttentionSpec>& attention) {
  std::vector<Target> targets;
  for (const AttentionSpec& spec : attention) {
    for (const bool seeded : {false, true}) {
      Target target;
      target.name = spec.ToString() + (seeded ? " seeded" : " greedy");
      target.request = Greedy(BytePrompt(kPrompt, 40), kOutputs);
      target.request.request_id = target.name;
      target.request.attention = spec;
      target.request.logprobs = 1;
      if (seeded) {
        target.request.sampling.temperature = 0.9f;
        target.request.sampling.top_p = 0.95f;
        target.request.sampling.seed = 17;
        target.request.sampling.frequency_penalty = 0.3f;
      }
      targets.push_back(std::move(target));
    }
  }
  return targets;
}

class BatchInvariance : public ::testing::TestWithParam<const char*> {
 protected:
  EngineOptions Options() const {
    EngineOptions options = ModelOptions("retriever-2m");
    options.dtype = GetParam();
    options.threads = 2;
    options.batch_invariant = true;
    options.load_tokenizer = false;
    options.attention = {{}, {"quest", {{"token_budget", "64"}, {"dense_layers", "0"}}}};
    return options;
  }
  static void ExpectSame(const Output& got, const Output& want, const std::string& what) {
    EXPECT_EQ(got.ids, want.ids) << what;
    ASSERT_EQ(got.logprobs.size(), want.logprobs.size());
    for (size_t i = 0; i < got.logprobs.size(); ++i) {
      ASSERT_EQ(got.logprobs[i].chosen.logprob, want.logprobs[i].chosen.logprob) << what << " bits at token " << i;
    }
    EXPECT_EQ(got.last.attention.pages_read, want.last.attention.pages_read) << what;
  }
};

TEST_P(BatchInvariance, TokensAreEqualAloneMixedChunkedAndAfterAPreemption) {
  const EngineOptions options = Options();
  const std::vector<Target> targets = Targets(options.attention);
  std::vector<Output> alone;
  {
    auto engine = MakeEngine(options);
    ASSERT_NE(engine, nullptr);
    for (const Target& target : targets) alone.push_back(RunOne(*engine, target.request));
    EXPECT_NE(alone[0].ids, alone[1].ids);
    EXPECT_LT(alone[2].last.attention.pages_read, alone[2].last.attention.pages_total);

    // Among eight, of different lengths, kinds and beginnings.
    Collector collector;
    for (size_t i = 0; i < targets.size(); ++i) {
      GenerationRequest other = Greedy(BytePrompt(30 + 61 * static_cast<int>(i), 500), 50);
      other.attention = options.attention[i % 2];
      other.sampling.temperature = i < 2 ? 1.0f : 0.0f;
      ASSERT_TRUE(engine->Submit(other, collector.callback()).ok());
      for (size_t step = 0; step < i; ++step) ASSERT_TRUE(engine->Step().ok());
      ASSERT_TRUE(engine->Submit(targets[i].request, collector.callback()).ok());
    }
    ASSERT_TRUE(engine->Run().ok());
    for (size_t i = 0; i < targets.size(); ++i) {
      ExpectSame(collector.at(targets[i].name), alone[i], targets[i].name + " mixed");
    }
  }
  {
    EngineOptions chunked = options;
    chunked.max_num_batched_tokens = 19;
    chunked.threads = 1;
    auto engine = MakeEngine(chunked);
    ASSERT_NE(engine, nullptr);
    for (size_t i = 0; i < targets.size(); ++i) {
      ExpectSame(RunOne(*engine, targets[i].request), alone[i], targets[i].name + " chunked");
    }
  }
  // A cache in which two sequences can't finish together: the one in front takes the other's pages.
  EngineOptions small = options;
  const bool f32 = std::string(GetParam()) == "float32";
  small.max_num_seqs = 2;
  small.kv_cache_bytes = int64_t{20} * 16 * 4 * 3 * 64 * 2 * (f32 ? 4 : 2);
  auto engine = MakeEngine(small);
  ASSERT_NE(engine, nullptr);
  const int pages = static_cast<int>(engine->Stats().pages_total);
  for (size_t i = 0; i < targets.size(); ++i) {
    Collector collector;
    // Admission leaves one page free: both start at once, and each grows by three.
    const int first = 16 * (pages - 1 - (kPrompt + 16 + 15) / 16 - 1);
    ASSERT_GT(first, 10);
    GenerationRequest other = Greedy(BytePrompt(first, 300), 50);
    other.priority = -1;
    ASSERT_TRUE(engine->Submit(other, collector.callback()).ok());
    ASSERT_TRUE(engine->Submit(targets[i].request, collector.callback()).ok());
    ASSERT_TRUE(engine->Run().ok());
    EXPECT_GT(collector.at(targets[i].name).last.preemptions, 0) << "pages " << pages;
    ExpectSame(collector.at(targets[i].name), alone[i], targets[i].name + " preempted");
  }
  EXPECT_EQ(engine->Stats().pages_free, engine->Stats().pages_total);
}

INSTANTIATE_TEST_SUITE_P(DTypes, BatchInvariance, ::testing::Values("float32", "bfloat16"),
                         [](const auto& info) { return std::string(info.param); });

// Dynamic rope scaling depends on the length: a prompt counts with its own, a decode row with its own.
TEST(BatchInvarianceOfDynamicRope, TokensAreEqualChunkedAndAfterAPreemption) {
  EngineOptions options = ModelOptions("golden/llama-dynamic");  // scaling begins at 32 tokens
  options.batch_invariant = true;
  options.load_tokenizer = false;
  options.max_model_len = 120;
  options.page_size = 4;
  std::vector<int32_t> prompt;
  for (int i = 0; i < 40; ++i) prompt.push_back(3 + i * 7 % 150);
  GenerationRequest request = Greedy(prompt, 40);
  request.request_id = "target";
  auto whole = MakeEngine(options);
  ASSERT_NE(whole, nullptr);
  const Output want = RunOne(*whole, request);
  options.max_num_seqs = 2;
  options.max_num_batched_tokens = 7;
  options.kv_cache_bytes = int64_t{120} * 2 * 2 * 2 * 12 * 4;
  auto engine = MakeEngine(options);
  ASSERT_NE(engine, nullptr);
  Collector collector;
  GenerationRequest other = Greedy({5, 6, 7}, 80);
  other.priority = -1;
  ASSERT_TRUE(engine->Submit(other, collector.callback()).ok());
  ASSERT_TRUE(engine->Submit(request, collector.callback()).ok());
  ASSERT_TRUE(engine->Run().ok());
  EXPECT_GT(collector.at("target").last.preemptions, 0);
  EXPECT_EQ(collector.at("target").ids, want.ids);
}

}  // namespace
}  // namespace quire

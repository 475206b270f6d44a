// Policies that go on behind one prompt (GenerationRequest::branches): each gets what a request of its own would get, with
// the prompt taken in once.
#include <gtest/gtest.h>

#include "tests/core/engine/group_fixture.h"

namespace quire {
namespace {

constexpr int kPrompt = 90;
constexpr int kOutputs = 20;

std::vector<AttentionSpec> Specs(const std::vector<const char*>& texts) {
  std::vector<AttentionSpec> specs;
  for (const char* text : texts) specs.push_back(AttentionSpec::Parse(text).value());
  return specs;
}

EngineOptions Options(const std::vector<AttentionSpec>& specs) {
  EngineOptions options = GqaOptions(specs);
  options.max_model_len = 160;
  options.max_num_seqs = 6;
  options.batch_invariant = true;
  return options;
}

GenerationRequest Request() {
  GenerationRequest request = Greedy(Ids(kPrompt, 1), kOutputs);
  request.logprobs = 1;
  return request;
}

GenerationRequest Branched(GenerationRequest request, const std::vector<AttentionSpec>& specs) {
  request.request_id = "branched";
  request.sampling.n = static_cast<int>(specs.size());
  request.branches = specs;
  return request;
}

std::vector<Output> RunBranched(Engine& engine, const GenerationRequest& request) {
  Collector collector;
  const auto id = engine.Submit(request, collector.callback());
  EXPECT_TRUE(id.ok()) << id.status().ToString();
  EXPECT_TRUE(engine.Run().ok());
  std::vector<Output> outputs;
  for (int i = 0; i < request.sampling.n && id.ok(); ++i) outputs.push_back(collector.at(*id, i));
  return outputs;
}

void ExpectSameReads(const AttentionReads& got, const AttentionReads& want) {
  EXPECT_EQ(got.pages_read, want.pages_read);
  EXPECT_EQ(got.pages_total, want.pages_total);
  EXPECT_EQ(got.bytes_read, want.bytes_read);
  EXPECT_EQ(got.bytes_total, want.bytes_total);
}

// The policies of one test: without history, or with the same.
const std::vector<std::vector<const char*>> kFamilies = {
    {"dense", "quest:dense_layers=0:token_budget=32", "quest:dense_layers=1:token_budget=48:group_reduce=sum",
     "hierarchical:dense_layers=0:token_budget=32", "sparq:dense_layers=0:token_budget=24:channels=8",
     "streaming:dense_layers=0:token_budget=30"},
    {"swa:dense_layers=0:token_budget=40", "swa:dense_layers=0:token_budget=60"},
    {"h2o:dense_layers=0:token_budget=40", "h2o:dense_layers=0:token_budget=64", "h2o:dense_layers=0:token_budget=32"},
    {"hierarchical:dense_layers=0:reuse=4:token_budget=32", "hierarchical:dense_layers=0:reuse=4:token_budget=40"}};

TEST(Branches, EachGetsWhatARequestOfItsOwnWould) {
  for (const auto& family : kFamilies) {
    SCOPED_TRACE(family.front());
    const std::vector<AttentionSpec> specs = Specs(family);
    for (const bool forced : {false, true}) {
      GenerationRequest request = Request();
      if (forced) request.forced = Ids(kOutputs, 7);
      std::vector<Output> want;
      {
        auto engine = MakeEngine(Options(specs));
        ASSERT_NE(engine, nullptr);
        for (const AttentionSpec& spec : specs) {
          request.attention = spec;
          want.push_back(RunOne(*engine, request));
          ASSERT_EQ(want.back().ids.size(), static_cast<size_t>(kOutputs));
        }
        request.attention.reset();
        EXPECT_NE(want.front().logprobs.back().chosen.logprob, want.back().logprobs.back().chosen.logprob);
      }
      for (const int slots : {6, 1}) {  // with one slot each takes in the prompt for itself
        EngineOptions options = Options(specs);
        options.max_num_seqs = slots;
        options.max_num_batched_tokens = slots == 6 ? 512 : 17;
        auto engine = MakeEngine(options);
        ASSERT_NE(engine, nullptr);
        const std::vector<Output> got = RunBranched(*engine, Branched(request, specs));
        ASSERT_EQ(got.size(), want.size());
        for (size_t i = 0; i < want.size(); ++i) {
          SCOPED_TRACE(family[i]);
          EXPECT_TRUE(got[i].last.status.ok()) << got[i].last.status.ToString();
          ExpectSame(got[i], want[i]);
          ExpectSameReads(got[i].last.attention, want[i].last.attention);
        }
        const int64_t prompts = slots == 6 ? 1 : static_cast<int64_t>(specs.size());
        EXPECT_EQ(engine->Stats().prompt_tokens, prompts * kPrompt);
      }
    }
  }
}

TEST(Branches, RanksAgreeOnWhoseBranchIsWhose) {
  const std::vector<AttentionSpec> specs = Specs(kFamilies.front());
  auto alone = MakeEngine(Options(specs));
  ASSERT_NE(alone, nullptr);
  const std::vector<Output> want = RunBranched(*alone, Branched(Request(), specs));
  for (const int size : {2, 3}) {
    TestRanks ranks(size);
    auto engine = MakeEngine(ranks.Options(Options(specs)));
    ASSERT_NE(engine, nullptr);
    const std::vector<Output> got = RunBranched(*engine, Branched(Request(), specs));
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i) {
      EXPECT_EQ(got[i].ids, want[i].ids);
      ExpectSameReads(got[i].last.attention, want[i].last.attention);
    }
  }
}

TEST(Branches, ThoseThatCantShareAPromptAreRefused) {
  const std::vector<AttentionSpec> specs =
      Specs({"dense", "swa:token_budget=40", "tova:token_budget=40:evict=true", "quest:token_budget=32"});
  auto engine = MakeEngine(Options(specs));
  ASSERT_NE(engine, nullptr);
  const auto refusal = [&](const GenerationRequest& request) {
    const auto id = engine->Submit(request, {});
    EXPECT_FALSE(id.ok());
    EXPECT_EQ(id.status().code(), StatusCode::kInvalidArgument);
    return id.status().message();
  };
  EXPECT_NE(refusal(Branched(Request(), Specs({"dense", "swa"}))).find("remembers"), std::string::npos);
  EXPECT_NE(refusal(Branched(Request(), Specs({"swa:dense_layers=0", "swa:dense_layers=1"}))).find("remembers"),
            std::string::npos);
  EXPECT_NE(refusal(Branched(Request(), Specs({"dense", "tova"}))).find("evicts"), std::string::npos);
  EXPECT_NE(refusal(Branched(Request(), Specs({"dense", "h2o"}))).find("not among"), std::string::npos);
  GenerationRequest three = Branched(Request(), Specs({"dense", "quest"}));
  three.sampling.n = 3;
  EXPECT_NE(refusal(three).find("branches"), std::string::npos);
  GenerationRequest forced = Request();
  forced.forced = {1, 2};
  forced.sampling.n = 2;
  EXPECT_NE(refusal(forced).find("forced"), std::string::npos);
}

}  // namespace
}  // namespace quire

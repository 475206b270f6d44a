// Logits against Hugging Face transformers' for every family and rope variant, and greedy ids of two real models
// against independent forward passes.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "core/io/safetensors.h"
#include "tests/core/model/test_model.h"

namespace quire {
namespace {

std::vector<float> ReadAll(const WeightSource& source, const std::string& name) {
  const TensorInfo* info = source.Find(name);
  CHECK(info != nullptr);
  std::vector<float> out(info->rows * info->cols);
  const Status status = source.Read(name, {0, info->rows, 0, info->cols}, DType::kF32, out.data());
  CHECK(status.ok());
  return out;
}

std::vector<int32_t> ToIds(const std::vector<float>& values) { return {values.begin(), values.end()}; }

nlohmann::json ReadJson(const std::string& path) {
  std::ifstream file(path);
  CHECK(file.good());
  return nlohmann::json::parse(file);
}

class Golden : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    folder_ = TestData(std::string("golden/") + GetParam());
    const auto source = TestModel::Value(OpenSafetensors(folder_ + "/golden.safetensors"));
    ids_ = ToIds(ReadAll(*source, "input_ids"));
    logits_ = ReadAll(*source, "logits");
  }
  std::string folder_;
  std::vector<int32_t> ids_;
  std::vector<float> logits_;  // [ids][vocab]
};

TEST_P(Golden, LogitsAreWithin1e4OfTransformers) {
  TestModel model(folder_, {.threads = 2});
  const int n = static_cast<int>(ids_.size());
  for (const int page_size : {3, 16}) {
    const TestCache cache = model.Cache(page_size, n);
    EXPECT_LE(RelativeError(model.Prefill(cache, ids_, n), logits_), 1e-4) << "page size " << page_size;
  }
}

TEST_P(Golden, ChunksOfSevenAndTokenByTokenAgreeWithOneChunk) {
  TestModel model(folder_);
  const int n = static_cast<int>(ids_.size());
  const TestCache whole_cache = model.Cache(16, n), chunked_cache = model.Cache(16, n), token_cache = model.Cache(16, n);
  const std::vector<float> whole = model.Prefill(whole_cache, ids_, n);
  EXPECT_LE(RelativeError(model.Prefill(chunked_cache, ids_, 7), whole), 1e-5);
  std::vector<float> by_token;
  for (int i = 0; i < n; ++i) {
    const std::vector<float> logits = model.Decode(token_cache, ids_[i], i, nullptr, 0, n);
    by_token.insert(by_token.end(), logits.begin(), logits.end());
  }
  EXPECT_LE(RelativeError(by_token, whole), 1e-5);
}

TEST_P(Golden, HalfPrecisionWeightsStayNear) {
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    TestModel model(folder_, {.dtype = dtype});
    const int n = static_cast<int>(ids_.size());
    const TestCache cache = model.Cache(16, n, 1, dtype);
    // The cache's rounding of K and V remains where the checkpoint is in this type already.
    const double error = RelativeError(model.Prefill(cache, ids_, n), logits_);
    EXPECT_LE(error, dtype == DType::kBF16 ? 5e-2 : 1e-2) << DTypeName(dtype);
    EXPECT_GT(error, 0.0);
  }
}

INSTANTIATE_TEST_SUITE_P(Families, Golden,
                         testing::Values("llama", "llama-bias", "llama-dynamic", "llama-linear", "llama-llama3",
                                         "llama-yarn", "llama-yarn-mscale", "gemma2", "gemma3", "gemma3-new", "mistral", "qwen2", "qwen2-window", "qwen3",
                                         "smollm2"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

// What GGUF says in other words: norm weights that are whole, a pattern of windows, no query scalar.
TEST(GoldenGguf, GemmasLogitsAreWithin1e4OfTransformers) {
  for (const char* name : {"gemma2", "gemma3"}) {
    const auto golden = TestModel::Value(OpenSafetensors(TestData(std::string("golden/") + name + "/golden.safetensors")));
    const std::vector<int32_t> ids = ToIds(ReadAll(*golden, "input_ids"));
    TestModel model(TestData(std::string("gguf/") + name + ".gguf"), {.threads = 2});
    const int n = static_cast<int>(ids.size());
    const TestCache cache = model.Cache(16, n);
    EXPECT_LE(RelativeError(model.Prefill(cache, ids, n), ReadAll(*golden, "logits")), 1e-4) << name;
  }
}

// Selection under a soft cap: scores are bounds before the cap, which is monotone, so the pages are the same; and every
// page listed gives what dense gives.
TEST(GoldenSoftCap, DecodingWithEveryPageListedIsDenseAndQuestReadsLess) {
  const auto golden = TestModel::Value(OpenSafetensors(TestData("golden/gemma2/golden.safetensors")));
  const std::vector<int32_t> ids = ToIds(ReadAll(*golden, "input_ids"));
  const int n = static_cast<int>(ids.size());
  TestModel model(TestData("golden/gemma2"));
  const AllPagesPolicy all_pages;
  const auto quest = TestModel::Value(
      MakePolicy(TestModel::Value(AttentionSpec::Parse("quest:token_budget=48:sink_tokens=4:recent_tokens=4:dense_layers=0")), 4));
  const TestCache cache = model.Cache(4, n);
  model.Prefill(cache, {ids.begin(), ids.end() - 1}, n);
  const std::vector<float> dense = model.Decode(cache, ids[n - 1], n - 1);
  EXPECT_EQ(model.Decode(cache, ids[n - 1], n - 1, &all_pages), dense);
  const std::vector<float> sparse = model.Decode(cache, ids[n - 1], n - 1, quest.get());
  EXPECT_LT(model.decoder().last_stats().pages_read, model.decoder().last_stats().pages_total);
  EXPECT_LE(RelativeError(sparse, dense), 0.2);
  EXPECT_GT(RelativeError(sparse, dense), 0.0);
}

class Stories260K : public testing::TestWithParam<int> {};

TEST_P(Stories260K, SixtyGreedyIdsEqualTheReferenceDenseQuestAndWithEveryPageListed) {
  const nlohmann::json reference = ReadJson(TestData("stories260K/greedy_reference.json"));
  const auto prompt = reference["prompt_ids"].get<std::vector<int32_t>>();
  const auto expected = reference["greedy_ids"].get<std::vector<int32_t>>();
  ASSERT_EQ(prompt.size(), 1u);
  ASSERT_EQ(expected.size(), 60u);
  const int page_size = GetParam();
  TestModel model(TestData("stories260K"));
  const AllPagesPolicy all_pages;
  const auto quest =
      TestModel::Value(MakePolicy(TestModel::Value(AttentionSpec::Parse("quest:token_budget=512:dense_layers=0")), page_size));
  for (const AttentionPolicy* policy : {static_cast<const AttentionPolicy*>(nullptr),
                                        static_cast<const AttentionPolicy*>(quest.get()),
                                        static_cast<const AttentionPolicy*>(&all_pages)}) {
    const TestCache cache = model.Cache(page_size, 64);
    EXPECT_EQ(model.Greedy(cache, prompt[0], 0, 60, policy), expected) << (policy ? policy->name() : "dense");
  }
}

INSTANTIATE_TEST_SUITE_P(PageSizes, Stories260K, testing::Values(1, 3, 16, 64));

TEST(Retriever2m, GreedyReferenceIsReproducedDenseWithEveryPageListedAndByQuest) {
  const nlohmann::json reference = ReadJson(TestData("retriever-2m/greedy_reference.json"));
  auto prompt = reference["prompt_ids"].get<std::vector<int32_t>>();
  const auto expected = reference["greedy_ids"].get<std::vector<int32_t>>();
  const int32_t last = prompt.back();
  prompt.pop_back();
  const int past = static_cast<int>(prompt.size()), count = static_cast<int>(expected.size());
  TestModel model(TestData("retriever-2m"), {.threads = 2, .max_rows = 512, .max_length = past + 1 + count});
  const TestCache cache = model.Cache(16, past + 1 + count);
  model.Prefill(cache, prompt, 512);
  EXPECT_EQ(model.Greedy(cache, last, past, count), expected);
  // The same positions again: equal tokens write equal keys, so the cache stays what it is.
  const AllPagesPolicy all_pages;
  EXPECT_EQ(model.Greedy(cache, last, past, count, &all_pages), expected);
  const auto quest =
      TestModel::Value(MakePolicy(TestModel::Value(AttentionSpec::Parse("quest:token_budget=512:dense_layers=0")), 16));
  EXPECT_EQ(model.Greedy(cache, last, past, count, quest.get()), expected);
  EXPECT_LT(model.decoder().last_stats().pages_read, model.decoder().last_stats().pages_total / 2);
}

}  // namespace
}  // namespace quire

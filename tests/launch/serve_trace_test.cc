// Readers of traces, and the requests that are made of them and of nothing.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <limits>
#include <numeric>

#include "launch/serve_trace.h"
#include "launch/serve_workload.h"
#include "tests/launch/program.h"

namespace quire {
namespace {

using namespace launch;

constexpr const char* kAzure =
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 23:59:58.6805900,374,44\r\n"
    "2023-11-17 00:00:01.1805900,396,109\r\n"
    "2023-11-17 00:00:01,879,55\r\n";
constexpr const char* kMooncake =
    "{\"timestamp\": 1000, \"input_length\": 1200, \"output_length\": 500, \"hash_ids\": [0, 1, 2]}\n"
    "{\"timestamp\": 3000, \"input_length\": 1100, \"output_length\": 3, \"hash_ids\": [0, 1, 7]}\n"
    "{\"timestamp\": 5000, \"input_length\": 600, \"output_length\": 10, \"hash_ids\": [0, 9]}\n";

class Trace : public testing::Test {
 protected:
  Result<std::vector<TraceRequest>> Read(const std::string& text, int64_t limit = 100) {
    return ReadTrace(scratch_.Write("trace", text), limit);
  }
  void ExpectRefused(const std::string& text, const std::string& about, const std::string& more = "") {
    const auto trace = Read(text);
    ASSERT_FALSE(trace.ok()) << text;
    EXPECT_NE(trace.status().message().find(about), std::string::npos) << trace.status().message();
    EXPECT_NE(trace.status().message().find(more), std::string::npos) << trace.status().message();
  }
  ScratchFolder scratch_;
};

WorkloadOptions Options() {
  WorkloadOptions options;
  options.vocab = 512;
  options.max_model_len = 4096;
  return options;
}

TEST_F(Trace, OfAzureOverMidnightInTimesOrder) {
  const auto trace = Read(kAzure);
  ASSERT_TRUE(trace.ok()) << trace.status().ToString();
  ASSERT_EQ(trace->size(), 3u);
  EXPECT_EQ((*trace)[0].time_s, 0);
  EXPECT_NEAR((*trace)[1].time_s, 2.31941, 1e-4);  // the last line, which has no fraction
  EXPECT_NEAR((*trace)[2].time_s, 2.5, 1e-4);
  EXPECT_EQ((*trace)[1].input_tokens, 879);
  EXPECT_EQ((*trace)[2].output_tokens, 109);
  EXPECT_TRUE((*trace)[0].blocks.empty());
  EXPECT_EQ(Read(kAzure, 2)->size(), 2u);
}

TEST_F(Trace, OfMooncake) {
  const auto trace = Read(kMooncake);
  ASSERT_TRUE(trace.ok()) << trace.status().ToString();
  ASSERT_EQ(trace->size(), 3u);
  EXPECT_EQ((*trace)[2].time_s, 4);
  EXPECT_EQ((*trace)[1].input_tokens, 1100);
  EXPECT_EQ((*trace)[1].output_tokens, 3);
  EXPECT_EQ((*trace)[1].blocks, (std::vector<int64_t>{0, 1, 7}));
}

// The published ones, where the shared data are at hand.
TEST(PublishedTrace, IsReadWhole) {
  const char* root = std::getenv("QUIRE_SHARED_DATA");
  const std::string folder = (root != nullptr ? std::string(root) : std::string(QUIRE_SOURCE_DIR "/../shared/data")) + "/traces/";
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << folder << " is not there; QUIRE_SHARED_DATA names its parent";
  const auto azure = ReadTrace(folder + "AzureLLMInferenceTrace_conv.csv", 1 << 20);
  ASSERT_TRUE(azure.ok()) << azure.status().ToString();
  EXPECT_EQ(azure->size(), 19366u);
  EXPECT_EQ(azure->front().input_tokens, 374);
  const auto mooncake = ReadTrace(folder + "mooncake_conversation_trace.jsonl", 1 << 20);
  ASSERT_TRUE(mooncake.ok()) << mooncake.status().ToString();
  EXPECT_EQ(mooncake->size(), 12031u);
  EXPECT_EQ(mooncake->front().input_tokens, 6758);
  EXPECT_EQ(mooncake->front().blocks.size(), 14u);
  for (const auto& trace : {*azure, *mooncake}) {
    EXPECT_TRUE(std::is_sorted(trace.begin(), trace.end(), [](const auto& a, const auto& b) { return a.time_s < b.time_s; }));
  }
}

TEST_F(Trace, BadLinesAreNamed) {
  const std::string header = "TIMESTAMP,ContextTokens,GeneratedTokens\n", good = "2023-11-16 18:15:46.68,374,44\n";
  ExpectRefused("", "no requests");
  ExpectRefused(header, "no requests");
  ExpectRefused("time,in,out\n1,2,3\n", "no trace", "Azure");
  ExpectRefused(header + good + "2023-11-16 18:15:46.68,374\n", "trace:3", "three fields");
  ExpectRefused(header + "2023-11-16 18:15:46.68,374,44,5\n", "trace:2", "whole numbers");
  ExpectRefused(header + "2023-11-16 18:15:46.68,-374,44\n", "trace:2", "whole numbers");
  ExpectRefused(header + "2023-11-16 18:15:46.68,374,99999999999\n", "trace:2", "whole numbers");
  for (const char* time : {"2023-11-16T18:15:46", "2023-02-30 18:15:46", "2023-11-16 25:15:46", "2023-11-16 18:15:46.",
                           "2023-11-16 18:15:46.5x", "now", ""}) {
    ExpectRefused(header + time + ",374,44\n", "trace:2", "time");
  }
  ExpectRefused("{\"timestamp\": 0\n", "trace:1", "JSON object");
  ExpectRefused("{\"timestamp\": 0, \"input_length\": 1}\n", "trace:1", "output_length");
  ExpectRefused("{\"timestamp\": \"a\", \"input_length\": 1, \"output_length\": 1}\n", "trace:1", "timestamp");
  ExpectRefused("{\"timestamp\": 0, \"input_length\": 1.5, \"output_length\": 1}\n", "trace:1", "input_length");
  ExpectRefused("{\"timestamp\": 0, \"input_length\": 1, \"output_length\": 1, \"hash_ids\": [\"x\"]}\n", "hash_ids");
  ExpectRefused(std::string(kMooncake) + "[]\n", "trace:4", "JSON object");
  EXPECT_FALSE(ReadTrace(scratch_.Path("absent"), 1).ok());
}

TEST_F(Trace, ScaledPromptsShareTheirBlocks) {
  const auto trace = Read(kMooncake);
  WorkloadOptions options = Options();
  options.length_scale = 0.1;  // blocks of 51 tokens
  const auto plan = TraceWorkload(*trace, options);
  ASSERT_TRUE(plan.ok()) << plan.status().ToString();
  const auto shared = [&](size_t a, size_t b) {
    const auto& x = (*plan)[a].prompt;
    const auto& y = (*plan)[b].prompt;
    const auto [at, other] = std::mismatch(x.begin(), x.end(), y.begin(), y.end());
    return at - x.begin();
  };
  EXPECT_EQ((*plan)[0].prompt.size(), 120u);
  EXPECT_EQ((*plan)[1].prompt.size(), 110u);
  EXPECT_EQ((*plan)[2].prompt.size(), 60u);
  // Two blocks alike, then one; a draw of 512 may fall alike just behind them.
  EXPECT_GE(shared(0, 1), 102);
  EXPECT_LT(shared(0, 1), 106);
  EXPECT_GE(shared(0, 2), 51);
  EXPECT_LT(shared(0, 2), 55);
  EXPECT_EQ((*plan)[0].output_tokens, 50);
  EXPECT_EQ((*plan)[1].output_tokens, 1);  // 0.3, but none is no request
  EXPECT_EQ((*plan)[2].due_s, 4);
  for (const PlannedRequest& request : *plan) {
    for (const int32_t id : request.prompt) EXPECT_TRUE(id >= 0 && id < 512);
  }
}

TEST_F(Trace, TimesAndLengthsAreScaledAndCut) {
  const auto trace = Read(kMooncake);
  WorkloadOptions options = Options();
  options.time_scale = 0.25;
  options.max_input_len = 700;
  options.max_output_len = 20;
  const auto slow = TraceWorkload(*trace, options);
  EXPECT_EQ((*slow)[1].due_s, 0.5);
  EXPECT_EQ((*slow)[0].prompt.size(), 700u);
  EXPECT_EQ((*slow)[0].output_tokens, 20);
  EXPECT_EQ((*slow)[2].prompt.size(), 600u);
  options.request_rate = 10;  // two gaps in 0.2 s
  EXPECT_NEAR((*TraceWorkload(*trace, options))[2].due_s, 0.2, 1e-9);
  EXPECT_NEAR((*TraceWorkload(*trace, options))[1].due_s, 0.1, 1e-9);
  options.request_rate = std::numeric_limits<double>::infinity();
  EXPECT_EQ((*TraceWorkload(*trace, options))[2].due_s, 0);
  options.num_prompts = 1;
  EXPECT_EQ(TraceWorkload(*trace, options)->size(), 1u);
  options.max_model_len = 500;
  const auto refused = TraceWorkload(*trace, options);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.status().message().find("context of 500"), std::string::npos);
}

TEST(Workload, ArrivalsAreThoseOfTheRate) {
  WorkloadOptions options = Options();
  options.num_prompts = 5000;
  options.request_rate = 50;
  options.input_len = 2;
  const auto gaps = [&] {
    const auto plan = RandomWorkload(options);
    EXPECT_TRUE(plan.ok()) << plan.status().ToString();
    std::vector<double> gaps;
    for (size_t i = 1; i < plan->size(); ++i) gaps.push_back((*plan)[i].due_s - (*plan)[i - 1].due_s);
    const double mean = std::accumulate(gaps.begin(), gaps.end(), 0.0) / static_cast<double>(gaps.size());
    double square = 0;
    for (const double gap : gaps) square += (gap - mean) * (gap - mean);
    return std::pair(mean, std::sqrt(square / static_cast<double>(gaps.size())) / mean);
  };
  const auto [mean, spread] = gaps();
  EXPECT_NEAR(mean, 0.02, 0.0015);
  EXPECT_NEAR(spread, 1, 0.08);  // exponential gaps
  options.burstiness = 4;
  const auto [even_mean, even_spread] = gaps();
  EXPECT_NEAR(even_mean, 0.02, 0.001);
  EXPECT_NEAR(even_spread, 0.5, 0.04);
  options.request_rate = std::numeric_limits<double>::infinity();
  EXPECT_EQ(RandomWorkload(options)->back().due_s, 0);
}

TEST(Workload, LengthsSpreadAndSeedsRepeat) {
  WorkloadOptions options = Options();
  options.request_rate = 1;
  options.num_prompts = 500;
  options.input_len = 100;
  options.output_len = 20;
  options.range_ratio = 0.5;
  const auto plan = RandomWorkload(options), again = RandomWorkload(options);
  options.seed = 1;
  const auto other = RandomWorkload(options);
  size_t least = 1000, most = 0;
  for (size_t i = 0; i < plan->size(); ++i) {
    const size_t length = (*plan)[i].prompt.size();
    least = std::min(least, length);
    most = std::max(most, length);
    EXPECT_TRUE((*plan)[i].output_tokens >= 10 && (*plan)[i].output_tokens <= 30);
    EXPECT_EQ((*plan)[i].prompt, (*again)[i].prompt);
    EXPECT_EQ((*plan)[i].due_s, (*again)[i].due_s);
  }
  EXPECT_TRUE(least >= 50 && least < 60 && most <= 150 && most > 140) << least << " " << most;
  EXPECT_NE((*plan)[0].prompt, (*other)[0].prompt);
  EXPECT_NE((*plan)[0].prompt, (*plan)[1].prompt);
}

TEST(Workload, OptionsOutOfRangeAreRefused) {
  const auto refused = [](const std::function<void(WorkloadOptions*)>& spoil, const std::string& about) {
    WorkloadOptions options = Options();
    options.request_rate = 1;
    spoil(&options);
    const auto plan = RandomWorkload(options);
    ASSERT_FALSE(plan.ok()) << about;
    EXPECT_NE(plan.status().message().find(about), std::string::npos) << plan.status().message();
  };
  refused([](auto* o) { o->num_prompts = 0; }, "--num-prompts");
  refused([](auto* o) { o->request_rate = 0; }, "--request-rate");
  refused([](auto* o) { o->request_rate = std::nan(""); }, "--request-rate");
  refused([](auto* o) { o->burstiness = 0; }, "--burstiness");
  refused([](auto* o) { o->input_len = 0; }, "--input-len");
  refused([](auto* o) { o->output_len = -1; }, "--output-len");
  refused([](auto* o) { o->range_ratio = 1; }, "--random-range-ratio");
  refused([](auto* o) { o->input_len = 4096; }, "context of 4096");
  refused([](auto* o) { o->input_len = 3000, o->range_ratio = 0.4; }, "context of 4096");
}

}  // namespace
}  // namespace quire

// What only the emulator's GPU can tell of an engine: waits, copies and memory counted, machines of any size and without a
// GPU, ranks that find too few.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/selection/add_policy.h"
#include "tests/core/engine/gpu_fixture.h"
#include "tests/core/engine/group_fixture.h"
#include "tests/kernels/cuda/emulator/device.h"

namespace quire {
namespace {

const char kStories[] = "stories260K";

TEST(EmulatedGpuEngine, WaitsForTheGpuOnceAStep) {
  auto engine = MakeEngine(OnGpu(Small(kStories)));
  ASSERT_NE(engine, nullptr);
  RunOne(*engine, Greedy({1}, 2));  // what grows, grows here
  const emulator::GpuCounts before = emulator::CountsOfGpu();
  const int64_t steps = engine->Stats().steps;
  RunOne(*engine, Greedy({1}, 12));
  const emulator::GpuCounts after = emulator::CountsOfGpu();
  const int64_t n = engine->Stats().steps - steps;
  EXPECT_EQ(after.waits - before.waits, n);
  EXPECT_EQ(after.bytes, before.bytes);
  // The step's arrays there, candidates back; and now and then the ids of new pages.
  EXPECT_LE(after.copies - before.copies, 3 * n);
}

// Each policy, with graphs and without.
TEST(EmulatedGpuEngine, PoliciesWaitOnceAStepAndGraphsOfThemGiveWhatEagerStepsGive) {
  std::vector<int32_t> prompt(20);
  std::iota(prompt.begin(), prompt.end(), 300);
  for (const AttentionSpec& attention : SmallGpuPolicies()) {
    SCOPED_TRACE(attention.ToString());
    std::vector<Output> outputs;
    for (const bool eager : {true, false}) {
      EngineOptions options = OnGpu(Small(kStories));
      options.page_size = 4;
      options.attention = {attention};
      options.enforce_eager = eager;
      auto engine = MakeEngine(options);
      ASSERT_NE(engine, nullptr);
      RunOne(*engine, Greedy(prompt, 2));
      const emulator::GpuCounts before = emulator::CountsOfGpu();
      const int64_t steps = engine->Stats().steps;
      outputs.push_back(RunOne(*engine, Greedy(prompt, 6)));
      const emulator::GpuCounts after = emulator::CountsOfGpu();
      const int64_t n = engine->Stats().steps - steps;
      EXPECT_EQ(after.waits - before.waits, n);
      EXPECT_EQ(after.bytes, before.bytes);
      EXPECT_LE(after.copies - before.copies, 4 * n);  // back also the lengths of the lists
      if (eager) {
        EXPECT_EQ(after.graphs, before.graphs);
      } else {
        EXPECT_GE(after.graphs - before.graphs, n - 2);  // all but the prompt's and perhaps one whose memory grew
      }
    }
    EXPECT_EQ(outputs[0].ids, outputs[1].ids);
    EXPECT_EQ(outputs[0].last.attention.pages_read, outputs[1].last.attention.pages_read);
    EXPECT_LT(outputs[1].last.attention.pages_read, outputs[1].last.attention.pages_total);
  }
}

TEST(EmulatedGpuEngine, EvictingSequencesWaitOnceAStepAndRunWithoutGraphs) {
  for (const char* spec : {"streaming:token_budget=18:evict=true", "h2o:token_budget=18:evict=true", "tova:token_budget=18:evict=true"}) {
    SCOPED_TRACE(spec);
    EngineOptions options = OnGpu(Small(kStories));
    options.page_size = 4;
    options.attention = {*AttentionSpec::Parse(spec)};
    auto engine = MakeEngine(options);
    ASSERT_NE(engine, nullptr);
    const GenerationRequest request = Greedy(Ids(14, 1, 500), 9);
    RunOne(*engine, request);
    const emulator::GpuCounts before = emulator::CountsOfGpu();
    const int64_t steps = engine->Stats().steps;
    const Output out = RunOne(*engine, request);
    const emulator::GpuCounts after = emulator::CountsOfGpu();
    const int64_t n = engine->Stats().steps - steps;
    EXPECT_EQ(after.waits - before.waits, n);
    EXPECT_EQ(after.bytes, before.bytes);
    EXPECT_LE(after.copies - before.copies, 4 * n);
    EXPECT_EQ(after.graphs, before.graphs);
    EXPECT_LT(out.last.attention.pages_read, out.last.attention.pages_total);
  }
}

// They come back with the lengths of the lists: no wait, no copy and no memory more, and graphs as without.
TEST(EmulatedGpuEngine, BoundsOfWhatIsLeftOutCostNoWaitAndNoGraph) {
  std::vector<int32_t> prompt(20);
  std::iota(prompt.begin(), prompt.end(), 300);
  std::vector<Output> outputs;
  std::vector<emulator::GpuCounts> cost;
  for (const auto& [bound, eager] : {std::pair{false, false}, {true, false}, {true, true}}) {
    EngineOptions options = OnGpu(Small(kStories));
    options.page_size = 2;
    options.attention = {*AttentionSpec::Parse("quest:token_budget=8:dense_layers=1")};
    options.missing_mass_bound = bound;
    options.enforce_eager = eager;
    auto engine = MakeEngine(options);
    ASSERT_NE(engine, nullptr);
    RunOne(*engine, Greedy(prompt, 2));
    const emulator::GpuCounts before = emulator::CountsOfGpu();
    outputs.push_back(RunOne(*engine, Greedy(prompt, 8)));
    const emulator::GpuCounts after = emulator::CountsOfGpu();
    EXPECT_EQ(after.bytes, before.bytes);
    cost.push_back({});
    cost.back().waits = after.waits - before.waits;
    cost.back().copies = after.copies - before.copies;
    cost.back().graphs = after.graphs - before.graphs;
  }
  EXPECT_EQ(cost[1].waits, cost[0].waits);
  EXPECT_EQ(cost[1].copies, cost[0].copies);
  EXPECT_EQ(cost[1].graphs, cost[0].graphs);
  EXPECT_GT(cost[1].graphs, 4);
  EXPECT_EQ(cost[2].graphs, 0);
  const auto bounds = [&](size_t i) { return outputs[i].last.attention; };
  EXPECT_EQ(bounds(0).bounds, 0);
  EXPECT_EQ(bounds(1).bounds, 7 * 4 * 8);  // steps behind the prompt's, sparse layers, query heads
  EXPECT_EQ(bounds(1).bounds, bounds(2).bounds);
  EXPECT_EQ(bounds(1).bound_billionths, bounds(2).bound_billionths);
  EXPECT_GT(bounds(1).bound_billionths, 0);
  EXPECT_EQ(outputs[0].ids, outputs[1].ids);
}

// What a run of requests gave, and what it cost.
struct GraphRun {
  Collector collector;
  std::vector<std::string> ids;
  int64_t steps = 0, preemptions = 0;
  int64_t graphs = 0, captures = 0, copies = 0, waits = 0;
};

// Requests that join one by one, a step after the other.
void RunJoining(EngineOptions options, bool eager, const std::vector<GenerationRequest>& requests, GraphRun* run) {
  options.enforce_eager = eager;
  auto engine = MakeEngine(options);
  ASSERT_NE(engine, nullptr);
  const emulator::GpuCounts before = emulator::CountsOfGpu();
  for (const GenerationRequest& request : requests) {
    auto id = engine->Submit(request, run->collector.callback());
    ASSERT_TRUE(id.ok()) << id.status().ToString();
    run->ids.push_back(*id);
    ASSERT_TRUE(engine->Step().ok());
  }
  const Status status = engine->Run();
  ASSERT_TRUE(status.ok()) << status.ToString();
  const emulator::GpuCounts after = emulator::CountsOfGpu();
  run->steps = engine->Stats().steps;
  run->preemptions = engine->Stats().preemptions;
  run->graphs = after.graphs - before.graphs;
  run->captures = after.captures - before.captures;
  run->copies = after.copies - before.copies;
  run->waits = after.waits - before.waits;
}

// The same tokens, the same bits of their log-probabilities, the same pages.
void ExpectSame(GraphRun& eager, GraphRun& graphs) {
  EXPECT_EQ(eager.graphs, 0);
  EXPECT_EQ(eager.waits, graphs.waits);
  ASSERT_EQ(eager.ids, graphs.ids);
  for (const std::string& id : eager.ids) {
    const Output& a = eager.collector.at(id);
    const Output& b = graphs.collector.at(id);
    EXPECT_EQ(a.ids, b.ids) << id;
    ASSERT_EQ(a.logprobs.size(), b.logprobs.size());
    for (size_t i = 0; i < a.logprobs.size(); ++i) {
      EXPECT_EQ(a.logprobs[i].chosen.logprob, b.logprobs[i].chosen.logprob) << id << " " << i;
      ASSERT_EQ(a.logprobs[i].top.size(), b.logprobs[i].top.size());
      for (size_t j = 0; j < a.logprobs[i].top.size(); ++j) {
        EXPECT_EQ(a.logprobs[i].top[j].logprob, b.logprobs[i].top[j].logprob);
      }
    }
    EXPECT_EQ(a.last.attention.pages_read, b.last.attention.pages_read) << id;
    EXPECT_EQ(a.last.attention.pages_total, b.last.attention.pages_total) << id;
  }
}

GenerationRequest Numbered(int number, int prompt, int tokens) {
  std::vector<int32_t> ids = {1};
  for (int i = 1; i < prompt; ++i) ids.push_back(300 + (number * 37 + i * 11) % 150);
  GenerationRequest request = Greedy(ids, tokens);
  request.request_id = "r" + std::to_string(number);
  request.logprobs = 2;
  return request;
}

// Dense requests and two of quest's in one batch; they come and go, one prompt is long enough for memory to grow while others
// decode, and one request crosses quest's budget.
TEST(EmulatedGpuEngine, GraphsGiveTheTokensLogitsAndPagesOfEagerSteps) {
  EngineOptions options = OnGpu(Small(kStories));
  options.max_num_seqs = 6;
  options.page_size = 4;
  options.attention = {{}, {"quest", {{"token_budget", "16"}, {"dense_layers", "1"}}}};
  std::vector<GenerationRequest> requests;
  for (int i = 0; i < 6; ++i) {
    requests.push_back(Numbered(i, i == 4 ? 70 : 3 + 5 * i, 26 - 2 * i));
    if (i % 2 == 1) requests.back().attention = options.attention[1];
  }
  GraphRun eager, graphs;
  RunJoining(options, true, requests, &eager);
  RunJoining(options, false, requests, &graphs);
  ExpectSame(eager, graphs);
  EXPECT_GT(graphs.captures, 2);
  EXPECT_GT(graphs.graphs, graphs.captures + 3);
}

TEST(EmulatedGpuEngine, GraphsOfTheFamiliesGiveWhatEagerStepsGive) {
  for (const char* model : {"golden/gemma2", "golden/gemma3", "golden/qwen3"}) {
    EngineOptions options = OnGpu(Small(model));
    options.load_tokenizer = false;
    options.page_size = 4;
    options.attention = {{"quest", {{"token_budget", "12"}, {"dense_layers", "0"}}}, {}};
    std::vector<GenerationRequest> requests;
    for (int i = 0; i < 3; ++i) {
      requests.push_back(Numbered(i, 18 + i, 8));
      for (size_t t = 1; t < requests.back().prompt.size(); ++t) requests.back().prompt[t] = 3 + static_cast<int32_t>(t) * 41 % 150;
    }
    requests.back().attention = options.attention[1];
    GraphRun eager, graphs;
    RunJoining(options, true, requests, &eager);
    RunJoining(options, false, requests, &graphs);
    SCOPED_TRACE(model);
    ExpectSame(eager, graphs);
    EXPECT_GT(graphs.graphs, 3);
  }
}

TEST(EmulatedGpuEngine, GraphsOfPreemptedSequencesGiveWhatEagerStepsGive) {
  EngineOptions options = OnGpu(Small(kStories));
  options.page_size = 4;
  options.attention = {{"quest", {{"token_budget", "12"}, {"dense_layers", "0"}}}};
  options.kv_cache_bytes = 16 * 4 * 5 * 2 * 4 * 8 * 4 * 3 / 2;  // about 16 pages and their metadata
  options.max_num_seqs = 3;
  options.max_num_batched_tokens = 16;
  std::vector<GenerationRequest> requests;
  for (int i = 0; i < 3; ++i) requests.push_back(Numbered(i, 6, 18));  // of 6 pages in the end
  GraphRun eager, graphs;
  RunJoining(options, true, requests, &eager);
  RunJoining(options, false, requests, &graphs);
  ExpectSame(eager, graphs);
  EXPECT_GT(graphs.preemptions, 0);
  EXPECT_GT(graphs.graphs, 5);
}

// Policies that remember, one of them beside dense requests, and with a request that crosses its budget.
TEST(EmulatedGpuEngine, GraphsOfPoliciesThatRememberGiveWhatEagerStepsGive) {
  EngineOptions options = OnGpu(Small(kStories));
  options.max_num_seqs = 6;
  options.page_size = 4;
  options.attention = {{},
                       {"h2o", {{"token_budget", "16"}, {"dense_layers", "1"}}},
                       {"swa", {{"token_budget", "20"}, {"dense_layers", "0"}}},
                       {"hierarchical", {{"token_budget", "16"}, {"dense_layers", "0"}, {"reuse", "3"}}}};
  std::vector<GenerationRequest> requests;
  for (int i = 0; i < 8; ++i) {
    requests.push_back(Numbered(i, i == 4 ? 70 : 3 + 5 * i, 26 - 2 * i));
    requests.back().attention = options.attention[static_cast<size_t>(i % 4)];
  }
  GraphRun eager, graphs;
  RunJoining(options, true, requests, &eager);
  RunJoining(options, false, requests, &graphs);
  ExpectSame(eager, graphs);
  EXPECT_GT(graphs.captures, 2);
  EXPECT_GT(graphs.graphs, graphs.captures + 3);
}

// A graph is for lengths up to a bucket's end: here two of them, both times captured once.
TEST(EmulatedGpuEngine, ALengthBeyondItsBucketIsAnotherGraph) {
  EngineOptions options = OnGpu(Small(kStories));
  options.page_size = 4;
  options.attention = {{"quest", {{"token_budget", "64"}, {"dense_layers", "1"}}}};
  std::vector<Output> outputs;
  for (const bool eager : {true, false}) {
    options.enforce_eager = eager;
    auto engine = MakeEngine(options);
    ASSERT_NE(engine, nullptr);
    Collector collector;
    const emulator::GpuCounts before = emulator::CountsOfGpu();
    auto id = engine->SubmitRandomCache(250, 14, 3, {}, collector.callback());
    ASSERT_TRUE(id.ok()) << id.status().ToString();
    ASSERT_TRUE(engine->Run().ok());
    outputs.push_back(collector.at(*id));
    const emulator::GpuCounts after = emulator::CountsOfGpu();
    EXPECT_EQ(after.captures - before.captures, eager ? 0 : 2);
    EXPECT_EQ(after.graphs - before.graphs, eager ? 0 : 12);
  }
  EXPECT_EQ(outputs[0].ids, outputs[1].ids);
  EXPECT_EQ(outputs[0].last.attention.pages_read, outputs[1].last.attention.pages_read);
}

// Their sums go through host memory, where no graph reaches.
TEST(EmulatedGpuEngine, RanksThatShareAGpuRunWithoutGraphs) {
  EngineOptions options = OnGpu(Small(kStories));
  options.share_gpu = true;
  TestRanks ranks(2);
  {
    auto engine = MakeEngine(ranks.Options(options));
    ASSERT_NE(engine, nullptr);
    const int64_t graphs = emulator::CountsOfGpu().graphs;
    RunOne(*engine, Greedy({1}, 6));
    EXPECT_EQ(emulator::CountsOfGpu().graphs, graphs);
  }
  for (const Status& end : ranks.Release()) EXPECT_TRUE(end.ok()) << end.ToString();
}

// What a step brings back of a row: its candidates, of the raw row where they are wanted and of the edited one.
TEST(EmulatedGpuEngine, NoRowOfLogitsComesBackWhole) {
  constexpr int64_t kVocab = 512;
  for (const GenerationRequest& request : EverySamplingParameter()) {
    SCOPED_TRACE(request.request_id);
    auto engine = MakeEngine(OnGpu(Small(kStories)));
    ASSERT_NE(engine, nullptr);
    Collector others;  // as many greedy ones as the request has sequences: what grows but for sampling, grows here
    for (int i = 0; i < 3; ++i) ASSERT_TRUE(engine->Submit(Greedy(request.prompt, 10), others.callback()).ok());
    ASSERT_TRUE(engine->Run().ok());
    const emulator::GpuCounts before = emulator::CountsOfGpu();
    const int64_t steps = engine->Stats().steps;
    const Output out = RunOne(*engine, request);
    const emulator::GpuCounts after = emulator::CountsOfGpu();
    const int64_t n = engine->Stats().steps - steps;
    const int64_t draws = static_cast<int64_t>(out.ids.size()) * request.sampling.n;
    const bool draws_from = request.sampling.temperature > 0 && request.forced.empty();
    const int64_t k = draws_from ? 64 : 1;
    const int64_t most = draws * 4 * ((1 + 2 * std::max(1, request.logprobs)) + (1 + 3 * k) + 1);
    EXPECT_LE(after.bytes_back - before.bytes_back, most);
    EXPECT_GE(after.bytes_back - before.bytes_back, draws * 4 * 3);
    EXPECT_LT(most, draws * 4 * kVocab);
    EXPECT_EQ(after.waits - before.waits, n);
    if (request.sampling.n == 1) {  // forks copy pages, whose list may be the longest so far
      EXPECT_EQ(after.bytes, before.bytes) << "memory was made in a step";
    }
  }
}

TEST(EmulatedGpuEngine, AllDeviceMemoryGoesBack) {
  const size_t before = emulator::CountsOfGpu().bytes;
  {
    auto engine = MakeEngine(OnGpu(Small(kStories)));
    ASSERT_NE(engine, nullptr);
    RunOne(*engine, Greedy({1}, 3));
    const MemoryBytes memory = engine->Memory();
    EXPECT_GE(emulator::CountsOfGpu().bytes - before, memory.weights + memory.kv_cache);
  }
  EXPECT_EQ(emulator::CountsOfGpu().bytes, before);
}

TEST(EmulatedGpuEngine, TheCacheTakesWhatTheUtilizationLeaves) {
  const size_t used = emulator::CountsOfGpu().bytes;
  const emulator::ScopedGpu gpu({.devices = 1, .memory_bytes = used + (size_t{24} << 20)});
  EngineOptions options = OnGpu(Small(kStories));
  options.kv_cache_bytes = 0;
  options.max_num_seqs = 64;  // more than fits at full length
  options.page_size = 16;
  std::vector<int64_t> pages;
  for (const double utilization : {0.5, 0.9}) {
    options.gpu_memory_utilization = utilization;
    auto engine = MakeEngine(options);
    ASSERT_NE(engine, nullptr);
    pages.push_back(engine->Stats().pages_total);
    RunOne(*engine, Greedy({1}, 3));
    const size_t most = static_cast<size_t>(utilization * static_cast<double>(used + (size_t{24} << 20)));
    EXPECT_LE(emulator::CountsOfGpu().bytes, most);
    EXPECT_GE(emulator::CountsOfGpu().bytes, most - most / 8);
  }
  EXPECT_GT(pages[1], pages[0]);
}

// Of one's own, without kernels for a GPU.
class HostOnlyPolicy : public AttentionPolicy {
 public:
  std::string_view name() const override { return "host-only"; }
  int64_t token_budget() const override { return 0; }
  PageDataNeeds Declare() const override { return {}; }
  bool IsDense(int64_t, int, int) const override { return true; }
  int MaxPages(int64_t, int) const override { return 0; }
  size_t SelectWorkspace(const SelectParams&) const override { return 0; }
  int64_t SelectBytes(const SelectParams&) const override { return 0; }
  void Select(const Context&, const SelectParams&, SelectionView, void*) const override {}
};

TEST(EmulatedGpuEngine, RefusesWhatItCannotDoWithASentence) {
  const auto refused = [](const EngineOptions& options) { return Engine::Create(options).status(); };
  ASSERT_TRUE(AddPolicy({"host-only", "nobody", "2n", ""}, [](const auto&, const PolicyShape&) {
                return Result<std::unique_ptr<AttentionPolicy>>(std::make_unique<HostOnlyPolicy>());
              }).ok());
  EngineOptions options = OnGpu(Small(kStories));
  options.attention = {{}, {"host-only", {}}};
  Status status = refused(options);
  EXPECT_EQ(status.code(), StatusCode::kUnimplemented);
  EXPECT_NE(status.message().find("'host-only' has no CUDA kernels"), std::string::npos) << status.message();

  options = OnGpu(Small(kStories));
  options.kv_cache_bytes = int64_t{1} << 30;
  EXPECT_EQ(refused(options).code(), StatusCode::kResourceExhausted);

  options = OnGpu(Small(kStories));
  options.gpu_memory_utilization = 1.5;
  EXPECT_EQ(refused(options).code(), StatusCode::kInvalidArgument);
  options = Small(kStories);
  options.device = "tpu";
  EXPECT_EQ(refused(options).code(), StatusCode::kInvalidArgument);

  const emulator::ScopedGpu none({.devices = 0});
  status = refused(OnGpu(Small(kStories)));
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("no GPU was found"), std::string::npos) << status.message();
  EXPECT_NE(status.message().find("--device cpu"), std::string::npos) << status.message();
  EngineOptions automatic = Small(kStories);
  automatic.device = "auto";
  auto engine = MakeEngine(automatic);
  ASSERT_NE(engine, nullptr);
  EXPECT_EQ(engine->options().device, "cpu");
}

TEST(EmulatedGpuEngine, AutoTakesTheGpu) {
  EngineOptions automatic = Small(kStories);
  automatic.device = "auto";
  auto engine = MakeEngine(automatic);
  ASSERT_NE(engine, nullptr);
  EXPECT_EQ(engine->options().device, "cuda");
}

TEST(EmulatedGpuEngine, MoreRanksThanGpusAreRefusedOnAllAndAutoGoesToTheCpu) {
  TestRanks ranks(2);
  const Status status = Engine::Create(ranks.Options(OnGpu(Small(kStories)))).status();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("of 2 on this host finds 1 GPU"), std::string::npos) << status.message();
  EXPECT_NE(status.message().find("--share-gpu"), std::string::npos) << status.message();
  EngineOptions automatic = Small(kStories);
  automatic.device = "auto";
  auto engine = MakeEngine(ranks.Options(automatic));
  ASSERT_NE(engine, nullptr);
  EXPECT_EQ(engine->options().device, "cpu");
  engine.reset();
  ranks.Release();
}

}  // namespace
}  // namespace quire

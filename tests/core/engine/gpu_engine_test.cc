// The whole engine on a GPU against the references, and against the engine on the CPU: the same decoder, cache and scheduler
// as everywhere, with every kernel of kernels/cuda. Built twice: for a real GPU (label gpu), and for the emulator's, whose
// memory the host can't touch (label emulator).
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "core/base/device_memory.h"
#include "core/engine/engine_impl.h"
#include "tests/core/engine/gpu_fixture.h"
#include "tests/core/engine/group_fixture.h"

namespace quire {
namespace {

const char kStories[] = "stories260K";
const char kRetriever[] = "retriever-2m";

// Where there is no GPU the tests are skipped; the emulator always has one.
class GpuEngine : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string why;
    if (CudaDeviceCount(&why) == 0) GTEST_SKIP() << why;
  }
};
using SlowGpuEngine = GpuEngine;

// Two sets of log-probabilities, of the same tokens.
void ExpectNear(const TokenLogprobs& a, const TokenLogprobs& b) {
  EXPECT_EQ(a.chosen.id, b.chosen.id);
  EXPECT_NEAR(a.chosen.logprob, b.chosen.logprob, 1e-4);
  ASSERT_EQ(a.top.size(), b.top.size());
  for (size_t i = 0; i < a.top.size(); ++i) EXPECT_NEAR(a.top[i].logprob, b.top[i].logprob, 1e-4);
}

TEST_F(GpuEngine, ReproducesTheGreedyReferenceDenseAndAtFullBudget) {
  const auto prompt = JsonInts(DataPath("stories260K/greedy_reference.json"), "prompt_ids");
  auto want = JsonInts(DataPath("stories260K/greedy_reference.json"), "greedy_ids");
  for (const int page_size : {16, 3}) {
    if (page_size == 3) want.resize(12);  // the emulator isn't quick
    EngineOptions options = OnGpu(Small(kStories));
    options.page_size = page_size;
    options.attention = {{}, {"quest", {{"token_budget", "512"}}}};
    auto engine = MakeEngine(options);
    ASSERT_NE(engine, nullptr);
    EXPECT_EQ(engine->options().device, "cuda");
    for (const AttentionSpec& attention : options.attention) {
      GenerationRequest request = Greedy(prompt, static_cast<int>(want.size()));
      request.attention = attention;
      const Output out = RunOne(*engine, request);
      EXPECT_EQ(out.ids, want) << attention.ToString() << " page size " << page_size;
      EXPECT_EQ(out.last.attention.pages_read, out.last.attention.pages_total);
    }
  }
}

// The same tokens and log-probabilities from both, and as many pages read, which are not all.
void ExpectThePagesOfTheCpu(const AttentionSpec& attention, int page_size, const std::vector<int32_t>& prompt, int tokens) {
  SCOPED_TRACE(attention.ToString());
  EngineOptions options = Small(kStories);
  options.page_size = page_size;
  options.attention = {attention};
  std::vector<Output> outputs;
  for (const EngineOptions& o : {options, OnGpu(options)}) {
    auto engine = MakeEngine(o);
    ASSERT_NE(engine, nullptr);
    GenerationRequest request = Greedy(prompt, tokens);
    request.logprobs = 2;
    outputs.push_back(RunOne(*engine, request));
  }
  EXPECT_EQ(outputs[0].ids, outputs[1].ids);
  ASSERT_EQ(outputs[0].logprobs.size(), outputs[1].logprobs.size());
  for (size_t i = 0; i < outputs[0].logprobs.size(); ++i) ExpectNear(outputs[0].logprobs[i], outputs[1].logprobs[i]);
  EXPECT_EQ(outputs[0].last.attention.pages_read, outputs[1].last.attention.pages_read);
  EXPECT_EQ(outputs[0].last.attention.pages_total, outputs[1].last.attention.pages_total);
  EXPECT_LT(outputs[1].last.attention.pages_read, outputs[1].last.attention.pages_total);
}

TEST_F(GpuEngine, ASmallBudgetReadsThePagesThatTheCpuReads) {
  for (const AttentionSpec& attention : SmallGpuPolicies()) {
    ExpectThePagesOfTheCpu(attention, 4, {1, 403, 407, 261, 378, 432, 306, 383}, 24);
  }
  // Eight metadata groups of pages of one token, of which a few are kept.
  std::vector<int32_t> prompt = {1};
  for (int i = 1; i < 120; ++i) prompt.push_back(300 + i * i % 150);
  for (const char* option : {"", ":reuse=4", ":metadata=int8"}) {
    ExpectThePagesOfTheCpu(
        *AttentionSpec::Parse(std::string("hierarchical:token_budget=12:dense_layers=1:keep=0.3") + option), 1, prompt,
        10);
  }
}

// Policies that choose by page metadata, beside one that doesn't, in one batch; a soft cap, and ranks that share the GPU.
TEST_F(GpuEngine, WhatSelectionsMayLeaveOutIsBoundedAsOnTheCpu) {
  const auto run = [](EngineOptions options) {
    auto engine = MakeEngine(std::move(options));
    Collector collector;
    for (int i = 0; i < 4; ++i) {
      std::vector<int32_t> prompt = {1};
      for (int32_t t = 1; t < 12 + 9 * i; ++t) prompt.push_back(3 + (t * 41 + i * 17) % 150);
      GenerationRequest request = Greedy(prompt, 4);
      request.request_id = std::to_string(i);
      request.attention = engine->options().attention[static_cast<size_t>(i)];
      EXPECT_TRUE(engine->Submit(request, collector.callback()).ok());
    }
    EXPECT_TRUE(engine->Run().ok());
    std::vector<AttentionReads> reads;
    for (int i = 0; i < 4; ++i) reads.push_back(collector.at(std::to_string(i)).last.attention);
    reads.push_back(engine->Stats().attention);
    return reads;
  };
  for (const char* model : {kStories, "golden/gemma2"}) {
    EngineOptions options = Small(model);
    options.load_tokenizer = false;
    options.page_size = 2;
    options.missing_mass_bound = true;
    options.share_gpu = true;
    for (const char* spec : {"quest:token_budget=10:dense_layers=0", "sparq:token_budget=10:dense_layers=0:channels=4",
                             "hierarchical:token_budget=12:dense_layers=1", "top-p:token_budget=10:dense_layers=0:loose=0.5"}) {
      options.attention.push_back(AttentionSpec::Parse(spec).value());
    }
    options.attention.erase(options.attention.begin());
    const std::vector<AttentionReads> want = run(options);
    for (const int ranks : {1, 2}) {
      if (ranks == 2 && model != kStories) continue;
      SCOPED_TRACE(std::string(model) + " on " + std::to_string(ranks));
      TestRanks all(ranks);
      const std::vector<AttentionReads> got = run(all.Options(OnGpu(options)));
      ASSERT_EQ(got.size(), want.size());
      for (size_t i = 0; i < want.size(); ++i) {
        EXPECT_EQ(got[i].bounds, want[i].bounds) << i;
        EXPECT_EQ(got[i].pages_read, want[i].pages_read) << i;
        EXPECT_EQ(got[i].bounds > 0, i != 1) << i;
        if (got[i].bounds == 0) continue;
        EXPECT_NEAR(got[i].missing_mass_bound(), want[i].missing_mass_bound(), 1e-4) << i;
        EXPECT_GT(got[i].missing_mass_bound(), 0.01) << i;
        EXPECT_LT(got[i].missing_mass_bound(), 0.9999) << i;
      }
      for (const Status& end : all.Release()) EXPECT_TRUE(end.ok()) << end.ToString();
    }
  }
}

// Prompts in chunks, several requests at once, one of them forked, logits edited, scaled, looked up and drawn from.
TEST_F(GpuEngine, AMixedBatchIsAsOnTheCpu) {
  EngineOptions options = Small(kStories);
  options.max_num_batched_tokens = 8;
  options.max_num_seqs = 6;
  options.attention = {{}, {"quest", {{"token_budget", "24"}, {"dense_layers", "0"}}}};
  options.page_size = 4;
  std::vector<GenerationRequest> requests;
  GenerationRequest plain = Greedy({1, 403, 407, 261, 378, 432, 306, 383, 286, 261, 400, 436}, 12);
  plain.request_id = "plain";
  plain.logprobs = 3;
  plain.prompt_logprobs = 2;
  requests.push_back(plain);
  GenerationRequest drawn = Greedy({1, 403, 407, 261, 378}, 10);
  drawn.request_id = "drawn";
  drawn.sampling.temperature = 0.8f;
  drawn.sampling.top_p = 0.9f;
  drawn.sampling.seed = 17;
  drawn.sampling.n = 2;
  drawn.logprobs = 1;
  requests.push_back(drawn);
  GenerationRequest edited = Greedy({1, 300, 301, 302}, 10);
  edited.request_id = "edited";
  edited.sampling.repetition_penalty = 1.3f;
  edited.sampling.logit_bias = {{261, 3.0f}};
  edited.attention = options.attention[1];
  requests.push_back(edited);
  GenerationRequest forced = Greedy({1, 403}, 1);
  forced.request_id = "forced";
  forced.forced = {407, 261, 378, 432};
  forced.logprobs = 2;
  requests.push_back(forced);

  Collector on_cpu, on_gpu;
  for (const bool gpu : {false, true}) {
    auto engine = MakeEngine(gpu ? OnGpu(options) : options);
    ASSERT_NE(engine, nullptr);
    for (const GenerationRequest& request : requests) {
      ASSERT_TRUE(engine->Submit(request, (gpu ? on_gpu : on_cpu).callback()).ok());
    }
    const Status status = engine->Run();
    ASSERT_TRUE(status.ok()) << status.ToString();
    EXPECT_EQ(engine->Stats().pages_free, engine->Stats().pages_total);
  }
  for (const GenerationRequest& request : requests) {
    ASSERT_EQ(on_gpu.sequences(request.request_id), on_cpu.sequences(request.request_id));
    for (int s = 0; s < request.sampling.n; ++s) {
      const Output& a = on_cpu.at(request.request_id, s);
      const Output& b = on_gpu.at(request.request_id, s);
      EXPECT_EQ(a.ids, b.ids) << request.request_id;
      EXPECT_EQ(a.last.attention.pages_read, b.last.attention.pages_read) << request.request_id;
      ASSERT_EQ(a.logprobs.size(), b.logprobs.size());
      for (size_t i = 0; i < a.logprobs.size(); ++i) ExpectNear(a.logprobs[i], b.logprobs[i]);
      ASSERT_EQ(a.prompt_logprobs.size(), b.prompt_logprobs.size());
      for (size_t i = 1; i < a.prompt_logprobs.size(); ++i) ExpectNear(*a.prompt_logprobs[i], *b.prompt_logprobs[i]);
    }
  }
  EXPECT_NE(on_gpu.at("drawn", 0).ids, on_gpu.at("drawn", 1).ids);
}

// Every sampling parameter that a request has, each in a request of its own, all at once.
TEST_F(GpuEngine, EverySamplingParameterGivesTheTokensOfTheCpu) {
  EngineOptions options = Small(kStories);
  options.max_num_seqs = 24;
  const std::vector<GenerationRequest> requests = EverySamplingParameter();
  Collector on_cpu, on_gpu;
  for (const bool gpu : {false, true}) {
    auto engine = MakeEngine(gpu ? OnGpu(options) : options);
    ASSERT_NE(engine, nullptr);
    for (const GenerationRequest& request : requests) {
      ASSERT_TRUE(engine->Submit(request, (gpu ? on_gpu : on_cpu).callback()).ok());
    }
    const Status status = engine->Run();
    ASSERT_TRUE(status.ok()) << status.ToString();
  }
  const std::vector<int32_t> plain = on_cpu.at("greedy").ids;
  for (const GenerationRequest& request : requests) {
    SCOPED_TRACE(request.request_id);
    ASSERT_EQ(on_gpu.sequences(request.request_id), on_cpu.sequences(request.request_id));
    for (int s = 0; s < request.sampling.n; ++s) {
      const Output& a = on_cpu.at(request.request_id, s);
      const Output& b = on_gpu.at(request.request_id, s);
      EXPECT_EQ(a.ids, b.ids);
      if (request.request_id != "greedy") {
        EXPECT_NE(a.ids, plain) << "a parameter that changes nothing tests nothing";
      }
      ASSERT_EQ(a.logprobs.size(), b.logprobs.size());
      for (size_t i = 0; i < a.logprobs.size(); ++i) ExpectNear(a.logprobs[i], b.logprobs[i]);
    }
  }
  EXPECT_NE(on_cpu.at("presence").ids, on_cpu.at("logit_bias").ids);
  EXPECT_NE(on_cpu.at("frequency").ids, on_cpu.at("logit_bias").ids);
}

TEST_F(GpuEngine, PreemptedSequencesComeBackAsTheyWere) {
  for (const char* policy :
       {"quest", "h2o", "tova", "hierarchical:reuse=5", "hierarchical:metadata=int8", "sparq:level=token:v_mean=on"}) {
    SCOPED_TRACE(policy);
    EngineOptions options = Small(kStories);
    options.page_size = 4;
    options.attention = {*AttentionSpec::Parse(policy)};
    options.attention[0].options.insert({{"token_budget", "12"}, {"dense_layers", "0"}});
    options.kv_cache_bytes = 16 * 4 * 5 * 2 * 4 * 8 * 4;  // 16 pages …
    // … and their metadata
    if (std::string(policy).find("reuse") != std::string::npos || options.attention[0].name == "quest") {
      options.kv_cache_bytes += options.kv_cache_bytes / 2;
    } else if (options.attention[0].name == "hierarchical") {
      options.kv_cache_bytes += options.kv_cache_bytes * 3 / 4;  // and codes
    }
    options.max_num_seqs = 3;
    options.max_num_batched_tokens = 16;
    Collector on_cpu, on_gpu;
    for (const bool gpu : {false, true}) {
      auto engine = MakeEngine(gpu ? OnGpu(options) : options);
      ASSERT_NE(engine, nullptr);
      for (int i = 0; i < 3; ++i) {  // of 6 pages in the end
        GenerationRequest request = Greedy({1, 403 + i, 407, 261, 378, 290 + i}, 18);
        request.request_id = std::to_string(i);
        ASSERT_TRUE(engine->Submit(request, (gpu ? on_gpu : on_cpu).callback()).ok());
      }
      const Status status = engine->Run();
      ASSERT_TRUE(status.ok()) << status.ToString();
      EXPECT_GT(engine->Stats().preemptions, 0);
    }
    for (int i = 0; i < 3; ++i) {
      EXPECT_EQ(on_cpu.at(std::to_string(i)).ids, on_gpu.at(std::to_string(i)).ids);
      EXPECT_EQ(on_cpu.at(std::to_string(i)).ids.size(), 18u);
    }
  }
}

// Policies that choose by the attention paid before: prompts in chunks, which they remember in part or whole, forks, a dense
// request in between, and sequences that cross their budget.
TEST_F(GpuEngine, PoliciesThatRememberReadThePagesThatTheCpuReads) {
  std::vector<Output> greedy;
  for (const char* text : {"h2o:token_budget=20:dense_layers=0", "tova:token_budget=16:dense_layers=1",
                           "swa:token_budget=20:dense_layers=0", "swa:token_budget=24:dense_layers=2:rows=9",
                           "hierarchical:token_budget=20:dense_layers=0:reuse=6",
                           "sparq:token_budget=20:dense_layers=0:channels=4:v_mean=on"}) {
    SCOPED_TRACE(text);
    EngineOptions options = Small(kStories);
    options.page_size = 4;
    options.max_num_batched_tokens = 16;
    options.max_num_seqs = 6;
    options.attention = {AttentionSpec::Parse(text).value(), {}};
    std::vector<int32_t> prompt = {1};
    for (int32_t i = 1; i < 41; ++i) prompt.push_back(300 + i * 11 % 150);
    std::vector<GenerationRequest> requests;
    const auto add = [&](const char* name, int length, int tokens) -> GenerationRequest& {
      requests.push_back(Greedy({prompt.begin(), prompt.begin() + length}, tokens));
      requests.back().request_id = name;
      requests.back().logprobs = 3;
      return requests.back();
    };
    add("greedy", 41, 14);
    add("crosses", 6, 24);
    add("dense", 30, 6).attention = options.attention[1];
    GenerationRequest& drawn = add("drawn", 25, 10);
    drawn.sampling.temperature = 0.8f;
    drawn.sampling.seed = 17;
    drawn.sampling.n = 3;
    Collector on_cpu, on_gpu;
    for (const bool gpu : {false, true}) {
      auto engine = MakeEngine(gpu ? OnGpu(options) : options);
      ASSERT_NE(engine, nullptr);
      for (const GenerationRequest& request : requests) {
        ASSERT_TRUE(engine->Submit(request, (gpu ? on_gpu : on_cpu).callback()).ok());
      }
      const Status status = engine->Run();
      ASSERT_TRUE(status.ok()) << status.ToString();
      EXPECT_GT(engine->Memory().history, 0u);
    }
    for (const GenerationRequest& request : requests) {
      for (int s = 0; s < request.sampling.n; ++s) {
        SCOPED_TRACE(request.request_id);
        const Output& a = on_cpu.at(request.request_id, s);
        const Output& b = on_gpu.at(request.request_id, s);
        EXPECT_EQ(a.ids, b.ids);
        EXPECT_EQ(a.last.attention.pages_read, b.last.attention.pages_read);
        EXPECT_EQ(a.last.attention.bytes_read, b.last.attention.bytes_read);
        ASSERT_EQ(a.logprobs.size(), b.logprobs.size());
        for (size_t i = 0; i < a.logprobs.size(); ++i) ExpectNear(a.logprobs[i], b.logprobs[i]);
      }
    }
    const Output& out = on_gpu.at("greedy");
    EXPECT_LT(out.last.attention.pages_read, out.last.attention.pages_total);
    EXPECT_NE(on_gpu.at("drawn", 0).ids, on_gpu.at("drawn", 1).ids);
    greedy.push_back(out);
  }
  // Other pages would have shown: those of each policy do.
  for (size_t i = 1; i < greedy.size(); ++i) {
    EXPECT_GT(std::abs(greedy[i].logprobs.back().chosen.logprob - greedy[0].logprobs.back().chosen.logprob), 1e-3) << i;
  }
}

// By tokens that are written over: prompts shorter and longer than the 21 that are kept, beside requests that keep all, a
// fork, a preemption, and a random cache. Log-probabilities tell which tokens were seen.
void ExpectEvictingAsOnTheCpu(const std::string& evicting) {
  SCOPED_TRACE(evicting);
  EngineOptions options = Small(kStories);
  options.page_size = 4;
  options.max_num_batched_tokens = 12;
  options.max_num_seqs = 5;
  options.attention = {*AttentionSpec::Parse(evicting),
                       {},
                       *AttentionSpec::Parse("quest:token_budget=16:dense_layers=0")};
  options.kv_cache_bytes =
      34 * 4 * 5 * 2 * 4 * 8 * 4 * 3 / 2;  // 34 pages and quest's metadata: not enough for all at once
  std::vector<GenerationRequest> requests;
  const auto add = [&](const char* name, int length, int tokens, size_t policy) -> GenerationRequest& {
    requests.push_back(Greedy(Ids(length, static_cast<uint32_t>(length), 500), tokens));
    requests.back().request_id = name;
    requests.back().attention = options.attention[policy];
    requests.back().logprobs = 2;
    return requests.back();
  };
  add("quest", 20, 30, 2);
  add("long", 50, 14, 0).prompt_logprobs = 1;
  add("crosses", 9, 40, 0);
  add("dense", 30, 26, 1);
  GenerationRequest& drawn = add("drawn", 23, 10, 0);
  drawn.sampling.temperature = 0.8f;
  drawn.sampling.seed = 17;
  drawn.sampling.n = 2;
  Collector on_cpu, on_gpu;
  std::vector<Output> random;
  for (const bool gpu : {false, true}) {
    auto engine = MakeEngine(gpu ? OnGpu(options) : options);
    ASSERT_NE(engine, nullptr);
    for (const GenerationRequest& request : requests) {
      ASSERT_TRUE(engine->Submit(request, (gpu ? on_gpu : on_cpu).callback()).ok());
    }
    const Status status = engine->Run();
    ASSERT_TRUE(status.ok()) << status.ToString();
    EXPECT_GT(engine->Stats().preemptions, 0);
    Collector collector;
    const auto id = engine->SubmitRandomCache(60, 6, 3, options.attention[0], collector.callback());
    ASSERT_TRUE(id.ok()) << id.status().ToString();
    ASSERT_TRUE(engine->Run().ok());
    random.push_back(collector.at(*id));
  }
  EXPECT_EQ(random[0].ids, random[1].ids);
  for (const GenerationRequest& request : requests) {
    SCOPED_TRACE(request.request_id);
    for (int s = 0; s < request.sampling.n; ++s) {
      const Output& a = on_cpu.at(request.request_id, s);
      const Output& b = on_gpu.at(request.request_id, s);
      EXPECT_EQ(a.ids, b.ids);
      EXPECT_EQ(a.last.attention.pages_read, b.last.attention.pages_read);
      EXPECT_EQ(a.last.attention.pages_total, b.last.attention.pages_total);
      ASSERT_EQ(a.logprobs.size(), b.logprobs.size());
      for (size_t i = 0; i < a.logprobs.size(); ++i) ExpectNear(a.logprobs[i], b.logprobs[i]);
      ASSERT_EQ(a.prompt_logprobs.size(), b.prompt_logprobs.size());
      for (size_t i = 1; i < a.prompt_logprobs.size(); ++i) ExpectNear(*a.prompt_logprobs[i], *b.prompt_logprobs[i]);
    }
  }
}

TEST_F(GpuEngine, StreamingThatEvictsGivesWhatItGivesOnTheCpu) {
  ExpectEvictingAsOnTheCpu("streaming:token_budget=21:sink_tokens=3:evict=true");
}
TEST_F(GpuEngine, H2oThatEvictsGivesWhatItGivesOnTheCpu) { ExpectEvictingAsOnTheCpu("h2o:token_budget=21:evict=true"); }
TEST_F(GpuEngine, TovaThatEvictsGivesWhatItGivesOnTheCpu) {
  ExpectEvictingAsOnTheCpu("tova:token_budget=21:sink_tokens=3:evict=true");
}

// What the maps of all sequences hold, in the order of slots, layers, KV heads and slots.
struct Held {
  explicit Held(EngineImpl& engine) {
    for (int slot = 0; slot < engine.options().max_num_seqs; ++slot) {
      const SlotMap* maps = engine.slot_maps().Of(slot);
      for (int layer = 0; maps != nullptr && layer < engine.config().layers; ++layer) {
        const auto n = static_cast<size_t>(maps[layer].kv_heads * maps[layer].capacity);
        const auto fetch = [&]<typename T>(std::vector<T>& to, const T* from) {
          const Device device{engine.options().device == "cuda" ? DeviceKind::kCuda : DeviceKind::kCpu, 0};
          to.resize(to.size() + n);
          EXPECT_TRUE(CopyFromDevice(device, to.data() + to.size() - n, from, n * sizeof(T)).ok());
        };
        fetch(positions, maps[layer].positions);
        fetch(weights, maps[layer].weights);
      }
    }
  }
  std::vector<int32_t> positions;
  std::vector<float> weights;
};

// Step by step, of two policies with budgets of their own in one batch, to three times the budgets.
TEST_F(GpuEngine, EvictingSequencesKeepThePositionsThatTheyKeepOnTheCpu) {
  EngineOptions options = Small(kStories);
  options.page_size = 4;
  options.max_num_seqs = 4;
  options.max_num_batched_tokens = 40;
  options.attention = {*AttentionSpec::Parse("h2o:token_budget=22:evict=true"),
                       *AttentionSpec::Parse("tova:token_budget=19:sink_tokens=2:recent_tokens=3:evict=true")};
  auto cpu = EngineImpl::Create(options), gpu = EngineImpl::Create(OnGpu(options));
  ASSERT_TRUE(cpu.ok() && gpu.ok()) << gpu.status().ToString();
  Collector on_cpu, on_gpu;
  for (int i = 0; i < 4; ++i) {
    GenerationRequest request = Greedy(Ids(5 + 13 * i, 1 + static_cast<uint32_t>(i), 500), 62 - 13 * i);
    request.request_id = std::to_string(i);
    request.attention = options.attention[static_cast<size_t>(i % 2)];
    ASSERT_TRUE((*cpu)->Submit(request, on_cpu.callback()).ok());
    ASSERT_TRUE((*gpu)->Submit(request, on_gpu.callback()).ok());
  }
  int32_t latest = 0;
  size_t most = 0;
  while (true) {
    const auto more = (*cpu)->Step(), as_well = (*gpu)->Step();
    ASSERT_TRUE(more.ok() && as_well.ok()) << as_well.status().ToString();
    ASSERT_EQ(*more, *as_well);
    if (!*more) break;
    const Held want(**cpu), got(**gpu);
    ASSERT_EQ(got.positions, want.positions);
    for (size_t i = 0; i < want.weights.size(); ++i) ASSERT_NEAR(got.weights[i], want.weights[i], 1e-4f + 1e-4f * want.weights[i]);
    most = std::max(most, want.positions.size());
    for (const int32_t position : want.positions) latest = std::max(latest, position);
  }
  EXPECT_EQ(most, 5u * 4 * 2 * (22 + 19));  // layers, KV heads, sequences of each policy
  EXPECT_GE(latest, 65);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(on_gpu.at(std::to_string(i)).ids, on_cpu.at(std::to_string(i)).ids);
}

// Forked from one prefill in large chunks, against a prefill for each in small ones: bit for bit.
TEST_F(GpuEngine, ForksOfPoliciesThatRememberEqualSequencesThatRunAlone) {
  for (const char* text : {"h2o:token_budget=20:dense_layers=0", "swa:token_budget=20:dense_layers=0:rows=5",
                           "hierarchical:token_budget=20:dense_layers=0:reuse=5",
                           "sparq:token_budget=20:dense_layers=0:channels=4:v_mean=on"}) {
    SCOPED_TRACE(text);
    EngineOptions options = OnGpu(Small(kStories));
    options.page_size = 4;
    options.batch_invariant = true;
    options.attention = {AttentionSpec::Parse(text).value()};
    GenerationRequest request = Greedy(Ids(30, 1, 500), 12);
    request.logprobs = 1;
    ExpectForksAsAlone(options, request);
  }
}

// Prompts that end before the capacity, and behind it.
TEST_F(GpuEngine, ForksOfEvictingSequencesEqualSequencesThatRunAlone) {
  for (const char* text : {"h2o:token_budget=24:evict=true", "tova:token_budget=14:evict=true"}) {
    SCOPED_TRACE(text);
    EngineOptions options = OnGpu(Small(kStories));
    options.page_size = 4;
    options.batch_invariant = true;
    options.attention = {AttentionSpec::Parse(text).value()};
    GenerationRequest request = Greedy(Ids(18, 1, 500), 9);
    request.logprobs = 1;
    ExpectForksAsAlone(options, request);
  }
}

// 16-bit weights and cache: rows are rounded for the products there, so only near.
TEST_F(GpuEngine, SixteenBitModelsAgreeWithTheCpu) {
  for (const char* dtype : {"bfloat16", "float16"}) {
    EngineOptions options = Small(kStories);
    options.dtype = dtype;
    GenerationRequest request = Greedy({1, 403, 407, 261, 378, 432, 306, 383}, 1);
    request.prompt_logprobs = 0;
    std::vector<Output> outputs;
    for (const EngineOptions& o : {options, OnGpu(options)}) {
      auto engine = MakeEngine(o);
      ASSERT_NE(engine, nullptr);
      outputs.push_back(RunOne(*engine, request));
    }
    for (size_t i = 1; i < request.prompt.size(); ++i) {
      EXPECT_NEAR(outputs[0].prompt_logprobs[i]->chosen.logprob, outputs[1].prompt_logprobs[i]->chosen.logprob, 0.15)
          << dtype << " " << i;
    }
  }
}

// What the families differ in: norms around the blocks, norms of heads, biases, windows with a rope of their own, soft caps,
// GELU, scaled embeddings. Prompts longer than their windows of 16, and quest and h2o in the layers that have none.
TEST_F(GpuEngine, FamiliesAgreeWithTheCpu) {
  for (const char* model : {"golden/gemma2", "golden/gemma3", "golden/qwen2", "golden/qwen3"}) {
    EngineOptions options = Small(model);
    options.load_tokenizer = false;
    options.page_size = 4;
    options.attention = {{},
                         {"quest", {{"token_budget", "12"}, {"dense_layers", "0"}}},
                         {"h2o", {{"token_budget", "16"}, {"dense_layers", "0"}}}};
    std::vector<int32_t> prompt = {1};
    for (int32_t i = 0; i < 19; ++i) prompt.push_back(3 + i * 41 % 150);
    std::vector<std::vector<Output>> outputs(options.attention.size());
    for (const EngineOptions& o : {options, OnGpu(options)}) {
      auto engine = MakeEngine(o);
      ASSERT_NE(engine, nullptr);
      for (size_t policy = 0; policy < outputs.size(); ++policy) {
        GenerationRequest request = Greedy(prompt, 3);
        request.attention = options.attention[policy];
        if (policy == 0) request.prompt_logprobs = 2;
        request.logprobs = 3;
        outputs[policy].push_back(RunOne(*engine, request));
      }
    }
    SCOPED_TRACE(model);
    for (size_t i = 1; i < prompt.size(); ++i) {
      ExpectNear(*outputs[0][0].prompt_logprobs[i], *outputs[0][1].prompt_logprobs[i]);
    }
    for (size_t policy = 0; policy < outputs.size(); ++policy) {
      SCOPED_TRACE(options.attention[policy].ToString());
      const Output &a = outputs[policy][0], &b = outputs[policy][1];
      EXPECT_EQ(a.ids, b.ids);
      ASSERT_EQ(a.logprobs.size(), b.logprobs.size());
      for (size_t i = 0; i < a.logprobs.size(); ++i) ExpectNear(a.logprobs[i], b.logprobs[i]);
      EXPECT_EQ(a.last.attention.pages_read, b.last.attention.pages_read);
      if (policy > 0) {
        EXPECT_LT(b.last.attention.pages_read, b.last.attention.pages_total);
      }
    }
  }
}

TEST_F(GpuEngine, RandomCachesAndHistoriesAreThoseOfTheCpu) {
  for (const char* policy : {"quest", "h2o", "swa", "hierarchical:reuse=3", "hierarchical:metadata=int8:keep=0.5",
                             "sparq:level=token:v_mean=on"}) {
    SCOPED_TRACE(policy);
    EngineOptions options = Small(kStories);
    options.page_size = 4;
    options.attention = {*AttentionSpec::Parse(policy)};
    options.attention[0].options.insert({{"token_budget", "16"}, {"dense_layers", "1"}});
    std::vector<Output> outputs;
    for (const EngineOptions& o : {options, OnGpu(options)}) {
      auto engine = MakeEngine(o);
      ASSERT_NE(engine, nullptr);
      Collector collector;
      auto id = engine->SubmitRandomCache(150, 4, 3, {}, collector.callback());
      ASSERT_TRUE(id.ok()) << id.status().ToString();
      ASSERT_TRUE(engine->Run().ok());
      outputs.push_back(collector.at(*id));
    }
    EXPECT_EQ(outputs[0].ids, outputs[1].ids);
    EXPECT_EQ(outputs[0].last.attention.pages_read, outputs[1].last.attention.pages_read);
  }
}

// Ranks, threads here, that share the GPU, against one rank on it: dense, and policies with a small budget. Gives dense's
// tokens.
std::vector<int32_t> ExpectRanksAsOne(const char* model, int size, const std::vector<int32_t>& prompt, int tokens) {
  EngineOptions options = OnGpu(Small(model));
  options.load_tokenizer = false;
  options.share_gpu = true;
  options.page_size = 2;
  options.attention = {{},
                       {"quest", {{"token_budget", "8"}, {"dense_layers", "0"}}},
                       {"h2o", {{"token_budget", "8"}, {"dense_layers", "0"}}},
                       {"hierarchical", {{"token_budget", "8"}, {"dense_layers", "0"}, {"reuse", "3"}, {"metadata", "int8"}}},
                       {"sparq", {{"token_budget", "8"}, {"dense_layers", "0"}, {"v_mean", "on"}}},
                       {"h2o", {{"token_budget", "10"}, {"evict", "true"}}},
                       {"tova", {{"token_budget", "8"}, {"evict", "true"}}}};
  std::vector<std::vector<Output>> outputs;  // of one rank, of all
  for (const int n : {1, size}) {
    TestRanks ranks(n);
    {
      auto engine = MakeEngine(ranks.Options(options));
      EXPECT_NE(engine, nullptr);
      if (engine == nullptr) return {};
      EXPECT_EQ(engine->options().device, "cuda");
      std::vector<Output>& of = outputs.emplace_back();
      for (const AttentionSpec& attention : options.attention) {
        GenerationRequest request = Greedy(prompt, tokens);
        request.attention = attention;
        of.push_back(RunOne(*engine, request));
      }
    }
    for (const Status& end : ranks.Release()) EXPECT_TRUE(end.ok()) << end.ToString();
  }
  for (size_t i = 0; i < options.attention.size(); ++i) {
    SCOPED_TRACE(options.attention[i].ToString());
    const AttentionReads &one = outputs[0][i].last.attention, &many = outputs[1][i].last.attention;
    EXPECT_EQ(outputs[1][i].ids, outputs[0][i].ids) << size;
    EXPECT_EQ(many.pages_read, one.pages_read);
    EXPECT_EQ(many.bytes_read, one.bytes_read);
    EXPECT_EQ(many.pages_total, one.pages_total);
    const bool left_out = many.pages_read < many.pages_total;
    EXPECT_EQ(left_out, i != 0);
  }
  return outputs[1][0].ids;
}

void ExpectStoriesRanksAsOne(int size, int tokens) {
  const auto prompt = JsonInts(DataPath("stories260K/greedy_reference.json"), "prompt_ids");
  auto want = JsonInts(DataPath("stories260K/greedy_reference.json"), "greedy_ids");
  want.resize(static_cast<size_t>(tokens));
  EXPECT_EQ(ExpectRanksAsOne(kStories, size, prompt, tokens), want) << size;
}

TEST_F(GpuEngine, TwoRanksThatShareAGpuGiveTheTokensOfOne) { ExpectStoriesRanksAsOne(2, 12); }

// Four query heads on two KV heads: the fifth rank is there in the sums and gathers alone.
TEST_F(GpuEngine, ARankWithoutHeadsLeavesTheTokensOfOne) {
  ExpectRanksAsOne("golden/qwen3", 5, {1, 3, 44, 85, 126, 17, 58, 99, 140, 31, 72, 113, 4, 45, 86, 127}, 4);
}

// Twice as many as there are KV heads: they gather their group's queries on the GPU, and add up its attention mass.
TEST_F(SlowGpuEngine, EightRanksThatShareKvHeadsGiveTheTokensOfOne) { ExpectStoriesRanksAsOne(8, 16); }

TEST_F(SlowGpuEngine, TheRetrieverFindsThePassKeyWithAThirteenthOfThePages) {
  const auto prompt = JsonInts(DataPath("retriever-2m/greedy_reference.json"), "prompt_ids");
  const auto want = JsonInts(DataPath("retriever-2m/greedy_reference.json"), "greedy_ids");
  EngineOptions options = OnGpu(ModelOptions(kRetriever));
  options.kv_cache_bytes = 16 << 20;
  options.max_num_batched_tokens = 256;
  options.attention = {{}, {"quest", {{"token_budget", "128"}, {"dense_layers", "0"}}}};
  auto engine = MakeEngine(options);
  ASSERT_NE(engine, nullptr);
  EXPECT_EQ(RunOne(*engine, Greedy(prompt, static_cast<int>(want.size()))).ids, want);
  GenerationRequest quest = Greedy(prompt, 6);
  quest.attention = options.attention[1];
  const Output out = RunOne(*engine, quest);
  EXPECT_TRUE(std::equal(out.ids.begin(), out.ids.begin() + 5, want.begin()));
  EXPECT_LT(out.last.attention.pages_read * 5, out.last.attention.pages_total);
}

}  // namespace
}  // namespace quire

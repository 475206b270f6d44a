// What only the emulator's GPU can tell of an engine: waits, copies and memory counted, machines of any size and without a
// GPU, ranks that find too few.
#include <gtest/gtest.h>

#include <vector>

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

TEST(EmulatedGpuEngine, RefusesWhatItCannotDoWithASentence) {
  const auto refused = [](const EngineOptions& options) { return Engine::Create(options).status(); };
  EngineOptions options = OnGpu(Small(kStories));
  options.attention = {{}, {"sparq", {}}};
  Status status = refused(options);
  EXPECT_EQ(status.code(), StatusCode::kUnimplemented);
  EXPECT_NE(status.message().find("'sparq' has no CUDA kernels"), std::string::npos) << status.message();

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

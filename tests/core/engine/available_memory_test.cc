// The memory left, read from made-up /proc and /sys trees; and engines that ask for more than there is.
#include "core/engine/available_memory.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "core/engine/engine_plan.h"
#include "core/model/model_weights.h"
#include "core/model/weight_slices.h"
#include "tests/core/engine/engine_fixture.h"

namespace quire {
namespace {

class AvailableMemoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = ::testing::TempDir() + "/available_memory.XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    root_ = name;
    Write("/proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    8000 kB\nSwapFree: 1 kB\n");
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  void Write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }
  std::string root_;
};

constexpr size_t kKiB = 1024;

TEST_F(AvailableMemoryTest, WithoutGroupsItIsTheMachines) {
  EXPECT_EQ(AvailableMemory(root_), 8000 * kKiB);
  EXPECT_EQ(AvailableMemory(root_ + "/nowhere"), 0u);
  EXPECT_GT(AvailableMemory(), 0u);
}

TEST_F(AvailableMemoryTest, TheTightestGroupOfVersion2Counts) {
  Write("/proc/self/cgroup", "0::/outer/inner\n");
  Write("/sys/fs/cgroup/outer/inner/memory.max", "max\n");
  Write("/sys/fs/cgroup/outer/inner/memory.current", "1000\n");
  EXPECT_EQ(AvailableMemory(root_), 8000 * kKiB);
  Write("/sys/fs/cgroup/outer/memory.max", std::to_string(5000 * kKiB));
  Write("/sys/fs/cgroup/outer/memory.current", std::to_string(3000 * kKiB));
  EXPECT_EQ(AvailableMemory(root_), 2000 * kKiB);
  // Pages of files are given up first.
  Write("/sys/fs/cgroup/outer/memory.stat", "anon 5\nfile 900\ninactive_file " + std::to_string(400 * kKiB) +
                                                "\nactive_file " + std::to_string(100 * kKiB));
  EXPECT_EQ(AvailableMemory(root_), 2500 * kKiB);
  Write("/sys/fs/cgroup/outer/memory.current", std::to_string(6000 * kKiB));
  EXPECT_EQ(AvailableMemory(root_), 0u);
}

TEST_F(AvailableMemoryTest, Version1AndAContainersView) {
  // The path is the host's; the folder shows this container's group at its top.
  Write("/proc/self/cgroup", "12:cpu,cpuacct:/x\n5:memory:/docker/abc\n1:name=systemd:/x\n");
  Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", std::to_string(3000 * kKiB));
  Write("/sys/fs/cgroup/memory/memory.usage_in_bytes", std::to_string(1000 * kKiB));
  Write("/sys/fs/cgroup/memory/memory.stat", "inactive_file 7\ntotal_inactive_file " + std::to_string(200 * kKiB));
  EXPECT_EQ(AvailableMemory(root_), 2200 * kKiB);
  Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(AvailableMemory(root_), 8000 * kKiB);
}

TEST(EnginePlanMemory, MappedAndReadBytesAreThoseThatLoadingBorrowsAndReads) {
  for (const char* model : {"retriever-2m", "stories260K", "golden/llama"}) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      for (const auto& [tp, rank] : {std::pair{1, 0}, {2, 0}, {2, 1}, {3, 1}, {4, 3}}) {
        auto checkpoint = OpenCheckpoint(DataPath(model));
        ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().ToString();
        const ModelConfig config = checkpoint->config;
        const auto shard = ShardPlan::Create(NumbersOf(config), tp, rank);
        ASSERT_TRUE(shard.ok());
        const size_t mapped = MappedBytes(*checkpoint, *shard, dtype);
        const int64_t to_read = BytesToRead(*checkpoint, *shard);
        ThreadPool pool(1);
        Context ctx;
        ctx.pool = &pool;
        const auto weights = LoadWeights(ctx, *checkpoint, *shard, dtype);
        ASSERT_TRUE(weights.ok()) << weights.status().ToString();
        EXPECT_EQ(mapped, weights->bytes().mapped) << model << " " << DTypeName(dtype) << " tp " << tp;
        // What a rank reads is its slices, and can be told beforehand.
        EXPECT_EQ(to_read, weights->bytes_read) << model << " " << DTypeName(dtype) << " tp " << tp;
      }
    }
  }
}

TEST(EnginePlanMemory, MoreThanThereIsIsRefusedWithNumbers) {
  EnginePlan plan;
  plan.memory.weights = 600;
  plan.memory.scratch = 100;
  plan.memory.kv_cache = 250;
  plan.memory.kv_metadata = 50;
  EXPECT_TRUE(CheckMemory(plan, 0, 1000).ok());
  const Status refused = CheckMemory(plan, 0, 999);
  EXPECT_EQ(refused.code(), StatusCode::kResourceExhausted);
  for (const char* part : {"1000", "600", "100", "300", "999", "kv_cache_bytes", "max_num_batched_tokens"}) {
    EXPECT_NE(refused.message().find(part), std::string::npos) << part << ": " << refused.message();
  }
  EXPECT_TRUE(CheckMemory(plan, 600, 400).ok());  // read in place from the file
  EXPECT_TRUE(CheckMemory(plan, 0, 0).ok());      // unknown

  EngineOptions options = ModelOptions("stories260K");
  options.kv_cache_bytes = static_cast<int64_t>(AvailableMemory()) + (int64_t{1} << 30);
  const auto engine = Engine::Create(options);
  ASSERT_FALSE(engine.ok());
  EXPECT_EQ(engine.status().code(), StatusCode::kResourceExhausted);
  EXPECT_NE(engine.status().message().find("kv_cache_bytes"), std::string::npos) << engine.status().ToString();
  EXPECT_TRUE(PredictMemory(options).ok());  // the figures can be had all the same
}

}  // namespace
}  // namespace quire

// --device: what the program says on a machine without a GPU, and that it doesn't need one.
#include <gtest/gtest.h>

#include "core/base/device_memory.h"
#include "tests/launch/program.h"

namespace quire {
namespace {

std::vector<std::string> Generate(const std::string& ids, std::vector<std::string> more) {
  std::vector<std::string> arguments = {"generate", "--model", DataPath("stories260K"), "--token-ids-file", ids, "--max-tokens", "2"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

class DeviceFlag : public testing::Test {
 protected:
  void SetUp() override { ids_ = scratch_.Write("ids.json", "[1]"); }
  ScratchFolder scratch_;
  std::string ids_;
};

TEST_F(DeviceFlag, CudaWithoutAGpuSaysSoAndHowToRunOnTheCpu) {
  if (CudaDeviceCount() > 0) GTEST_SKIP() << "this machine has a GPU";
  for (const std::vector<std::string>& more : {std::vector<std::string>{}, {"-tp", "2"}}) {
    std::vector<std::string> arguments = Generate(ids_, {"--device", "cuda"});
    arguments.insert(arguments.end(), more.begin(), more.end());
    const ProgramResult result = RunQuire(arguments);
    EXPECT_EQ(result.exit_code, 1) << result.err;
    EXPECT_NE(result.err.find("quire: error: "), std::string::npos) << result.err;
    EXPECT_NE(result.err.find("--device cuda: "), std::string::npos) << result.err;
    EXPECT_NE(result.err.find("run on the CPU with --device cpu"), std::string::npos) << result.err;
    EXPECT_EQ(result.out, "");
  }
  const ProgramResult info = RunQuire({"info", "--model", DataPath("stories260K"), "--device", "cuda"});
  EXPECT_EQ(info.exit_code, 1) << info.out;
}

TEST_F(DeviceFlag, CpuAndAutoWork) {
  const ProgramResult cpu = RunQuire(Generate(ids_, {"--device", "cpu"}));
  EXPECT_EQ(cpu.exit_code, 0) << cpu.err;
  if (CudaDeviceCount() > 0) GTEST_SKIP() << "this machine has a GPU";
  const ProgramResult automatic = RunQuire(Generate(ids_, {"--device", "auto"}));
  EXPECT_EQ(automatic.exit_code, 0) << automatic.err;
  EXPECT_EQ(automatic.out, cpu.out);
}

TEST_F(DeviceFlag, BadValuesAreRefused) {
  for (const std::vector<std::string>& more :
       {std::vector<std::string>{"--device", "tpu"}, {"--gpu-memory-utilization", "0"}, {"--gpu-memory-utilization", "1.2"}}) {
    const ProgramResult result = RunQuire(Generate(ids_, more));
    EXPECT_NE(result.exit_code, 0) << more[1];
    EXPECT_NE(result.err.find(more[0].substr(2, 3)), std::string::npos) << result.err;
  }
}

}  // namespace
}  // namespace quire

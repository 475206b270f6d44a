// Progress on stderr: nothing of what is over within two seconds, and lines of what is not.
#include "launch/progress.h"

#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <thread>

namespace quire::launch {
namespace {

TEST(Progress, IsSilentForTwoSecondsAndThenSaysWhatAndHowFar) {
  testing::internal::CaptureStderr();
  {
    Progress progress("loading");
    progress.Update(0.1, "weights");
    EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
    testing::internal::CaptureStderr();
    std::this_thread::sleep_for(std::chrono::milliseconds(2100));
    progress.SetWhat("prefill");
    progress.Update(0.256, "512 of 2000 tokens");
    progress.Update(0.3, "600 of 2000 tokens");  // too soon after it
  }
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_EQ(said.find("quire: prefill 25%, 512 of 2000 tokens, "), 0u) << said;
  EXPECT_EQ(said.find("600"), said.npos) << said;
}

}  // namespace
}  // namespace quire::launch

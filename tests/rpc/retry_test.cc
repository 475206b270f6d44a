// When a client tries again: pauses that grow, for a time that begins with the first failure.
#include "rpc/retry.h"

#include <gtest/gtest.h>

namespace quire::rpc {
namespace {

TEST(Retry, PausesGrowAndEndWithTheTime) {
  Retry retry(3);
  double now = 100;
  for (const double pause : {0.05, 0.1, 0.2, 0.4, 0.8, 1.0}) {
    const auto given = retry.Pause(now);
    ASSERT_TRUE(given.has_value()) << now;
    EXPECT_DOUBLE_EQ(*given, pause);
    now += *given;
  }
  EXPECT_FALSE(retry.Pause(now).has_value());  // 2.55 s are over, and another second is too much
}

TEST(Retry, TheTimeBeginsWithTheFirstFailureAndAnewWhenSomethingHasCome) {
  Retry retry(1);
  EXPECT_TRUE(retry.Pause(1000).has_value());  // however long nothing came before
  EXPECT_FALSE(retry.Pause(1001).has_value());
  retry.Progress();
  const auto pause = retry.Pause(1010);
  ASSERT_TRUE(pause.has_value());
  EXPECT_DOUBLE_EQ(*pause, 0.05);
  EXPECT_FALSE(retry.Pause(1011).has_value());
}

TEST(Retry, NoTimeIsNoAttempt) { EXPECT_FALSE(Retry(0).Pause(5).has_value()); }

}  // namespace
}  // namespace quire::rpc

#include "core/base/histogram.h"

#include <gtest/gtest.h>

namespace quire {
namespace {

TEST(DurationHistogram, ABoundBelongsToTheBucketBelowIt) {
  DurationHistogram durations;
  EXPECT_EQ(durations.count(), 0);
  durations.Add(0);
  durations.Add(0.001);
  durations.Add(0.0011);
  durations.Add(0.5);
  durations.Add(500);
  durations.Add(501);
  EXPECT_EQ(durations.counts.front(), 2);
  EXPECT_EQ(durations.counts[1], 1);
  EXPECT_EQ(durations.counts[8], 1);  // (0.2, 0.5]
  EXPECT_EQ(durations.counts[durations.kBounds.size() - 1], 1);
  EXPECT_EQ(durations.counts.back(), 1);
  EXPECT_EQ(durations.count(), 6);
  EXPECT_DOUBLE_EQ(durations.sum, 1001.5021);
}

}  // namespace
}  // namespace quire

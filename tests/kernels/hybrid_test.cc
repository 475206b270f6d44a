// Hybrid: the choice of channels and signs, and its ends: all channels, and one whose query is NaN. Its lists against
// the reference's are in selection_grid_test.cc.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/kernels/selecting.h"

namespace quire {
namespace {

using namespace quire::testing;  // NOLINT: this file tests nothing else

TEST(Hybrid, ChannelsAreThoseOfTheWholeGroupAndSignsThoseOfItsSum) {
  PagedCache cache(DType::kF32, 1, 1, 4, 4, {20}, 1, true);
  cache.Fill(TwoThreads());
  const PageFormat& f = cache.table().format;
  auto* meta = static_cast<float*>(cache.pages().meta);
  const auto set = [&](int page, int channel, float min, float max) {
    float* group = meta + cache.table().group_ids[page / 16] * f.meta_group_stride;
    group[f.MetaOffset(0, channel, page % 16)] = min;
    group[f.MetaOffset(1, channel, page % 16)] = max;
  };
  for (int page = 0; page < 20; ++page) {
    for (int c = 0; c < 4; ++c) set(page, c, 0, 0);
  }
  set(3, 0, 0, 9);    // channel 0: Σ|q| = 3, the group's sum negative: its min counts, which is 0
  set(5, 0, -7, 0);   // so this one wins there
  set(9, 2, 0, 100);  // channel 2: Σ|q| = 2, left out when one channel is taken
  Step step(cache, 2, {0}, {20}, 2);
  step.q = {1, 0.5f, 1, 0, -2, 0.5f, 1, 0};
  step.p.q = step.q.data();
  const std::string spec = "hybrid:token_budget=3:sink_tokens=1:recent_tokens=1:channels=";
  EXPECT_EQ(Select(*Make(spec + "1", 1), step.p, 1).List(0), (std::vector<int32_t>{0, 5, 19}));
  EXPECT_EQ(Select(*Make(spec + "2", 1), step.p, 1).List(0), (std::vector<int32_t>{0, 9, 19}));
}

TEST(Hybrid, AllChannelsOfOneHeadAreQuestsBound) {
  PagedCache cache(DType::kF32, 16, 2, 64, 64, {5003}, 1, true);
  cache.Fill(TwoThreads());
  Step step(cache, 2, {0}, {5003}, 2);
  EXPECT_EQ(Select(*Make("hybrid:channels=64:token_budget=512", 16), step.p, 2).pages,
            Select(*Make("quest:token_budget=512", 16), step.p, 2).pages);
  EXPECT_NE(Select(*Make("hybrid:channels=8:token_budget=512", 16), step.p, 2).pages,
            Select(*Make("quest:token_budget=512", 16), step.p, 2).pages);
}

TEST(Hybrid, AChannelWhoseQueryIsNanIsNotRead) {
  PagedCache cache(DType::kBF16, 16, 1, 16, 16, {16 * 60}, 1, true);
  cache.Fill(TwoThreads());
  Step step(cache, 2, {0}, {16 * 60}, 2);
  const auto policy = Make("hybrid:channels=16:token_budget=160", 16);
  step.q[3] = step.q[16 + 3] = 0;
  const std::vector<int32_t> without = Select(*policy, step.p, 2).List(0);
  step.q[3] = std::nanf("");
  EXPECT_EQ(Select(*policy, step.p, 2).List(0), without);
}

}  // namespace
}  // namespace quire

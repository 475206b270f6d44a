// Quest: scores from metadata against scores from K itself, and how heads are put together. What holds for every page
// policy alike is in page_policies_test.cc, the lists on many shapes are in selection_grid_test.cc.
#include <gtest/gtest.h>

#include <tuple>

#include "kernels/cpu/quest_scores.h"
#include "kernels/reference/quest.h"
#include "tests/kernels/selecting.h"

namespace quire {
namespace {

using namespace quire::testing;  // NOLINT: this file tests nothing else

TEST(QuestScores, AgreeWithTheBoundsOfKItself) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const int page_size : {1, 3, 16}) {
      for (const auto& [q_heads, kv_heads, dim] : std::vector<std::tuple<int, int, int>>{{4, 1, 64}, {9, 3, 80}, {14, 2, 18}}) {
        PagedCache cache(dtype, page_size, kv_heads, dim, dim, {330}, 1, true);
        cache.Fill(TwoThreads());
        Step step(cache, q_heads, {0}, {330}, 2);
        for (const GroupReduce reduce : {GroupReduce::kMax, GroupReduce::kMean, GroupReduce::kSum}) {
          for (int h = 0; h < kv_heads; ++h) {
            const std::vector<double> expected = reference::QuestScores(step.p, 0, h, reduce);
            const PageFormat& f = cache.table().format;
            QuestScoreParams s;
            s.dtype = dtype;
            s.heads = q_heads / kv_heads;
            s.k_dim = dim;
            s.q = step.q.data() + h * s.heads * dim;
            s.meta = static_cast<const char*>(cache.pages().meta) + h * f.meta_head_stride * ElementSize(dtype);
            s.group_stride = f.meta_group_stride;
            s.group_ids = cache.table().group_ids;
            s.groups = (cache.Pages(0) + 15) / 16;
            s.reduce = reduce;
            std::vector<float> scores(static_cast<size_t>(s.groups) * 16);
            s.scores = scores.data();
            QuestScores(s);
            for (size_t i = 0; i < expected.size(); ++i) {
              // Sums of `dim` products of size about 2 in f32, over up to 7 heads.
              EXPECT_NEAR(scores[i], expected[i], 7 * dim * 2e-6) << i;
            }
          }
        }
      }
    }
  }
}

TEST(Quest, GroupReduceDecidesAmongHeads) {
  // Two heads look along opposite channels; max follows the stronger one, sum what both like.
  PagedCache cache(DType::kF32, 1, 1, 2, 2, {20}, 1, true);
  cache.Fill(TwoThreads());
  const PageFormat& f = cache.table().format;
  auto* meta = static_cast<float*>(cache.pages().meta);
  const auto set = [&](int page, float x, float y) {
    for (int which = 0; which < 2; ++which) {
      float* group = meta + cache.table().group_ids[page / 16] * f.meta_group_stride;
      group[f.MetaOffset(which, 0, page % 16)] = x;
      group[f.MetaOffset(which, 1, page % 16)] = y;
    }
  };
  for (int page = 0; page < 20; ++page) set(page, 0, 0);
  set(5, 10, 0);
  set(7, 6, 6);
  Step step(cache, 2, {0}, {20}, 2);
  step.q = {1, 0, 0, 1};
  step.p.q = step.q.data();
  const std::string spec = "quest:token_budget=3:sink_tokens=1:recent_tokens=1:group_reduce=";
  EXPECT_EQ(Select(*Make(spec + "max", 1), step.p, 1).List(0), (std::vector<int32_t>{0, 5, 19}));
  EXPECT_EQ(Select(*Make(spec + "sum", 1), step.p, 1).List(0), (std::vector<int32_t>{0, 7, 19}));
  EXPECT_EQ(Select(*Make(spec + "mean", 1), step.p, 1).List(0), (std::vector<int32_t>{0, 7, 19}));
}

TEST(QuestScores, ANanOfAnyHeadIsThePagesScore) {
  PagedCache cache(DType::kBF16, 16, 1, 64, 64, {900}, 3, true);
  cache.Fill(TwoThreads());
  for (const int heads : {1, 2, 4, 7}) {
    for (int spoiled = 0; spoiled < heads; ++spoiled) {
      std::vector<float> q = RandomFloats(static_cast<size_t>(heads) * 64, 4);
      q[static_cast<size_t>(spoiled) * 64 + 5] = std::nanf("");
      for (const GroupReduce reduce : {GroupReduce::kMax, GroupReduce::kMean, GroupReduce::kSum}) {
        std::vector<float> scores(16);
        QuestScoreParams s;
        s.dtype = DType::kBF16;
        s.q = q.data();
        s.heads = heads;
        s.k_dim = 64;
        s.meta = cache.pages().meta;
        s.group_stride = cache.table().format.meta_group_stride;
        s.group_ids = cache.table().group_ids;
        s.groups = 1;
        s.reduce = reduce;
        s.scores = scores.data();
        QuestScores(s);
        for (const float score : scores) EXPECT_TRUE(std::isnan(score)) << heads << " heads, head " << spoiled;
      }
    }
  }
}

}  // namespace
}  // namespace quire

// Hierarchical quest: group bounds against K itself, quest's pages at keep = 1, and what groups can't hide. Its lists
// against the reference's are in selection_grid_test.cc.
#include "kernels/reference/hierarchical.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <tuple>
#include <utility>

#include "kernels/cpu/code_scores.h"
#include "kernels/cpu/group_scores.h"
#include "kernels/reference/reuse.h"
#include "tests/kernels/selecting.h"

namespace quire {
namespace {

using namespace quire::testing;  // NOLINT: this file tests nothing else

std::vector<float> ScoresOf(const PagedCache& cache, const Step& step, int head, GroupReduce reduce) {
  const PageFormat& f = cache.table().format;
  GroupScoreParams s;
  s.dtype = f.dtype;
  s.heads = step.p.q_heads / f.kv_heads;
  s.k_dim = f.k_dim;
  s.q = step.q.data() + head * s.heads * f.k_dim;
  s.over = static_cast<const char*>(cache.pages().over) + head * f.over_head_stride * ElementSize(f.dtype);
  s.group_stride = f.over_group_stride;
  s.group_ids = cache.table().group_ids;
  s.groups = (cache.Pages(0) + 15) / 16;
  s.reduce = reduce;
  std::vector<float> scores(static_cast<size_t>(s.groups));
  s.scores = scores.data();
  GroupScores(s);
  return scores;
}

TEST(GroupScores, AgreeWithTheBoundsOfKItself) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const int page_size : {1, 3, 16, 32}) {  // and by turns every reduction
      for (const auto& [q_heads, kv_heads, dim] :
           std::vector<std::tuple<int, int, int>>{{4, 1, 64}, {9, 3, 80}, {14, 2, 18}, {5, 5, 2}}) {
        PagedCache cache(dtype, page_size, kv_heads, dim, dim, {830}, 1, true);
        cache.Fill(TwoThreads());
        Step step(cache, q_heads, {0}, {830}, 2);
        const GroupReduce reduce = static_cast<GroupReduce>(page_size % 3);
        for (int h = 0; h < kv_heads; h += 2) {
          const std::vector<double> expected = reference::GroupScores(step.p, 0, h, reduce);
          const std::vector<float> scores = ScoresOf(cache, step, h, reduce);
          ASSERT_EQ(scores.size(), expected.size());
          for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(scores[i], expected[i], 7 * dim * 3e-6) << i;
        }
      }
    }
  }
}

TEST(GroupScores, NanOfAnyHeadAndGroupsThatAreGoneScoreNan) {
  PagedCache cache(DType::kBF16, 16, 1, 32, 32, {16 * 16 * 6}, 1, true);
  cache.Fill(TwoThreads());
  for (int head = 0; head < 3; ++head) {
    Step step(cache, 3, {0}, {16 * 16 * 6}, 2);
    step.q[static_cast<size_t>(head * 32 + 7)] = std::nanf("");
    for (const float score : ScoresOf(cache, step, 0, GroupReduce::kMax)) EXPECT_TRUE(std::isnan(score));
  }
  Step step(cache, 3, {0}, {16 * 16 * 6}, 2);
  const std::vector<float> scores = ScoresOf(cache, step, 0, GroupReduce::kMax);
  const_cast<int32_t*>(cache.table().group_ids)[2] = -1;
  const std::vector<float> without = ScoresOf(cache, step, 0, GroupReduce::kMax);
  EXPECT_TRUE(std::isnan(without[2]));
  for (const size_t i : {0, 1, 3, 4, 5}) EXPECT_EQ(without[i], scores[i]);
}

// Scores of all groups' pages, exact and by codes.
std::pair<std::vector<float>, std::vector<float>> PageScores(const PagedCache& cache, const Step& step, int head,
                                                             GroupReduce reduce) {
  const PageFormat& f = cache.table().format;
  QuestScoreParams s;
  s.dtype = f.dtype;
  s.heads = step.p.q_heads / f.kv_heads;
  s.k_dim = f.k_dim;
  s.q = step.q.data() + head * s.heads * f.k_dim;
  s.meta = static_cast<const char*>(cache.pages().meta) + head * f.meta_head_stride * ElementSize(f.dtype);
  s.group_stride = f.meta_group_stride;
  s.group_ids = cache.table().group_ids;
  s.groups = cache.Pages(0) / 16;
  s.reduce = reduce;
  std::vector<float> exact(static_cast<size_t>(s.groups) * 16), coded(exact.size());
  s.scores = exact.data();
  QuestScores(s);
  s.scores = coded.data();
  CodeScores({s, f, cache.pages().codes + head * f.meta_head_stride,
              static_cast<const char*>(cache.pages().over) + head * f.over_head_stride * ElementSize(f.dtype)});
  return {exact, coded};
}

TEST(CodeScores, AreBoundsAndNoLooserThanAStepAChannel) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const int page_size : {1, 3, 16}) {  // and by turns every reduction
      for (const auto& [q_heads, kv_heads, dim] :
           std::vector<std::tuple<int, int, int>>{{4, 1, 64}, {9, 3, 80}, {14, 2, 18}, {5, 5, 2}, {3, 1, 300}}) {
        PagedCache cache(dtype, page_size, kv_heads, dim, dim, {16 * 7 * page_size}, 1, true);
        cache.Fill(TwoThreads());
        Step step(cache, q_heads, {0}, {16 * 7 * page_size}, 2);
        const GroupReduce reduce = static_cast<GroupReduce>(page_size % 3);
        const PageFormat& f = cache.table().format;
        for (int h = 0; h < kv_heads; h += 2) {
          const auto [exact, coded] = PageScores(cache, step, h, reduce);
          const int heads = q_heads / kv_heads;
          double looser = 0;  // of the worst group and head: a step either way
          VisitFloatDType(dtype, [&]<typename T>(T) {
            for (int g = 0; g < 7; ++g) {
              const T* over = static_cast<const T*>(cache.pages().over) +
                              cache.table().group_ids[g] * f.over_group_stride + h * f.over_head_stride;
              double all = 0;
              for (int head = 0; head < heads; ++head) {
                double one = 0;
                for (int c = 0; c < dim; ++c) {
                  one += std::abs(step.q[static_cast<size_t>((h * heads + head) * dim + c)]) *
                         CodeStep(ToFloat(over[f.OverOffset(0, c)]), ToFloat(over[f.OverOffset(1, c)]));
                }
                all = reduce == GroupReduce::kSum ? all + one : std::max(all, one);
              }
              looser = std::max(looser, all);
            }
          });
          const double rounding = 14 * dim * 3e-6;
          int higher = 0;
          for (size_t i = 0; i < exact.size(); ++i) {
            EXPECT_GE(coded[i], exact[i] - rounding) << i;
            EXPECT_LE(coded[i], exact[i] + looser + rounding) << i;
            higher += coded[i] > exact[i] + rounding;
          }
          if (page_size > 1) {
            EXPECT_GT(higher, 0);
          }
        }
      }
    }
  }
}

TEST(CodeScores, GroupsThatHaveNoCodesAreScoredExactly) {
  PagedCache cache(DType::kBF16, 4, 1, 80, 80, {16 * 4 * 5}, 1, true);
  cache.Fill(TwoThreads());
  const PageFormat& f = cache.table().format;
  Step step(cache, 3, {0}, {16 * 4 * 5}, 2);
  const auto before = PageScores(cache, step, 0, GroupReduce::kMax);
  // An infinity in group 1's range and a NaN among group 3's pages, in the last block of channels.
  static_cast<BF16*>(cache.pages().over)[cache.table().group_ids[1] * f.over_group_stride + f.OverOffset(1, 70)] =
      ToBF16(std::numeric_limits<float>::infinity());
  static_cast<BF16*>(cache.pages().meta)[cache.table().group_ids[3] * f.meta_group_stride + f.MetaOffset(1, 65, 9)] =
      ToBF16(std::nanf(""));
  cache.Encode();
  for (int g = 0; g < 5; ++g) {
    EXPECT_EQ(HasCodes(cache.pages().codes + cache.table().group_ids[g] * f.meta_group_stride, f), g != 1 && g != 3);
  }
  const auto [exact, coded] = PageScores(cache, step, 0, GroupReduce::kMax);
  for (size_t i = 0; i < exact.size(); ++i) {
    if (i == 3 * 16 + 9) {
      EXPECT_TRUE(std::isnan(coded[i]));
    } else if (i / 16 == 1 || i / 16 == 3) {
      EXPECT_EQ(coded[i], exact[i]) << i;
    } else {
      EXPECT_EQ(coded[i], before.second[i]) << i;
    }
  }
}

// A group whose channels don't vary has codes, too.
TEST(CodeScores, OfEqualKeysAreExact) {
  PagedCache cache(DType::kBF16, 2, 1, 32, 32, {16 * 2 * 2}, 1, true);
  cache.Fill(TwoThreads());
  const PageFormat& f = cache.table().format;
  std::fill_n(static_cast<BF16*>(cache.pages().meta), 3 * f.meta_group_stride, ToBF16(-1.5f));
  std::fill_n(static_cast<BF16*>(cache.pages().over), 3 * f.over_group_stride, ToBF16(-1.5f));
  cache.Encode();
  Step step(cache, 4, {0}, {16 * 2 * 2}, 2);
  const auto [exact, coded] = PageScores(cache, step, 0, GroupReduce::kMax);
  for (size_t i = 0; i < exact.size(); ++i) EXPECT_NEAR(coded[i], exact[i], 1e-4) << i;
}

TEST(Hierarchical, MetadataInInt8ListsNearlyThePagesOfTheCaches) {
  PagedCache cache(DType::kBF16, 16, 2, 64, 64, {16 * 16 * 20 + 5}, 1, true);
  cache.Fill(TwoThreads());
  Step step(cache, 8, {0}, {16 * 16 * 20 + 5}, 2);
  const auto exact = Select(*Make("hierarchical:token_budget=512", 16), step.p, 2);
  const auto coded = Select(*Make("hierarchical:token_budget=512:metadata=int8", 16), step.p, 2);
  for (size_t h = 0; h < 2; ++h) {
    const std::vector<int32_t> a = exact.List(h), b = coded.List(h);
    ASSERT_EQ(a.size(), b.size());
    std::vector<int32_t> both;
    std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(both));
    EXPECT_GE(both.size(), a.size() - 3);
  }
  // It does read them: with the codes spoilt it chooses otherwise.
  std::fill_n(cache.pages().codes, 22 * cache.table().format.meta_group_stride, uint8_t{7});
  EXPECT_NE(Select(*Make("hierarchical:token_budget=512:metadata=int8", 16), step.p, 2).List(0), coded.List(0));
  EXPECT_EQ(Select(*Make("hierarchical:token_budget=512", 16), step.p, 2).List(0), exact.List(0));
}

TEST(Hierarchical, KeepOfOneIsQuestOnEveryDtypeAndReduction) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    PagedCache cache(dtype, 16, 2, 64, 64, {2503, 1300}, 1, true);
    cache.Fill(TwoThreads());
    Step step(cache, 8, {0, 1}, {2503, 1300}, 2);
    for (const char* reduce : {"max", "mean", "sum"}) {
      const std::string rest = std::string("token_budget=256:group_reduce=") + reduce;
      const Selected quest = Select(*Make("quest:" + rest, 16), step.p, 2);
      EXPECT_EQ(Select(*Make("hierarchical:keep=1:" + rest, 16), step.p, 2).pages, quest.pages);
      // A quarter of 10 groups is not all of what quest sees; random keys make that show.
      EXPECT_NE(Select(*Make("hierarchical:" + rest, 16), step.p, 2).pages, quest.pages);
    }
  }
}

TEST(Hierarchical, APageFarAboveOthersIsFoundInWhicheverGroup) {
  PagedCache cache(DType::kBF16, 16, 1, 32, 32, {16 * 16 * 12 + 3}, 1, true);
  cache.Fill(TwoThreads());
  const PageFormat& f = cache.table().format;
  Step step(cache, 2, {0}, {16 * 16 * 12 + 3}, 2);
  for (const int page : {1, 15, 16, 100, 175, 190}) {
    // Both queries look along channel 5; only this page has a large key there.
    std::fill(step.q.begin(), step.q.end(), 0.0f);
    step.q[5] = step.q[32 + 5] = 1;
    auto* meta = static_cast<BF16*>(cache.pages().meta);
    auto* over = static_cast<BF16*>(cache.pages().over);
    const int64_t group = cache.table().group_ids[page / 16];
    BF16& page_max = meta[group * f.meta_group_stride + f.MetaOffset(1, 5, page % 16)];
    BF16& group_max = over[group * f.over_group_stride + f.OverOffset(1, 5)];
    const BF16 page_was = std::exchange(page_max, ToBF16(50.0f)), group_was = std::exchange(group_max, ToBF16(50.0f));
    const std::vector<int32_t> list = Select(*Make("hierarchical:token_budget=64:keep=0.001", 16), step.p, 2).List(0);
    EXPECT_EQ(list.size(), 4u);
    EXPECT_TRUE(std::find(list.begin(), list.end(), page) != list.end()) << page;
    page_max = page_was;
    group_max = group_was;
  }
}

// Steps of one sequence from `begin` to `end` tokens, with a history that lives as long.
struct ReuseRun {
  ReuseRun(const SelectParams& params, const AttentionPolicy& policy) : p(params), policy(policy) {
    values.assign(static_cast<size_t>(p.table.format.kv_heads) * 4096, 0.0f);
  }
  Selected At(int length) {
    const PageHistory history{values.data(), 4096, p.table.format.kv_heads,
                              (length + p.table.format.page_size - 1) / p.table.format.page_size, 1};
    const std::vector<int32_t> lengths = {length};
    p.row_len = lengths.data();
    p.history = &history;
    return Select(policy, p, 2);
  }
  SelectParams p;
  const AttentionPolicy& policy;
  std::vector<float> values;
};

TEST(Reuse, PagesAreThoseOfTheLastPositionThatTheStepsDivideAndAllBornSince) {
  for (const int page_size : {1, 3, 16}) {
    for (const int steps : {2, 4, 7}) {
      const int longest = 60 * page_size + 40, begin = 50 * page_size + 1;
      PagedCache cache(DType::kF32, page_size, 2, 16, 16, {longest}, 1, true);
      cache.Fill(TwoThreads());
      Step step(cache, 4, {0}, {longest}, 2);
      const std::string spec = "hierarchical:keep=0.3:token_budget=" + std::to_string(20 * page_size);
      const auto every = Make(spec, page_size), some = Make(spec + ":reuse=" + std::to_string(steps), page_size);
      EXPECT_EQ(some->Declare().history, 1);
      EXPECT_FALSE(some->Declare().mass);
      ReuseRun run(step.p, *some);
      reference::Reuse expected[2] = {reference::Reuse(steps), reference::Reuse(steps)};
      int reused = 0;
      for (int length = begin; length <= longest; ++length) {
        // A query of its own at each step.
        const std::vector<float> q = RandomFloats(4 * 16, static_cast<uint64_t>(length));
        step.p.q = run.p.q = q.data();
        const std::vector<int32_t> lengths = {length};
        step.p.row_len = lengths.data();
        const Selected got = run.At(length), fresh = Select(*every, step.p, 1);
        for (size_t head = 0; head < 2; ++head) {
          EXPECT_EQ(got.List(head), expected[head].List(length, page_size, fresh.List(head)))
              << "length " << length << " KV head " << head;
          reused += got.List(head) != fresh.List(head);
          EXPECT_LE(got.counts[head], some->MaxPages(length, page_size));
        }
      }
      EXPECT_GT(reused, 10);
    }
  }
}

// Rows that select and rows that don't in one batch, with a row that has just begun.
TEST(Reuse, RowsOfABatchGoTheirOwnWays) {
  PagedCache cache(DType::kF32, 4, 2, 16, 16, {300, 302, 300, 200}, 1, true);
  cache.Fill(TwoThreads());
  const auto policy = Make("hierarchical:token_budget=64:reuse=4", 4);
  Step batch(cache, 4, {0, 1, 2, 3}, {300, 302, 300, 201 - 1}, 2);
  std::vector<std::vector<float>> values(4, std::vector<float>(2 * 100));
  const auto histories = [&](std::vector<std::vector<float>>& v, const std::vector<int>& lengths) {
    std::vector<PageHistory> h;
    for (size_t i = 0; i < v.size(); ++i) h.push_back({v[i].data(), 100, 2, (lengths[i] + 3) / 4, 1});
    return h;
  };
  // Rows 0 and 1 have selected before, at lengths that 4 divides or as their first; the others have not.
  const std::vector<int> before = {298, 301, 0, 0}, now = {300, 302, 300, 200};
  const auto alone = [&](std::vector<std::vector<float>>& v, int row, int length) {
    Step one(cache, 4, {row}, {length}, 2);
    one.p.q = batch.q.data() + row * batch.p.q_stride;
    const std::vector<PageHistory> h = {{v[static_cast<size_t>(row)].data(), 100, 2, (length + 3) / 4, 1}};
    one.p.history = h.data();
    return Select(*policy, one.p, 1);
  };
  for (int row = 0; row < 2; ++row) alone(values, row, before[static_cast<size_t>(row)]);
  auto copy = values;
  const auto h = histories(values, now);
  batch.p.history = h.data();
  const Selected all = Select(*policy, batch.p, 2);
  for (int row = 0; row < 4; ++row) {
    const Selected one = alone(copy, row, now[static_cast<size_t>(row)]);
    for (size_t head = 0; head < 2; ++head) {
      EXPECT_EQ(all.List(static_cast<size_t>(row) * 2 + head), one.List(head)) << row;
    }
  }
  EXPECT_EQ(values, copy);
}

}  // namespace
}  // namespace quire

// Quest: scores from metadata against scores from K itself, and the rules of a selection (forced pages, budget, ties, one
// set per KV head) on many shapes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "kernels/cpu/quest_scores.h"
#include "kernels/reference/quest.h"
#include "kernels/selection/policy.h"
#include "tests/kernels/paged_cache.h"
#include "tests/kernels/pairwise.h"

namespace quire {
namespace {

using testing::PagedCache;
using testing::RandomFloats;

struct Selected {
  std::vector<int32_t> pages, counts;
  SelectionView view;
  std::vector<int32_t> List(size_t list) const {
    const auto begin = pages.begin() + static_cast<int64_t>(list) * view.max_pages;
    return {begin, begin + counts[list]};
  }
};

std::unique_ptr<AttentionPolicy> Make(const std::string& spec, int page_size) {
  auto parsed = AttentionSpec::Parse(spec);
  EXPECT_TRUE(parsed.ok()) << parsed.status().ToString();
  auto policy = MakePolicy(*parsed, page_size);
  EXPECT_TRUE(policy.ok()) << policy.status().ToString();
  return std::move(policy).value();
}

Selected Select(const AttentionPolicy& policy, const SelectParams& p, int threads) {
  ThreadPool pool(threads);
  Context ctx;
  ctx.pool = &pool;
  int longest = 0;
  for (int r = 0; r < p.rows; ++r) longest = std::max(longest, p.row_len[r]);
  Selected s;
  s.view.max_pages = policy.MaxPages(longest, p.table.format.page_size);
  s.pages.assign(static_cast<size_t>(p.rows * p.table.format.kv_heads * s.view.max_pages), -7);
  s.counts.assign(static_cast<size_t>(p.rows * p.table.format.kv_heads), -7);
  s.view.pages = s.pages.data();
  s.view.counts = s.counts.data();
  auto workspace = Buffer::Create(policy.SelectWorkspace(p));
  EXPECT_TRUE(workspace.ok());
  if (workspace->size() > 0) std::memset(workspace->data(), 0xff, workspace->size());
  policy.Select(ctx, p, s.view, workspace->data());
  return s;
}

struct Step {
  Step(PagedCache& cache, int q_heads, std::vector<int32_t> row_seq, std::vector<int32_t> row_len, uint64_t seed)
      : seq(std::move(row_seq)), len(std::move(row_len)) {
    p.q_stride = q_heads * cache.table().format.k_dim;
    q = RandomFloats(seq.size() * static_cast<size_t>(p.q_stride), seed);
    p.q = q.data();
    p.rows = static_cast<int>(seq.size());
    p.q_heads = q_heads;
    p.row_seq = seq.data();
    p.row_len = len.data();
    p.layer = 9;
    p.pages = cache.pages();
    p.table = cache.table();
  }
  std::vector<int32_t> seq, len;
  std::vector<float> q;
  SelectParams p;
};

Context TwoThreads() {
  static ThreadPool pool(2);
  Context ctx;
  ctx.pool = &pool;
  return ctx;
}

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

// Checks one list against the rules, given the reference's scores.
void CheckList(const std::vector<int32_t>& list, const std::vector<double>& scores, int length, int page_size, int budget,
               int sinks, int recent, double slack) {
  const int pages = (length + page_size - 1) / page_size;
  ASSERT_EQ(static_cast<int>(list.size()), std::min(pages, budget));
  ASSERT_TRUE(std::is_sorted(list.begin(), list.end()));
  const std::set<int32_t> chosen(list.begin(), list.end());
  ASSERT_EQ(chosen.size(), list.size());
  for (int page = 0; page < std::min(sinks, pages); ++page) EXPECT_TRUE(chosen.contains(page)) << "sink " << page;
  const int first_recent = std::max(0, length / page_size - recent);
  for (int page = first_recent; page < pages; ++page) EXPECT_TRUE(chosen.contains(page)) << "recent " << page;
  // Nothing free that was left out scores above the least of what was taken (rounding aside).
  double least = std::numeric_limits<double>::infinity();
  for (int page = sinks; page < first_recent; ++page) {
    if (chosen.contains(page)) least = std::min(least, scores[static_cast<size_t>(page)]);
  }
  for (int page = sinks; page < first_recent; ++page) {
    if (!chosen.contains(page)) {
      EXPECT_LE(scores[static_cast<size_t>(page)], least + slack) << page;
    }
  }
}

void RunGrid(const std::vector<int>& lengths) {
  const std::vector<int> pages{1, 3, 7, 16, 32, 64}, budgets{4, 16, 64};
  const std::vector<int> dims{64, 80, 96, 128, 256};
  const std::vector<std::pair<int, int>> heads{{32, 32}, {32, 8}, {9, 3}, {8, 1}};
  const std::vector<int> batches{1, 3, 17};
  const std::vector<DType> dtypes{DType::kF32, DType::kBF16, DType::kF16};
  uint64_t seed = 1;
  for (const std::vector<int>& r : testing::AllPairs({static_cast<int>(lengths.size()), 6, 3, 5, 4, 3, 3})) {
    const auto at = [&](const auto& values, size_t i) { return values[static_cast<size_t>(r[i])]; };
    const int n = at(lengths, 0), page_size = at(pages, 1), budget = at(budgets, 2), dim = at(dims, 3);
    const auto [q_heads, kv_heads] = at(heads, 4);
    const int rows = at(batches, 5);
    std::vector<int> lens{n};
    std::vector<int32_t> seq{0};
    for (int i = 1; i < rows; ++i) {
      lens.push_back(std::max(1, std::min(n, 300) - 7 * i));
      seq.push_back(i);
    }
    SCOPED_TRACE(::testing::Message() << "n " << n << " page " << page_size << " budget " << budget << " d " << dim << " heads "
                                      << q_heads << "/" << kv_heads << " batch " << rows << " seed " << seed);
    PagedCache cache(at(dtypes, 6), page_size, kv_heads, dim, dim, lens, seed, true);
    cache.Fill(TwoThreads());
    Step step(cache, q_heads, seq, {lens.begin(), lens.end()}, seed++);
    const auto policy = Make("quest:token_budget=" + std::to_string(budget * page_size), page_size);
    const Selected s = Select(*policy, step.p, 2);
    for (int row = 0; row < rows; row += 4) {
      for (int h = 0; h < kv_heads; h += 3) {
        CheckList(s.List(static_cast<size_t>(row * kv_heads + h)), reference::QuestScores(step.p, row, h, GroupReduce::kMax),
                  lens[static_cast<size_t>(row)], page_size, budget, 1, 1, dim * 2e-6);
      }
    }
  }
}

TEST(Quest, SelectionsKeepTheRulesOnShortLengths) { RunGrid({1, 17, 127, 400}); }
TEST(SlowQuest, SelectionsKeepTheRulesOnTheWholeGrid) { RunGrid({1, 15, 16, 17, 63, 127, 1110, 4099, 8192, 28837}); }

TEST(Quest, BitsDependNeitherOnThreadsNorBatchNorPhysicalPages) {
  PagedCache cache(DType::kBF16, 16, 2, 64, 64, {5000, 3000}, 1, true);
  cache.Fill(TwoThreads());
  const auto policy = Make("quest:token_budget=512:dense_layers=0", 16);
  Step step(cache, 8, {0, 1}, {5000, 3000}, 2);
  const Selected base = Select(*policy, step.p, 1);
  for (const int threads : {2, 3}) EXPECT_EQ(Select(*policy, step.p, threads).pages, base.pages);
  Step alone(cache, 8, {1}, {3000}, 2);
  alone.q.assign(step.q.begin() + 512, step.q.end());
  alone.p.q = alone.q.data();
  const Selected one = Select(*policy, alone.p, 2);
  for (size_t h = 0; h < 2; ++h) EXPECT_EQ(one.List(h), base.List(2 + h));
  EXPECT_NE(base.List(0), base.List(1));  // one set per KV head
}

TEST(Quest, ColumnsPastTheLastPageAndMetadataOfOthersNeverCount) {
  PagedCache cache(DType::kBF16, 16, 1, 16, 16, {16 * 40}, 1, true);
  cache.Fill(TwoThreads());
  // A truncated sequence: 35 pages and a bit, with the later columns still holding large bounds.
  const PageFormat& f = cache.table().format;
  auto* meta = static_cast<BF16*>(cache.pages().meta);
  const int64_t group = cache.table().group_ids[2] * f.meta_group_stride;
  for (int which = 0; which < 2; ++which) {
    for (int c = 0; c < 16; ++c) {
      for (int column = 4; column < 16; ++column) {
        meta[group + f.MetaOffset(which, c, column)] = ToBF16(which == 0 ? -1e6f : 1e6f);
      }
    }
  }
  const auto policy = Make("quest:token_budget=128", 16);
  Step step(cache, 2, {0}, {16 * 35 + 3}, 2);
  const std::vector<int32_t> list = Select(*policy, step.p, 1).List(0);
  EXPECT_EQ(list.size(), 8u);
  EXPECT_EQ(list.back(), 35);
  EXPECT_EQ(list[6], 34);
}

TEST(Quest, FreedPagesAndNanMetadataAreNeverChosen) {
  PagedCache cache(DType::kF32, 16, 1, 16, 16, {16 * 50}, 1, true);
  cache.Fill(TwoThreads());
  for (int page = 0; page < 10; ++page) cache.PageId(0, page) = -1;
  const PageFormat& f = cache.table().format;
  auto* meta = static_cast<float*>(cache.pages().meta);
  meta[cache.table().group_ids[1] * f.meta_group_stride + f.MetaOffset(0, 3, 4)] = std::nanf("");
  meta[cache.table().group_ids[1] * f.meta_group_stride + f.MetaOffset(1, 3, 4)] = std::nanf("");
  const auto policy = Make("quest:token_budget=" + std::to_string(16 * 38), 16);
  Step step(cache, 2, {0}, {16 * 50}, 2);
  const std::vector<int32_t> list = Select(*policy, step.p, 2).List(0);
  for (const int32_t page : list) {
    EXPECT_GE(page, 10);
    EXPECT_NE(page, 20);
  }
  EXPECT_GE(list.size(), 36u);
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

}  // namespace
}  // namespace quire

// The policies' lists against their references' on an all-pairs table of shapes: all policies on the same caches, since
// it is these that take the time. One long row, and rows of up to 300 tokens beside it.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>
#include <utility>

#include "kernels/reference/hierarchical.h"
#include "kernels/reference/hybrid.h"
#include "kernels/reference/sparq.h"
#include "tests/kernels/pairwise.h"
#include "tests/kernels/selecting.h"

namespace quire {
namespace {

using namespace quire::testing;  // NOLINT: this file tests nothing else

struct Case {
  DType dtype;
  int page_size, budget, dim, q_heads, kv_heads;  // budget: pages
  std::vector<int> lens;                          // a row each
  double keep;                                    // of hierarchical
  int channels;                                   // of hybrid and sparq; 0: none given
  GroupReduce reduce;
  uint64_t seed;

  std::string Spec(const std::string& name) const {
    static const char* const kNames[] = {"max", "mean", "sum"};
    return Budget(name) + ":group_reduce=" + kNames[static_cast<int>(reduce)];
  }
  std::string Budget(const std::string& name) const {
    return name + ":token_budget=" + std::to_string(budget * page_size);
  }
  // Of sums of `dim` products of size about 1 in f32, over the query group.
  double Slack() const { return q_heads / kv_heads * dim * 2e-6; }
};

// Calls check(row, KV head, its list) for the first and the last of both: references are slow.
template <typename Check>
void ForLists(const Case& c, const Selected& s, Check&& check) {
  const int rows = static_cast<int>(c.lens.size());
  for (const int row : std::set<int>{0, rows - 1}) {
    for (const int h : std::set<int>{0, c.kv_heads - 1}) {
      check(row, h, s.List(static_cast<size_t>(row * c.kv_heads + h)));
    }
  }
}

// Checks one list against the rules, given the reference's scores.
void CheckList(const std::vector<int32_t>& list, const std::vector<double>& scores, int length, int page_size,
               int budget, int sinks, int recent, double slack) {
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

void CheckQuest(const Case& c, const Step& step) {
  const Selected s = Select(*Make(c.Spec("quest"), c.page_size), step.p, 2);
  ForLists(c, s, [&](int row, int h, const std::vector<int32_t>& list) {
    SCOPED_TRACE("quest");
    CheckList(list, reference::QuestScores(step.p, row, h, c.reduce), c.lens[static_cast<size_t>(row)], c.page_size,
              c.budget, 1, 1, c.Slack());
  });
}

void CheckHybrid(const Case& c, const Step& step) {
  const std::string channels = c.channels > 0 ? ":channels=" + std::to_string(c.channels) : "";
  const int taken = c.channels > 0 ? std::min(c.channels, c.dim) : c.dim / 4;
  const Selected s = Select(*Make(c.Spec("hybrid") + channels, c.page_size), step.p, 2);
  ForLists(c, s, [&](int row, int h, const std::vector<int32_t>& list) {
    SCOPED_TRACE("hybrid" + channels);
    CheckList(list, reference::HybridScores(step.p, row, h, taken, c.reduce), c.lens[static_cast<size_t>(row)],
              c.page_size, c.budget, 1, 1, c.Slack());
  });
}

void CheckSparq(const Case& c, const Step& step) {
  const std::string channels = c.channels > 0 ? ":channels=" + std::to_string(c.channels) : "";
  const int taken = c.channels > 0 ? std::min(c.channels, c.dim) : 32;
  const int tokens = c.budget * c.page_size, group = c.q_heads / c.kv_heads;
  const Selected s = Select(*Make(c.Budget("sparq") + channels + ":v_mean=on", ShapeOf(step.p)), step.p, 2);
  const Selected t =
      Select(*Make(c.Budget("sparq") + channels + ":level=token:v_mean=on", ShapeOf(step.p)), step.p, 2);
  ForLists(c, s, [&](int row, int h, const std::vector<int32_t>& list) {
    SCOPED_TRACE("sparq" + channels);
    const int length = c.lens[static_cast<size_t>(row)];
    const auto weights = reference::SparqWeights(step.p, row, h, taken);
    std::vector<double> by_token(static_cast<size_t>(length));
    std::vector<double> by_page(static_cast<size_t>((length + c.page_size - 1) / c.page_size));
    for (const std::vector<double>& head : weights) {
      for (size_t i = 0; i < head.size(); ++i) {
        by_token[i] += head[i];
        by_page[i / static_cast<size_t>(c.page_size)] += head[i];
      }
    }
    // Of the shares' logarithms, as rounding errs by a part of each.
    for (double& score : by_page) score = std::log(score);
    for (double& score : by_token) score = std::log(score);
    CheckList(list, by_page, length, c.page_size, c.budget, 1, 1, 1e-4);
    const size_t index = static_cast<size_t>(row * c.kv_heads + h);
    const std::vector<int32_t> chosen = t.Tokens(index);
    CheckList(chosen, by_token, length, 1, tokens, std::min(c.page_size, tokens / 4), tokens / 4, 1e-4);
    // α is what of each head's weights is read; the mean of V is over all tokens.
    for (int g = 0; g < group; ++g) {
      const std::vector<double>& head = weights[static_cast<size_t>(g)];
      double in_tokens = 0, in_pages = 0;
      for (const int32_t token : chosen) in_tokens += head[static_cast<size_t>(token)];
      const std::set<int32_t> pages(list.begin(), list.end());
      for (size_t i = 0; i < head.size(); ++i) {
        if (pages.contains(static_cast<int32_t>(i) / c.page_size)) in_pages += head[i];
      }
      const size_t q_head = static_cast<size_t>(row * c.q_heads + h * group + g);
      EXPECT_NEAR(s.alpha[q_head], in_pages, 1e-4) << g;
      EXPECT_NEAR(t.alpha[q_head], in_tokens, 1e-4) << g;
    }
    const std::vector<double> mean = reference::MeanOfV(step.p, row, h);
    for (size_t i = 0; i < mean.size(); ++i) {
      const size_t at = index * mean.size() + i;
      EXPECT_NEAR(s.v_mean[at], mean[i], 1e-5) << i;
      EXPECT_EQ(t.v_mean[at], s.v_mean[at]);
    }
  });
}

// Lists with metadata in 8 bits that were clear enough to be compared, and those of them that the cache's own would not give.
struct Codes {
  int compared = 0, others = 0;
};

// Returns how many lists were clear enough to be compared.
int CheckHierarchical(const Case& c, const Step& step, Codes* codes) {
  const Selected s = Select(*Make(c.Spec("hierarchical") + ":keep=" + std::to_string(c.keep), c.page_size), step.p, 2);
  if (c.keep == 1) {
    EXPECT_EQ(s.pages, Select(*Make(c.Spec("quest"), c.page_size), step.p, 2).pages);
  }
  const PageBudget budget = PageBudget::Create(c.budget * c.page_size, c.page_size, c.page_size, c.page_size);
  int compared = 0;
  ForLists(c, s, [&](int row, int h, const std::vector<int32_t>& list) {
    if (c.lens[static_cast<size_t>(row)] <= c.budget * c.page_size) return;  // the dense path's
    const auto expected = reference::Hierarchical(step.p, row, h, c.reduce, budget, c.keep);
    if (expected.gap < c.Slack()) return;
    ++compared;
    EXPECT_EQ(list, expected.pages) << "hierarchical keep " << c.keep << " row " << row << " KV head " << h;
  });
  const Selected coded =
      Select(*Make(c.Spec("hierarchical") + ":metadata=int8:keep=" + std::to_string(c.keep), c.page_size), step.p, 2);
  ForLists(c, coded, [&](int row, int h, const std::vector<int32_t>& list) {
    if (c.lens[static_cast<size_t>(row)] <= c.budget * c.page_size) return;
    const auto expected = reference::Hierarchical(step.p, row, h, c.reduce, budget, c.keep, /*codes=*/true);
    if (expected.gap < c.Slack()) return;
    ++codes->compared;
    EXPECT_EQ(list, expected.pages) << "hierarchical in int8, keep " << c.keep << " row " << row << " KV head " << h;
    codes->others += list != s.List(static_cast<size_t>(row * c.kv_heads + h));
  });
  return compared;
}

int RunGrid(const std::vector<int>& lengths, Codes* codes) {
  const std::vector<int> pages{1, 3, 7, 16, 32, 64}, budgets{4, 16, 64}, dims{64, 80, 96, 128, 256}, batches{1, 3, 17};
  const std::vector<std::pair<int, int>> heads{{32, 32}, {32, 8}, {9, 3}, {8, 1}};
  const std::vector<DType> dtypes{DType::kF32, DType::kBF16, DType::kF16};
  const std::vector<double> keeps{0.001, 0.125, 0.25, 0.7, 1};
  const std::vector<int> channels{0, 1, 7, 32, 1 << 20};
  uint64_t seed = 1;
  int compared = 0;
  for (const std::vector<int>& r : AllPairs({static_cast<int>(lengths.size()), 6, 3, 5, 4, 3, 3, 5, 5, 3})) {
    const auto at = [&](const auto& values, size_t i) { return values[static_cast<size_t>(r[i])]; };
    const int n = at(lengths, 0), rows = at(batches, 5);
    Case c{at(dtypes, 6),
           at(pages, 1),
           at(budgets, 2),
           at(dims, 3),
           at(heads, 4).first,
           at(heads, 4).second,
           {n},
           at(keeps, 7),
           at(channels, 8),
           static_cast<GroupReduce>(r[9]),
           seed++};
    std::vector<int32_t> seq{0};
    for (int i = 1; i < rows; ++i) {
      c.lens.push_back(std::max(1, std::min(n, 300) - 7 * i));
      seq.push_back(i);
    }
    SCOPED_TRACE(::testing::Message() << "n " << n << " page " << c.page_size << " budget " << c.budget << " d "
                                      << c.dim << " heads " << c.q_heads << "/" << c.kv_heads << " batch " << rows
                                      << " dtype " << r[6] << " reduce " << r[9] << " seed " << c.seed);
    PagedCache cache(c.dtype, c.page_size, c.kv_heads, c.dim, c.dim, c.lens, c.seed, true);
    cache.Fill(TwoThreads());
    Step step(cache, c.q_heads, seq, {c.lens.begin(), c.lens.end()}, c.seed);
    CheckQuest(c, step);
    CheckHybrid(c, step);
    CheckSparq(c, step);
    compared += CheckHierarchical(c, step, codes);
  }
  return compared;
}

TEST(SelectionGrid, ListsAreTheReferencesOnShortLengths) {
  Codes codes;
  EXPECT_GT(RunGrid({1, 17, 127, 400}, &codes), 20);
  EXPECT_GT(codes.compared, 20);
}
TEST(SlowSelectionGrid, ListsAreTheReferencesOnTheWholeGrid) {
  Codes codes;
  EXPECT_GT(RunGrid({1, 15, 16, 17, 63, 127, 1110, 4099, 8192, 28837}, &codes), 50);
  EXPECT_GT(codes.compared, 50);
}

// 70 groups: more than one task scores them, or the pages of those kept.
TEST(SelectionGrid, HierarchicalListsOfManyGroupsAreTheReferences) {
  PagedCache cache(DType::kF32, 1, 1, 64, 64, {1110}, 1, true);
  cache.Fill(TwoThreads());
  Step step(cache, 2, {0}, {1110}, 2);
  int compared = 0;
  Codes codes;
  for (const double keep : {0.001, 0.1, 0.25, 0.7, 0.99, 1.0}) {
    for (const int budget : {4, 64, 500}) {
      const Case c{DType::kF32, 1, budget, 64, 2, 1, {1110}, keep, 0, GroupReduce::kMax, 2};
      compared += CheckHierarchical(c, step, &codes);
    }
  }
  EXPECT_GE(compared, 15);
  EXPECT_GE(codes.compared, 15);
  EXPECT_GE(codes.others, 5);
}

}  // namespace
}  // namespace quire

// Attention policies that select on a GPU against the same policies on the CPU, over the same caches, in memory that the host
// can't touch. Lists are the same but where two pages' scores differ by less than rounding.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <iterator>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/reference/hierarchical.h"
#include "kernels/reference/hybrid.h"
#include "kernels/reference/quest.h"
#include "kernels/reference/sparq.h"
#include "kernels/reference/top_p.h"
#include "tests/kernels/cuda/device_copies.h"
#include "tests/kernels/pairwise.h"
#include "tests/kernels/selecting.h"

namespace quire {
namespace {

using namespace quire::testing;  // NOLINT: this file tests nothing else

class GpuPolicies : public GpuTest {};
using SlowGpuPolicies = GpuPolicies;

// The step's selection on the GPU, with an empty row behind its own and a length beyond the longest, as a captured graph has
// them. Workspace and lists hold what an earlier step might have left.
Selected SelectOnGpu(const AttentionPolicy& policy, const PagedCache& cache, const Step& step) {
  DeviceCopies there;
  const Context& ctx = there.ctx();
  SelectParams p = step.p;
  std::vector<int32_t> seq = step.seq, len = step.len;
  std::vector<float> q = step.q;
  seq.push_back(-1);
  len.push_back(0);
  q.resize(q.size() + static_cast<size_t>(p.q_stride), std::nanf(""));
  ++p.rows;
  p.q = there.Copy(q);
  p.row_seq = there.Copy(seq);
  p.row_len = there.Copy(len);
  there.CopyCache(cache, &p.pages, &p.table);
  const int32_t longest = *std::max_element(len.begin(), len.end());
  p.longest = longest + longest / 5;
  const PageFormat& f = p.table.format;
  Selected s;
  s.page_size = f.page_size;
  s.view.max_pages = policy.MaxPages(p.longest + 100, f.page_size);
  const size_t lists = static_cast<size_t>(p.rows) * f.kv_heads, entries = lists * static_cast<size_t>(s.view.max_pages);
  s.pages.assign(entries, -7);
  s.counts.assign(lists, -7);
  SelectionView view = s.view;
  view.pages = there.Copy(s.pages);
  view.counts = there.Copy(s.counts);
  policy.Select(ctx, p, view, there.Dirty(policy.SelectWorkspace(p)));
  there.Back(view.pages, &s.pages);
  there.Back(view.counts, &s.counts);
  return s;
}

// Whether rounding of scores may make these two lists of a (row, KV head).
using Excuse = std::function<bool(int row, int head, const std::vector<int32_t>& a, const std::vector<int32_t>& b)>;

// That of policies that take the pages with the largest scores. scores(row, head): of all pages, by the reference.
template <typename Scores>
Excuse CloseScores(Scores scores, double slack) {
  return [scores, slack](int row, int head, const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
    const std::vector<double> s = scores(row, head);
    std::vector<int32_t> left, added;
    std::set_difference(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(left));
    std::set_difference(b.begin(), b.end(), a.begin(), a.end(), std::back_inserter(added));
    return a.size() == b.size() && std::ranges::all_of(left, [&](int32_t x) {
             return std::ranges::all_of(added, [&](int32_t y) {
               return std::abs(s[static_cast<size_t>(x)] - s[static_cast<size_t>(y)]) <= slack;
             });
           });
  };
}
const Excuse kNone = [](int, int, const std::vector<int32_t>&, const std::vector<int32_t>&) { return false; };

// Returns how many lists are the same.
int ExpectTheListsOfTheCpu(const AttentionPolicy& policy, const PagedCache& cache, const Step& step, const Excuse& excuse) {
  EXPECT_TRUE(policy.RunsOnGpu());
  const Selected want = Select(policy, step.p, 2), got = SelectOnGpu(policy, cache, step);
  const int kv_heads = cache.table().format.kv_heads;
  int same = 0;
  for (int list = 0; list < step.p.rows * kv_heads; ++list) {
    const std::vector<int32_t> a = want.List(static_cast<size_t>(list)), b = got.List(static_cast<size_t>(list));
    same += a == b;
    if (a == b || excuse(list / kv_heads, list % kv_heads, a, b)) continue;
    EXPECT_EQ(b, a) << "row " << list / kv_heads << " KV head " << list % kv_heads;
  }
  for (int head = 0; head < kv_heads; ++head) {
    EXPECT_EQ(got.counts[static_cast<size_t>(step.p.rows * kv_heads + head)], 0) << "of the empty row";
  }
  return same;
}

struct Case {
  DType dtype;
  int page_size, budget, dim, q_heads, kv_heads;  // budget: pages
  std::vector<int> lens;
  GroupReduce reduce;
  uint64_t seed;
  int freed = 0;  // pages of the first sequence that aren't there, behind its first

  std::string Spec(const std::string& name) const {
    static const char* const kNames[] = {"max", "mean", "sum"};
    return name + ":token_budget=" + std::to_string(budget * page_size) + ":group_reduce=" + kNames[static_cast<int>(reduce)];
  }
  // Of sums of `dim` products of size about 2 in f32, over the query group.
  double Slack() const { return q_heads / kv_heads * dim * 4e-6; }
};

void CheckQuest(const Case& c, const PagedCache& cache, const Step& step) {
  const Excuse excuse =
      CloseScores([&](int row, int head) { return reference::QuestScores(step.p, row, head, c.reduce); }, c.Slack());
  for (const char* share : {"", ":budget_share=0.37"}) {
    SCOPED_TRACE(std::string("quest") + share);
    ExpectTheListsOfTheCpu(*Make(c.Spec("quest") + share, c.page_size), cache, step, excuse);
  }
}

// Choices that the reference calls clear must be the same. Returns how many lists were.
int CheckHierarchical(const Case& c, const PagedCache& cache, const Step& step) {
  int same = 0;
  for (const double keep : {0.001, 0.25, 0.7, 1.0}) {
    SCOPED_TRACE(::testing::Message() << "hierarchical keep " << keep);
    const PageBudget budget = PageBudget::Create(c.budget * c.page_size, c.page_size, c.page_size, c.page_size);
    const Excuse excuse = [&](int row, int head, const auto&, const auto&) {
      return reference::Hierarchical(step.p, row, head, c.reduce, budget, keep).gap <= c.Slack();
    };
    const auto policy = Make(c.Spec("hierarchical") + ":keep=" + std::to_string(keep), c.page_size);
    same += ExpectTheListsOfTheCpu(*policy, cache, step, excuse);
  }
  return same;
}

void CheckHybrid(const Case& c, const PagedCache& cache, const Step& step) {
  for (const int channels : {1, 7, c.dim / 4, c.dim}) {
    SCOPED_TRACE(::testing::Message() << "hybrid of " << channels << " channels");
    const Excuse excuse = CloseScores(
        [&](int row, int head) { return reference::HybridScores(step.p, row, head, channels, c.reduce); }, c.Slack());
    const auto policy = Make(c.Spec("hybrid") + ":channels=" + std::to_string(channels), c.page_size);
    ExpectTheListsOfTheCpu(*policy, cache, step, excuse);
  }
}

void CheckSparq(const Case& c, const PagedCache& cache, const Step& step) {
  for (const int channels : {1, 32, c.dim}) {
    SCOPED_TRACE(::testing::Message() << "sparq of " << channels << " channels");
    // Of the shares' logarithms, as rounding errs by a part of each.
    const auto scores = [&](int row, int head) {
      std::vector<double> shares = reference::SparqScores(step.p, row, head, channels);
      for (double& share : shares) share = std::log(share);
      return shares;
    };
    const auto policy = Make("sparq:token_budget=" + std::to_string(c.budget * c.page_size) +
                                 ":v_mean=off:channels=" + std::to_string(channels), ShapeOf(step.p));
    ExpectTheListsOfTheCpu(*policy, cache, step, CloseScores(scores, 1e-4));
  }
}

// A list may hold a page more or less where the reference's masses come near the share. The selector's lists are the CPU's.
void CheckTopP(const Case& c, const PagedCache& cache, const Step& step) {
  const std::string budget = ":token_budget=" + std::to_string(c.budget * c.page_size);
  for (const char* selector : {"quest", "hybrid", "hierarchical", "sparq"}) {
    const std::string options = budget + (std::string(selector) == "sparq" ? ":v_mean=off" : "");
    const Selected loose = Select(*Make(selector + options + ":budget_share=0.4", ShapeOf(step.p)), step.p, 2);
    for (const double p : {0.0, 0.5, 0.9, 1.0}) {
      SCOPED_TRACE(::testing::Message() << "top-p of " << p << " over " << selector);
      const Excuse excuse = [&](int row, int head, const auto&, const std::vector<int32_t>& list) {
        constexpr double kSlack = 1e-5;
        const size_t index = static_cast<size_t>(row * c.kv_heads + head);
        const std::vector<int32_t> pages = loose.List(index);
        const std::vector<double> mass = reference::ListedMass(step.p, row, head, pages);
        const ForcedPages forced = ForcedPages::Create(
            PageBudget::Create(c.budget * c.page_size, c.page_size, c.page_size, c.page_size, 0.4), step.len[static_cast<size_t>(row)],
            c.page_size);
        double total = 0, held = 0, least = INFINITY, left = 0;
        size_t listed = 0;
        for (size_t i = 0; i < pages.size(); ++i) {
          const bool is_forced = pages[i] < forced.sinks || pages[i] >= forced.recent;
          const bool is_listed = std::ranges::count(list, pages[i]) != 0;
          total += mass[i];
          if (is_listed) held += mass[i];
          if (is_listed && !is_forced) least = std::min(least, mass[i]);
          if (!is_listed) left = std::max(left, mass[i]);
          if (is_forced && !is_listed) return false;
          listed += is_listed;
        }
        return listed == list.size() && held >= p * total - kSlack && left <= least + kSlack &&
               (least == INFINITY || held - least <= p * total + kSlack);
      };
      const auto policy = Make("top-p:selector=" + std::string(selector) + options + ":loose=0.4:p=" + std::to_string(p), ShapeOf(step.p));
      ExpectTheListsOfTheCpu(*policy, cache, step, excuse);
    }
  }
}

// Its lists follow from lengths alone.
void CheckStreaming(const Case& c, const PagedCache& cache, const Step& step) {
  const int shortest = *std::min_element(c.lens.begin(), c.lens.end());
  const int budget = std::min(c.budget * c.page_size + 1, shortest);
  for (const int sinks : {0, 3}) {
    if (budget <= sinks) continue;
    SCOPED_TRACE(::testing::Message() << "streaming of " << budget << " with " << sinks);
    const auto policy = Make("streaming:token_budget=" + std::to_string(budget) + ":sink_tokens=" + std::to_string(sinks), c.page_size);
    ExpectTheListsOfTheCpu(*policy, cache, step, kNone);
  }
}

void RunCase(const Case& c) {
  SCOPED_TRACE(::testing::Message() << DTypeName(c.dtype) << " page " << c.page_size << " budget " << c.budget << " d " << c.dim
                                    << " heads " << c.q_heads << "/" << c.kv_heads << " length " << c.lens[0] << " rows "
                                    << c.lens.size() << " reduce " << static_cast<int>(c.reduce) << " seed " << c.seed);
  PagedCache cache(c.dtype, c.page_size, c.kv_heads, c.dim, c.dim, c.lens, c.seed, true);
  cache.Fill(TwoThreads());
  for (int page = 0; page < c.freed; ++page) cache.PageId(0, 1 + page) = -1;
  std::vector<int32_t> seq(c.lens.size());
  std::iota(seq.begin(), seq.end(), 0);
  Step step(cache, c.q_heads, seq, {c.lens.begin(), c.lens.end()}, c.seed + 1);
  CheckQuest(c, cache, step);
  CheckHierarchical(c, cache, step);
  CheckHybrid(c, cache, step);
  CheckSparq(c, cache, step);
  CheckTopP(c, cache, step);
  CheckStreaming(c, cache, step);
}

TEST_F(GpuPolicies, ListThePagesThatTheyListOnTheCpu) {
  RunCase({DType::kBF16, 16, 6, 64, 8, 2, {1110, 17, 400}, GroupReduce::kMax, 1});
  RunCase({DType::kF16, 7, 16, 80, 9, 3, {600, 1, 127}, GroupReduce::kMean, 2});
  RunCase({DType::kF32, 3, 4, 96, 8, 1, {200, 13}, GroupReduce::kSum, 3});
  RunCase({DType::kBF16, 1, 16, 128, 2, 2, {263, 15}, GroupReduce::kMax, 4});
  RunCase({DType::kBF16, 32, 16, 256, 16, 1, {2000}, GroupReduce::kMax, 5});
  RunCase({DType::kF32, 16, 4, 18, 3, 1, {1110}, GroupReduce::kMean, 6});
}

// Metadata groups by the dozen, of which a few are kept; and budgets that follow the length.
TEST_F(GpuPolicies, HierarchicalListsTheCpusPagesOfManyGroups) {
  Case c{DType::kF32, 1, 40, 64, 4, 2, {1110, 700, 45}, GroupReduce::kMax, 11};
  PagedCache cache(c.dtype, c.page_size, c.kv_heads, c.dim, c.dim, c.lens, c.seed, true);
  cache.Fill(TwoThreads());
  Step step(cache, c.q_heads, {0, 1, 2}, {1110, 700, 45}, 12);
  EXPECT_GE(CheckHierarchical(c, cache, step), 20);
  const auto policy = Make(c.Spec("hierarchical") + ":keep=0.1:budget_share=0.3", 1);
  ExpectTheListsOfTheCpu(*policy, cache, step, kNone);
}

// Where queries are NaN a channel, or all of them, is never taken.
TEST_F(GpuPolicies, NanQueriesChooseAsOnTheCpu) {
  for (const int spoiled : {1, 64}) {
    PagedCache cache(DType::kBF16, 16, 1, 64, 64, {900}, 3, true);
    cache.Fill(TwoThreads());
    Step step(cache, 2, {0}, {900}, 4);
    for (int c = 0; c < spoiled; ++c) step.q[static_cast<size_t>(c)] = std::nanf("");
    for (const char* spec : {"quest:token_budget=128", "hierarchical:token_budget=128:keep=0.01", "hybrid:token_budget=128",
                             "sparq:token_budget=128:v_mean=off", "top-p:token_budget=128:selector=hybrid"}) {
      SCOPED_TRACE(spec);
      ExpectTheListsOfTheCpu(*Make(spec, 16), cache, step, kNone);
    }
  }
}

TEST_F(GpuPolicies, NeverListAFreedPage) {
  RunCase({DType::kBF16, 16, 40, 64, 4, 1, {16 * 50}, GroupReduce::kMax, 7, 20});
}

TEST_F(SlowGpuPolicies, ListThePagesThatTheyListOnTheCpuOnTheGrid) {
  const std::vector<int> lengths{1, 15, 16, 17, 63, 127, 1110, 4099, 8192, 28837}, pages{1, 3, 7, 16, 32, 64}, budgets{4, 16, 64};
  const std::vector<int> dims{64, 80, 96, 128, 256};
  const std::vector<std::pair<int, int>> heads{{32, 32}, {32, 8}, {9, 3}, {8, 1}};
  const std::vector<DType> dtypes{DType::kF32, DType::kBF16, DType::kF16};
  uint64_t seed = 1;
  for (const std::vector<int>& r : AllPairs({10, 6, 3, 5, 4, 3, 2, 3})) {
    const auto at = [&](const auto& values, size_t i) { return values[static_cast<size_t>(r[i])]; };
    const int page_size = at(pages, 1), n = std::min(at(lengths, 0), 4200 * page_size);  // pages as of 67k tokens at 16
    std::vector<int> lens{n};
    if (r[6] == 1) lens.insert(lens.end(), {std::max(1, n / 3), 1});
    RunCase({at(dtypes, 5), page_size, at(budgets, 2), at(dims, 3), at(heads, 4).first, at(heads, 4).second, lens,
             static_cast<GroupReduce>(r[7]), seed});
    ++seed;
  }
}

}  // namespace
}  // namespace quire

// Attention policies that select on a GPU against the same policies on the CPU, over the same caches, in memory that the host
// can't touch. Lists are the same but where two pages' scores differ by less than rounding.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <iterator>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/metadata_codes.h"
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
// them. Workspace and lists hold what an earlier step might have left. What the rows remember, if they do, is taken there and
// back.
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
  const PageDataNeeds needs = policy.Declare();
  if (needs.slots) {
    s.view.mask_words = (f.page_size + 63) / 64;
    s.masks.assign(entries * static_cast<size_t>(s.view.mask_words), ~uint64_t{0});
  }
  if (needs.correction) {
    s.alpha.assign(static_cast<size_t>(p.rows * (p.heads > 0 ? p.heads : p.q_heads)), std::nanf(""));
    s.v_mean.assign(lists * static_cast<size_t>(f.v_dim), std::nanf(""));
  }
  SelectionView view = s.view;
  view.pages = there.Copy(s.pages);
  view.counts = there.Copy(s.counts);
  if (needs.slots) view.slot_mask = there.Copy(s.masks);
  if (needs.correction) {
    view.alpha = there.Copy(s.alpha);
    view.v_mean = there.Copy(s.v_mean);
  }
  const Histories none(policy, step.p, [](int, int, int64_t) { return 0.0f; });
  if (p.history == nullptr && !none.views.empty()) p.history = none.views.data();
  std::vector<PageHistory> histories;
  const auto floats = [](const PageHistory& h) { return static_cast<size_t>(h.kv_heads * h.head_stride); };
  if (p.history != nullptr) {
    histories.assign(p.history, p.history + step.p.rows);
    for (PageHistory& h : histories) h.values = there.Copy(h.values, floats(h));
    histories.emplace_back();
    p.history = there.Copy(histories);
  }
  policy.Select(ctx, p, view, there.Dirty(policy.SelectWorkspace(p)));
  there.Back(view.pages, &s.pages);
  there.Back(view.counts, &s.counts);
  if (needs.slots) there.Back(view.slot_mask, &s.masks);
  if (needs.correction) {
    there.Back(view.alpha, &s.alpha);
    there.Back(view.v_mean, &s.v_mean);
  }
  for (size_t row = 0; step.p.history != nullptr && row + 1 < histories.size(); ++row) {
    std::vector<float> values(floats(histories[row]));
    there.Back(histories[row].values, &values);
    std::copy(values.begin(), values.end(), step.p.history[row].values);
  }
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

// The codes' own bounds of a (row, KV head)'s pages, in double; those of its metadata where the group has none.
std::vector<double> CodedScores(const PagedCache& cache, const SelectParams& p, int row, int head, GroupReduce reduce) {
  const PageFormat& f = cache.table().format;
  const int heads = p.q_heads / f.kv_heads, whole = p.row_len[row] / f.page_size / kPagesPerGroup;
  std::vector<double> scores((static_cast<size_t>(p.row_len[row]) + static_cast<size_t>(f.page_size) - 1) /
                             static_cast<size_t>(f.page_size));
  const auto number = [&](const std::vector<std::byte>& array, int64_t at) {
    return VisitFloatDType(f.dtype, [&](auto t) { return double{ToFloat(reinterpret_cast<const decltype(t)*>(array.data())[at])}; });
  };
  for (size_t page = 0; page < scores.size(); ++page) {
    const int column = static_cast<int>(page) % kPagesPerGroup;
    const int64_t id = p.table.group_ids[p.table.group_begin[p.row_seq[row]] + static_cast<int>(page) / kPagesPerGroup];
    const int64_t meta = id * f.meta_group_stride + head * f.meta_head_stride, over = id * f.over_group_stride + head * f.over_head_stride;
    const bool coded = static_cast<int>(page) / kPagesPerGroup < whole && HasCodes(cache.codes().data() + meta, f);
    for (int h = 0; h < heads; ++h) {
      double score = 0;
      for (int c = 0; c < f.k_dim; ++c) {
        const double q = p.q[row * p.q_stride + (int64_t{head} * heads + h) * f.k_dim + c];
        double bounds[2];
        for (int which = 0; which < 2; ++which) {
          const int64_t at = meta + f.MetaOffset(which, c, column);
          const double lo = number(cache.over(), over + f.OverOffset(0, c)), hi = number(cache.over(), over + f.OverOffset(1, c));
          const double by_code = CodeStep(static_cast<float>(lo), static_cast<float>(hi)) * static_cast<double>(cache.codes()[static_cast<size_t>(at)]);
          bounds[which] = coded ? lo + by_code : number(cache.meta(), at);
        }
        score += std::max(q * bounds[0], q * bounds[1]);
      }
      if (reduce == GroupReduce::kMean) score /= heads;
      scores[page] = h == 0 ? score : reduce == GroupReduce::kMax ? std::max(scores[page], score) : scores[page] + score;
    }
  }
  return scores;
}

// With metadata in 8 bits; keep of 1 leaves nothing to the groups' own scores. Returns how many lists weren't those of the
// metadata itself.
int CheckCodes(const Case& c, const PagedCache& cache, const Step& step) {
  int others = 0;
  for (const double keep : {0.25, 1.0}) {
    SCOPED_TRACE(::testing::Message() << "int8 keep " << keep);
    const std::string spec = c.Spec("hierarchical") + ":keep=" + std::to_string(keep);
    const PageBudget budget = PageBudget::Create(c.budget * c.page_size, c.page_size, c.page_size, c.page_size);
    const Excuse close =
        CloseScores([&](int row, int head) { return CodedScores(cache, step.p, row, head, c.reduce); }, c.Slack());
    const Excuse excuse = [&](int row, int head, const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
      return close(row, head, a, b) || reference::Hierarchical(step.p, row, head, c.reduce, budget, keep).gap <= c.Slack();
    };
    const auto policy = Make(spec + ":metadata=int8", c.page_size);
    ExpectTheListsOfTheCpu(*policy, cache, step, excuse);
    const Selected exact = Select(*Make(spec, c.page_size), step.p, 2), coded = SelectOnGpu(*policy, cache, step);
    for (size_t list = 0; list < exact.counts.size(); ++list) others += exact.List(list) != coded.List(list);
  }
  return others;
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

// The correction, wherever the lists are the same.
void ExpectTheCorrectionOfTheCpu(const Selected& got, const Selected& want, int rows, int kv_heads, int heads, int v_dim) {
  for (int list = 0; list < rows * kv_heads; ++list) {
    for (int c = 0; c < v_dim; ++c) {  // the same sums in the same order
      const auto at = static_cast<size_t>(list * v_dim + c);
      EXPECT_EQ(got.v_mean[at], want.v_mean[at]) << "list " << list << " channel " << c;
    }
    const auto index = static_cast<size_t>(list);
    const bool same = got.List(index) == want.List(index) && (want.masks.empty() || got.Tokens(index) == want.Tokens(index));
    const int first = list / kv_heads * heads + list % kv_heads * (heads / kv_heads);
    for (int h = first; same && h < first + heads / kv_heads; ++h) {
      EXPECT_NEAR(got.alpha[static_cast<size_t>(h)], want.alpha[static_cast<size_t>(h)], 1e-5) << "query head " << h;
    }
  }
}

// By tokens, and with the correction. Tokens may differ where the reference's weights come near each other.
void CheckSparqsOptions(const Case& c, const PagedCache& cache, const Step& step) {
  const std::string budget = ":token_budget=" + std::to_string(c.budget * c.page_size);
  for (const std::string& options : {std::string(":v_mean=on"), ":level=token:v_mean=on:sink_tokens=3:recent_tokens=" +
                                     std::to_string(std::min(5, c.budget * c.page_size - 4)), std::string(":level=token:v_mean=off:channels=7")}) {
    SCOPED_TRACE(options);
    const auto policy = Make("sparq" + budget + options, ShapeOf(step.p));
    const int channels = options.ends_with("=7") ? 7 : 32;
    const Selected want = Select(*policy, step.p, 2), got = SelectOnGpu(*policy, cache, step);
    if (policy->Declare().correction) {
      ExpectTheCorrectionOfTheCpu(got, want, step.p.rows, c.kv_heads, c.q_heads, c.dim);
    }
    for (int list = 0; list < step.p.rows * c.kv_heads; ++list) {
      const auto index = static_cast<size_t>(list);
      if (!policy->Declare().slots || got.Tokens(index) == want.Tokens(index)) {
        if (policy->Declare().slots) {
          EXPECT_EQ(got.List(index), want.List(index)) << "list " << list;
        }
        continue;
      }
      std::vector<double> weights = reference::SparqTokenScores(step.p, list / c.kv_heads, list % c.kv_heads, channels);
      for (double& weight : weights) weight = std::log(weight);
      const Excuse excuse = CloseScores([&](int, int) { return weights; }, 1e-4);
      EXPECT_TRUE(excuse(0, 0, want.Tokens(index), got.Tokens(index))) << "list " << list;
    }
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
  CheckCodes(c, cache, step);
  CheckHybrid(c, cache, step);
  CheckSparq(c, cache, step);
  if (c.budget * c.page_size >= 5) CheckSparqsOptions(c, cache, step);
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
  // Also behind sinks of some groups.
  for (const char* options : {":keep=0.1:budget_share=0.3", ":keep=0.1:budget_share=0.1:sink_tokens=37",
                              ":keep=0.1:budget_share=0.1:sink_tokens=37:metadata=int8"}) {
    SCOPED_TRACE(options);
    ExpectTheListsOfTheCpu(*Make(c.Spec("hierarchical") + options, 1), cache, step, kNone);
  }
}

// Whole groups by the dozen, and lists that their codes alone make; a group that has no codes, and one that is gone.
TEST_F(GpuPolicies, MetadataInInt8ListsTheCpusPages) {
  int others = 0;
  for (const Case& c : {Case{DType::kBF16, 4, 30, 64, 8, 2, {2000, 700, 63}, GroupReduce::kMax, 21},
                        Case{DType::kF16, 2, 40, 80, 5, 1, {1100}, GroupReduce::kMean, 22},
                        Case{DType::kF32, 1, 60, 18, 16, 2, {900, 17}, GroupReduce::kSum, 23}}) {
    SCOPED_TRACE(c.seed);
    PagedCache cache(c.dtype, c.page_size, c.kv_heads, c.dim, c.dim, c.lens, c.seed, true);
    cache.Fill(TwoThreads());
    std::vector<int32_t> seq(c.lens.size());
    std::iota(seq.begin(), seq.end(), 0);
    Step step(cache, c.q_heads, seq, {c.lens.begin(), c.lens.end()}, c.seed + 1);
    others += CheckCodes(c, cache, step);
    const PageFormat& f = cache.table().format;
    // An infinity among the last channels of group 3 of the first sequence.
    VisitFloatDType(f.dtype, [&](auto t) {
      using T = decltype(t);
      const int64_t id = cache.table().group_ids[3];
      T* over = static_cast<T*>(cache.pages().over) + id * f.over_group_stride;
      T* meta = static_cast<T*>(cache.pages().meta) + id * f.meta_group_stride;
      over[f.OverOffset(1, f.k_dim - 1)] = meta[f.MetaOffset(1, f.k_dim - 1, 5)] = FromFloat<T>(INFINITY);
    });
    cache.Encode();
    ASSERT_FALSE(HasCodes(cache.codes().data() + cache.table().group_ids[3] * f.meta_group_stride, f));
    const auto policy = Make(c.Spec("hierarchical") + ":keep=1:metadata=int8", c.page_size);
    const Excuse excuse = [&](int row, int head, const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
      return CloseScores([&](int r, int h) { return CodedScores(cache, step.p, r, h, c.reduce); }, c.Slack())(row, head, a, b);
    };
    ExpectTheListsOfTheCpu(*policy, cache, step, excuse);
  }
  EXPECT_GT(others, 0);
}

// Sequences that go on for some steps, of which one begins anew on the way and pages of another go: the lists are the CPU's, and
// so is what is remembered of them.
TEST_F(GpuPolicies, ReuseListsTheCpusPagesOverManySteps) {
  for (const auto& [spec, page_size] : std::vector<std::pair<std::string, int>>{
           {"hierarchical:keep=0.3:token_budget=80:reuse=3", 1},
           {"hierarchical:keep=0.2:token_budget=64:reuse=7", 4},
           {"hierarchical:token_budget=64:reuse=2:metadata=int8", 2},
           {"top-p:selector=hierarchical:reuse=4:token_budget=60:loose=0.3:p=0.6", 2}}) {
    SCOPED_TRACE(spec);
    constexpr int kSteps = 9;
    const std::vector<int> longest{300 * page_size + kSteps, 290 * page_size, 170 * page_size + 1};
    PagedCache cache(DType::kF32, page_size, 2, 16, 16, longest, 5, true);
    cache.Fill(TwoThreads());
    const auto policy = Make(spec, page_size);
    std::vector<std::vector<float>> on_cpu(3, std::vector<float>(2 * 320, 0.0f)), on_gpu = on_cpu;
    for (int i = 0; i < kSteps; ++i) {
      std::vector<int32_t> lengths;
      for (const int n : longest) lengths.push_back(n - kSteps + 1 + i);
      Step step(cache, 4, {0, 1, 2}, lengths, static_cast<uint64_t>(40 + i));
      const auto histories = [&](std::vector<std::vector<float>>& values) {
        std::vector<PageHistory> h;
        for (size_t row = 0; row < 3; ++row) h.push_back({values[row].data(), 320, 2, (lengths[row] + page_size - 1) / page_size, 1});
        return h;
      };
      if (i == 5) on_cpu[2].assign(on_cpu[2].size(), 0.0f), on_gpu[2] = on_cpu[2];
      if (i == 6) cache.PageId(0, 250) = cache.PageId(1, 3) = -1;
      const std::vector<PageHistory> cpu = histories(on_cpu), gpu = histories(on_gpu);
      step.p.history = cpu.data();
      const Selected want = Select(*policy, step.p, 2);
      step.p.history = gpu.data();
      const Selected got = SelectOnGpu(*policy, cache, step);
      for (size_t list = 0; list < 6; ++list) EXPECT_EQ(got.List(list), want.List(list)) << "step " << i << " list " << list;
      EXPECT_EQ(got.counts[6] + got.counts[7], 0) << "of the empty row";
      EXPECT_EQ(on_gpu, on_cpu) << "step " << i;
    }
  }
}

// Sums of V that earlier steps have made, and those that they haven't: what is kept of them is the CPU's bit for bit. Ranks that
// share a KV head want the factors of their own heads.
TEST_F(GpuPolicies, SparqsSumsOfVAreTheCpusOverManySteps) {
  for (const char* options : {"", ":level=token"}) {
    SCOPED_TRACE(options);
    constexpr int kSteps = 7, kPage = 4, kDim = 16;
    const std::vector<int> longest{150, 83};
    PagedCache cache(DType::kBF16, kPage, 2, kDim, kDim, longest, 5);
    cache.Fill(TwoThreads());
    std::vector<std::vector<float>> on_cpu(2, std::vector<float>(2 * 40 * (kDim + 1), 0.0f)), on_gpu = on_cpu;
    for (int i = 0; i < kSteps; ++i) {
      std::vector<int32_t> lengths;
      for (const int n : longest) lengths.push_back(n - kSteps + 1 + i);
      Step step(cache, 8, {0, 1}, lengths, static_cast<uint64_t>(40 + i));
      const auto policy = Make(std::string("sparq:token_budget=48:v_mean=on") + options, ShapeOf(step.p));
      step.p.first_head = 2;
      step.p.heads = 4;
      const auto histories = [&](std::vector<std::vector<float>>& values) {
        std::vector<PageHistory> h;
        for (size_t row = 0; row < 2; ++row) {
          h.push_back({values[row].data(), 40 * (kDim + 1), 2, (lengths[row] + kPage - 1) / kPage, kDim + 1});
        }
        return h;
      };
      if (i == 4) on_cpu[1].assign(on_cpu[1].size(), 0.0f), on_gpu[1] = on_cpu[1];  // begins anew
      if (i == 5) cache.PageId(0, 9) = -1;  // its sum is in already
      const std::vector<PageHistory> cpu = histories(on_cpu), gpu = histories(on_gpu);
      step.p.history = cpu.data();
      const Selected want = Select(*policy, step.p, 2);
      step.p.history = gpu.data();
      const Selected got = SelectOnGpu(*policy, cache, step);
      EXPECT_EQ(on_gpu, on_cpu) << "step " << i;
      for (size_t list = 0; list < 4; ++list) EXPECT_EQ(got.List(list), want.List(list)) << "step " << i << " list " << list;
      if (!want.masks.empty()) {
        for (size_t list = 0; list < 4; ++list) EXPECT_EQ(got.Tokens(list), want.Tokens(list)) << "step " << i << " list " << list;
      }
      for (size_t at = 0; at < 4 * kDim; ++at) EXPECT_EQ(got.v_mean[at], want.v_mean[at]) << "step " << i;
      ASSERT_EQ(want.alpha.size(), 8u);
      for (size_t h = 0; h < 8; ++h) EXPECT_NEAR(got.alpha[h], want.alpha[h], 1e-5) << "step " << i << " head " << h;
    }
  }
}

// Pages of more than a word of mask, and of more slots than a block scores at once.
TEST_F(GpuPolicies, SparqTakesLargePages) {
  for (const Case& c : {Case{DType::kF32, 100, 3, 16, 4, 2, {777, 140}, GroupReduce::kMax, 31},
                        Case{DType::kF32, 1100, 3, 16, 2, 1, {6000, 5000}, GroupReduce::kMax, 33}}) {
    SCOPED_TRACE(c.page_size);
    PagedCache cache(c.dtype, c.page_size, c.kv_heads, c.dim, c.dim, c.lens, c.seed);
    cache.Fill(TwoThreads());
    Step step(cache, c.q_heads, {0, 1}, {c.lens.begin(), c.lens.end()}, c.seed + 1);
    CheckSparq(c, cache, step);
    CheckSparqsOptions(c, cache, step);
  }
}

// Queries that are as large in every channel: of equal sums the first are taken.
TEST_F(GpuPolicies, EqualChannelsGoToTheLower) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    PagedCache cache(dtype, 4, 2, 48, 48, {700}, 3, true);
    cache.Fill(TwoThreads());
    Step step(cache, 6, {0}, {700}, 4);
    for (float& q : step.q) q = q < 0 ? -0.5f : 0.5f;
    for (const char* spec : {"hybrid:token_budget=64:channels=", "sparq:token_budget=64:v_mean=off:channels="}) {
      for (const int channels : {2, 7, 22}) {
        SCOPED_TRACE(spec + std::to_string(channels));
        ExpectTheListsOfTheCpu(*Make(spec + std::to_string(channels), 4), cache, step, kNone);
      }
    }
  }
}

// Where queries are NaN a channel, or all of them, is never taken.
TEST_F(GpuPolicies, NanQueriesChooseAsOnTheCpu) {
  for (const int spoiled : {1, 64}) {
    PagedCache cache(DType::kBF16, 16, 1, 64, 64, {900}, 3, true);
    cache.Fill(TwoThreads());
    Step step(cache, 2, {0}, {900}, 4);
    for (int c = 0; c < spoiled; ++c) step.q[static_cast<size_t>(c)] = std::nanf("");
    for (const char* spec : {"quest:token_budget=128", "hierarchical:token_budget=128:keep=0.01",
                             "hierarchical:token_budget=128:metadata=int8", "hybrid:token_budget=128",
                             "sparq:token_budget=128:v_mean=off", "sparq:token_budget=128:level=token:v_mean=off",
                             "top-p:token_budget=128:selector=hybrid"}) {
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

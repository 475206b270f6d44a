// Top-p: the fewest pages of the selector's loose set that hold the share p of its attention, against the reference,
// and how its budget follows the queries.
#include "kernels/reference/top_p.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <set>

#include "kernels/selection/budget.h"
#include "tests/kernels/pairwise.h"
#include "tests/kernels/selecting.h"

namespace quire {
namespace {

using namespace quire::testing;  // NOLINT: this file tests nothing else

// The list holds the share, and no page of it could go; up to rounding of the masses.
void CheckFewest(const std::vector<int32_t>& list, const std::vector<int32_t>& loose, const std::vector<double>& mass,
                 const std::vector<bool>& forced, double share, double slack) {
  const double total = std::accumulate(mass.begin(), mass.end(), 0.0);
  const std::set<int32_t> chosen(list.begin(), list.end());
  ASSERT_EQ(chosen.size(), list.size());
  ASSERT_TRUE(std::is_sorted(list.begin(), list.end()));
  double held = 0, least = total, most_left = 0;
  size_t found = 0;
  for (size_t i = 0; i < loose.size(); ++i) {
    const bool in = chosen.contains(loose[i]);
    found += in;
    if (in) held += mass[i];
    if (forced[i]) {
      EXPECT_TRUE(in) << "forced " << loose[i];
      continue;
    }
    if (in) least = std::min(least, mass[i]);
    if (!in) most_left = std::max(most_left, mass[i]);
  }
  ASSERT_EQ(found, list.size()) << "a page from outside the loose set";
  EXPECT_GE(held, share * total - slack);
  EXPECT_LE(most_left, least + slack);
  if (least < total) {
    EXPECT_LT(held - least, share * total + slack) << "a page too many";
  }
}

void RunCase(DType dtype, int n, int page_size, int dim, int q_heads, int kv_heads, double share,
             const std::string& selector, uint64_t seed) {
  SCOPED_TRACE(::testing::Message() << "n " << n << " page " << page_size << " d " << dim << " heads " << q_heads << "/"
                                    << kv_heads << " p " << share << " of " << selector << " " << DTypeName(dtype));
  const std::vector<int> lens = {n, std::max(1, n / 3)};
  PagedCache cache(dtype, page_size, kv_heads, dim, dim, lens, seed, true);
  cache.Fill(TwoThreads());
  for (int s = 0; s < 2; ++s) {
    for (int pos = lens[static_cast<size_t>(s)]; pos < cache.Pages(s) * page_size; ++pos) cache.PoisonSlot(s, pos);
  }
  Step step(cache, q_heads, {0, 1}, lens, seed + 1);
  step.p.scale = 0.3f;
  const std::string rest = "token_budget=" + std::to_string(4 * page_size);
  const auto policy =
      Make("top-p:loose=0.4:p=" + std::to_string(share) + ":selector=" + selector + ":" + rest, page_size);
  const auto loose_policy = Make(selector + ":budget_share=0.4:" + rest, page_size);
  const Selected s = Select(*policy, step.p, 2), loose = Select(*loose_policy, step.p, 1);
  EXPECT_EQ(s.view.max_pages, loose.view.max_pages);
  for (int row = 0; row < 2; ++row) {
    const int64_t length = lens[static_cast<size_t>(row)];
    const auto budget = PageBudget::Create(4 * page_size, page_size, page_size, page_size);
    const ForcedPages f = ForcedPages::Create(budget, length, page_size);
    for (const int h : std::set<int>{0, kv_heads - 1}) {
      const size_t list = static_cast<size_t>(row * kv_heads + h);
      const std::vector<int32_t> pages = loose.List(list);
      std::vector<bool> forced;
      for (const int32_t page : pages) forced.push_back(page < f.sinks || page >= f.recent);
      // h2o's and swa's recent half of four pages is a page and the partly filled one, as all others' is.
      CheckFewest(s.List(list), pages, reference::ListedMass(step.p, row, h, pages), forced, share,
                  1e-4 * q_heads / kv_heads);
    }
  }
}

void RunGrid(const std::vector<int>& lengths) {
  const std::vector<int> pages{1, 3, 7, 16, 32, 64}, dims{64, 80, 96, 128, 256};
  const std::vector<std::pair<int, int>> heads{{32, 32}, {32, 8}, {9, 3}, {8, 1}};
  const std::vector<DType> dtypes{DType::kF32, DType::kBF16, DType::kF16};
  const std::vector<double> shares{0.0, 0.5, 0.95, 1.0};
  const std::vector<std::string> selectors{"quest", "hierarchical", "hybrid", "sparq", "swa", "h2o", "tova"};
  uint64_t seed = 1;
  for (const std::vector<int>& r : AllPairs({static_cast<int>(lengths.size()), 6, 5, 4, 3, 4, 7})) {
    const auto at = [&](const auto& values, size_t i) { return values[static_cast<size_t>(r[i])]; };
    RunCase(at(dtypes, 4), at(lengths, 0), at(pages, 1), at(dims, 2), at(heads, 3).first, at(heads, 3).second,
            at(shares, 5), at(selectors, 6), seed++);
  }
}

TEST(TopP, ListsAreTheFewestOnShortLengths) { RunGrid({1, 17, 127, 400}); }
TEST(SlowTopP, ListsAreTheFewestOnTheWholeGrid) { RunGrid({1, 15, 16, 17, 63, 127, 1110, 4099, 8192}); }

// A reference with its own search gives the very lists where masses are far apart.
TEST(TopP, ListsAreTheReferences) {
  PagedCache cache(DType::kF32, 16, 2, 64, 64, {16 * 60 + 3}, 1, true);
  cache.Fill(TwoThreads());
  Step step(cache, 6, {0}, {16 * 60 + 3}, 2);
  step.p.scale = 0.5f;
  for (const double share : {0.3, 0.7, 0.95, 0.999}) {
    const auto policy = Make("top-p:token_budget=640:p=" + std::to_string(share), 16);
    const auto loose_policy = Make("quest:token_budget=640", 16);
    const Selected s = Select(*policy, step.p, 1), loose = Select(*loose_policy, step.p, 1);
    for (int h = 0; h < 2; ++h) {
      const std::vector<int32_t> pages = loose.List(static_cast<size_t>(h));
      std::vector<bool> forced;
      for (const int32_t page : pages) forced.push_back(page < 1 || page >= 59);
      std::vector<int32_t> expected;
      for (const int32_t i : reference::FewestWith(reference::ListedMass(step.p, 0, h, pages), forced, share)) {
        expected.push_back(pages[static_cast<size_t>(i)]);
      }
      EXPECT_EQ(s.List(static_cast<size_t>(h)), expected) << share;
    }
  }
}

TEST(TopP, TheBudgetFollowsHeadsAndSteps) {
  PagedCache cache(DType::kF32, 16, 2, 32, 32, {16 * 100}, 1, true);
  cache.Fill(TwoThreads());
  Step step(cache, 2, {0}, {16 * 100}, 2);
  const auto policy = Make("top-p:loose=0.5:token_budget=64", 16);
  for (int c = 0; c < 32; ++c) step.q[static_cast<size_t>(c)] = 0;     // head 0: all tokens weigh the same
  for (int c = 32; c < 64; ++c) step.q[static_cast<size_t>(c)] *= 30;  // head 1: a few tokens have it all
  const Selected s = Select(*policy, step.p, 2);
  EXPECT_GE(s.counts[0], 47);  // 0.95 of 50 equal pages
  EXPECT_LE(s.counts[0], 48);
  EXPECT_LE(s.counts[1], 8);
  EXPECT_GE(s.counts[1], 2);
  // Doubling the queries sharpens the softmax: fewer pages.
  int before = 1000;
  for (const float factor : {0.5f, 2.0f, 8.0f}) {
    Step sharp(cache, 2, {0}, {16 * 100}, 3);
    for (float& q : sharp.q) q *= factor;
    const Selected t = Select(*policy, sharp.p, 2);
    EXPECT_LT(t.counts[0], before);
    before = t.counts[0];
  }
}

}  // namespace
}  // namespace quire

// What every policy that chooses pages keeps to, whatever its score: bits that depend on neither
// threads, batch nor pages' places, forced pages, ties, freed pages, NaN, and the dense path at a full budget.
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "tests/kernels/selecting.h"

namespace quire {
namespace {

using namespace quire::testing;  // NOLINT: this file tests nothing else

class PagePolicies : public ::testing::TestWithParam<const char*> {
 protected:
  std::string Spec() const { return GetParam(); }  // up to where more options may follow
  // Without what the test gives itself.
  std::string SpecWithout(const std::string& option) const {
    std::string spec = GetParam();
    if (const size_t at = spec.find(option); at != std::string::npos) spec.erase(at, spec.find(':', at) + 1 - at);
    return spec;
  }
};

INSTANTIATE_TEST_SUITE_P(
    All, PagePolicies,
    ::testing::Values("quest:", "quest:group_reduce=sum:", "hierarchical:", "hierarchical:keep=0.001:",
                      "hierarchical:keep=1:", "hierarchical:group_reduce=mean:", "hierarchical:metadata=int8:", "hybrid:", "hybrid:channels=3:",
                      "hybrid:channels=1000:group_reduce=sum:", "sparq:", "sparq:channels=6:", "sparq:channels=1000:",
                      "h2o:recent_tokens=16:", "swa:recent_tokens=16:", "swa:rows=1:recent_tokens=16:", "tova:",
                      "top-p:p=1:loose=0.01:", "top-p:selector=h2o:p=1:loose=0.01:recent_tokens=16:"));

TEST_P(PagePolicies, BitsDependNeitherOnThreadsNorBatchNorPhysicalPages) {
  PagedCache cache(DType::kBF16, 16, 2, 64, 64, {2500, 1500}, 1, true);
  cache.Fill(TwoThreads());
  const auto policy = Make(Spec() + "token_budget=256:dense_layers=0", 16);
  Step step(cache, 8, {0, 1}, {2500, 1500}, 2);
  const Selected base = Select(*policy, step.p, 1);
  for (const int threads : {2, 3}) EXPECT_EQ(Select(*policy, step.p, threads).pages, base.pages);
  Step alone(cache, 8, {1}, {1500}, 2);
  alone.q.assign(step.q.begin() + 512, step.q.end());
  alone.p.q = alone.q.data();
  const Selected one = Select(*policy, alone.p, 2);
  for (size_t h = 0; h < 2; ++h) EXPECT_EQ(one.List(h), base.List(2 + h));
  EXPECT_NE(base.List(0), base.List(1));  // one set per KV head
}

TEST_P(PagePolicies, ColumnsPastTheLastPageAndMetadataOfOthersNeverCount) {
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
  cache.Encode();
  const auto policy = Make(Spec() + "token_budget=128", 16);
  Step step(cache, 2, {0}, {16 * 35 + 3}, 2);
  const std::vector<int32_t> list = Select(*policy, step.p, 1).List(0);
  EXPECT_EQ(list.size(), 8u);
  EXPECT_EQ(list.back(), 35);
  EXPECT_EQ(list[6], 34);
}

TEST_P(PagePolicies, FreedPagesAndNanMetadataAreNeverChosen) {
  PagedCache cache(DType::kF32, 16, 1, 16, 16, {16 * 50}, 1, true);
  cache.Fill(TwoThreads());
  for (int page = 0; page < 10; ++page) cache.PageId(0, page) = -1;
  const PageFormat& f = cache.table().format;
  auto* meta = static_cast<float*>(cache.pages().meta);
  for (int c = 0; c < 16; ++c) {  // of page 20; policies may read some channels and one of min and max
    for (int which = 0; which < 2; ++which) {
      meta[cache.table().group_ids[1] * f.meta_group_stride + f.MetaOffset(which, c, 4)] = std::nanf("");
    }
  }
  cache.PoisonSlot(0, 20 * 16 + 5);
  cache.Encode();
  const auto policy = Make(Spec() + "token_budget=" + std::to_string(16 * 38), 16);
  Step step(cache, 2, {0}, {16 * 50}, 2);
  const auto fill = [](int seq, int head, int64_t page) {
    return page == 20 ? std::nanf("") : RandomEntry(seq, head, page);
  };
  const std::vector<int32_t> list = Select(*policy, step.p, 2, fill).List(0);
  for (const int32_t page : list) {
    EXPECT_GE(page, 10);
    EXPECT_NE(page, 20);
  }
  EXPECT_GE(list.size(), 36u);
}

TEST_P(PagePolicies, EqualScoresGoToTheLowerPage) {
  PagedCache cache(DType::kBF16, 4, 2, 16, 16, {4 * 100}, 1, true);
  cache.Fill(TwoThreads());
  // All pages alike.
  const PageFormat& f = cache.table().format;
  auto* meta = static_cast<BF16*>(cache.pages().meta);
  auto* over = static_cast<BF16*>(cache.pages().over);
  for (int64_t i = 0; i < 8 * f.meta_group_stride; ++i) meta[i] = ToBF16(0.5f);
  for (int64_t i = 0; i < 8 * f.over_group_stride; ++i) over[i] = ToBF16(0.5f);
  std::fill_n(static_cast<BF16*>(cache.pages().k), 103 * f.k_page_stride, ToBF16(0.5f));
  cache.Encode();
  Step step(cache, 4, {0}, {400}, 2);
  const auto policy = Make(SpecWithout("recent_tokens") + "recent_tokens=4:token_budget=40:dense_layers=0", 4);
  for (const int threads : {1, 2}) {
    const Selected s = Select(*policy, step.p, threads, [](int, int, int64_t) { return 0.5f; });
    for (size_t h = 0; h < 2; ++h) EXPECT_EQ(s.List(h), (std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 99}));
  }
}

TEST_P(PagePolicies, QueriesAndHistoriesThatAreNanChooseNothingButWhatIsForced) {
  PagedCache cache(DType::kBF16, 16, 1, 32, 32, {16 * 60 + 5}, 1, true);
  cache.Fill(TwoThreads());
  Step step(cache, 3, {0}, {16 * 60 + 5}, 2);
  std::fill(step.q.begin(), step.q.end(), std::nanf(""));
  const auto policy = Make(SpecWithout("recent_tokens") + "token_budget=320:sink_tokens=32:recent_tokens=32", 16);
  const auto nan = [](int, int, int64_t) { return std::nanf(""); };
  EXPECT_EQ(Select(*policy, step.p, 2, nan).List(0), (std::vector<int32_t>{0, 1, 58, 59, 60}));
}

TEST_P(PagePolicies, SinksAndRecentPagesAreInWhateverTheyScore) {
  for (const int tokens : {16 * 64, 16 * 64 + 1, 16 * 70 + 9}) {
    PagedCache cache(DType::kF32, 16, 2, 18, 18, {tokens}, 3, true);
    cache.Fill(TwoThreads());
    Step step(cache, 4, {0}, {tokens}, 4);
    const auto policy = Make(SpecWithout("recent_tokens") + "token_budget=192:sink_tokens=40:recent_tokens=50", 16);
    for (size_t h = 0; h < 2; ++h) {
      const std::vector<int32_t> list = Select(*policy, step.p, 2).List(h);
      ASSERT_EQ(list.size(), 12u);
      const std::set<int32_t> chosen(list.begin(), list.end());
      for (int32_t page = 0; page < 3; ++page) EXPECT_TRUE(chosen.contains(page)) << page;
      for (int32_t page = tokens / 16 - 4; page < (tokens + 15) / 16; ++page)
        EXPECT_TRUE(chosen.contains(page)) << page;
    }
  }
}

TEST_P(PagePolicies, OnePageShortOfTheWholeLengthIsSparseAndListsAllPagesButOne) {
  PagedCache cache(DType::kBF16, 16, 2, 64, 64, {16 * 40}, 5, true);
  cache.Fill(TwoThreads());
  Step step(cache, 4, {0}, {16 * 40}, 6);
  const auto policy = Make(Spec() + "dense_layers=0:token_budget=" + std::to_string(16 * 39), 16);
  EXPECT_FALSE(policy->IsDense(16 * 40, 0, 16));
  EXPECT_TRUE(policy->IsDense(16 * 39, 0, 16));
  EXPECT_EQ(Select(*policy, step.p, 2).List(0).size(), 39u);
}

TEST_P(PagePolicies, BytesAreCountedByTheFormulaAndInWholeLines) {
  PagedCache cache(DType::kBF16, 16, 2, 64, 64, {16 * 16 * 20}, 7, true);
  Step step(cache, 4, {0}, {16 * 16 * 20}, 8);
  const auto policy = Make(Spec() + "token_budget=256", 16);
  const int64_t bytes = policy->SelectBytes(step.p), lines = policy->SelectLineBytes(step.p);
  const int64_t vectors = 2 * 2 * 64 * 2;  // of all heads, min and max
  const std::string spec = Spec();
  if (spec.starts_with("quest")) {
    EXPECT_EQ(bytes, 320 * vectors);
  }
  if (spec == "hierarchical:") {
    EXPECT_EQ(bytes, (20 + 5 * 16) * vectors);
  }
  if (spec == "hierarchical:keep=0.001:") {
    EXPECT_EQ(bytes, (20 + 16) * vectors);  // one group holds 14 free pages
  }
  if (spec == "hierarchical:metadata=int8:") {
    EXPECT_EQ(bytes, 20 * vectors + 5 * (16 * vectors / 2 + vectors));  // a group's own min and max, and codes
  }
  if (spec == "hierarchical:keep=1:") {
    EXPECT_EQ(bytes, 320 * vectors);  // no group is scored
  }
  if (spec == "hybrid:") {
    EXPECT_EQ(bytes, 320 * 2 * 16 * 2);
  }
  if (spec == "hybrid:channels=3:") {
    EXPECT_EQ(bytes, 320 * 2 * 3 * 2);
  }
  if (spec.starts_with("sparq")) {
    EXPECT_EQ(bytes, 16 * 320 * 2 * 2 * (spec == "sparq:" ? 32 : spec == "sparq:channels=6:" ? 6 : 64));
    EXPECT_EQ(lines, bytes);  // at 16 tokens a page a word's run is a line
  } else if (spec.starts_with("top-p")) {
    const int64_t loose_keys = 2 * 16 * 16 * 64 * 2;
    EXPECT_EQ(bytes, loose_keys + (spec.starts_with("top-p:selector=h2o") ? 320 * 2 * 4 : 320 * vectors));
    EXPECT_EQ(lines, bytes);
  } else if (policy->Declare().history > 0) {
    EXPECT_EQ(bytes, 320 * 2 * 4 * (spec.starts_with("swa:recent") ? 4 : 1));
    EXPECT_EQ(lines, bytes);
  } else if (spec.starts_with("hybrid")) {
    EXPECT_GE(lines, bytes);
    EXPECT_LE(lines, 2 * bytes);  // a run of 16 pages is half a line
    EXPECT_EQ(lines % 64, 0);
  } else {
    EXPECT_EQ(lines, bytes);
  }
}

}  // namespace
}  // namespace quire

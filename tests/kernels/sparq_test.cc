// SparQ: pages' shares against a softmax computed from K itself, the choice of channels, and the lines it reads. Its
// lists against the reference's are in selection_grid_test.cc.
#include "kernels/reference/sparq.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <set>
#include <tuple>

#include "kernels/cpu/sparq_scores.h"
#include "tests/kernels/selecting.h"

namespace quire {
namespace {

using namespace quire::testing;  // NOLINT: this file tests nothing else

// The kernel's scores over all channels of one KV head, with queries as they are.
std::vector<float> ScoresOf(const PagedCache& cache, const Step& step, int head, int pages_per_call) {
  const PageFormat& f = cache.table().format;
  const int heads = step.p.q_heads / f.kv_heads, pages = cache.Pages(0), words = f.k_dim / f.word;
  std::vector<float> q;
  std::vector<int32_t> ids(static_cast<size_t>(words));
  std::iota(ids.begin(), ids.end(), 0);
  for (int word = 0; word < words; ++word) {
    for (int h = 0; h < heads; ++h) {
      for (int w = 0; w < f.word; ++w) {
        q.push_back(step.q[static_cast<size_t>((head * heads + h) * f.k_dim + word * f.word + w)] /
                    std::sqrt(static_cast<float>(f.k_dim)));
      }
    }
  }
  std::vector<float> max(static_cast<size_t>(heads * pages)), sum(max.size()), scores(static_cast<size_t>(pages));
  for (int first = 0; first < pages; first += pages_per_call) {
    SparqScoreParams s;
    s.dtype = f.dtype;
    s.q = q.data();
    s.heads = heads;
    s.words = ids.data();
    s.num_words = words;
    s.k = static_cast<const char*>(cache.pages().k) + head * f.k_head_stride * ElementSize(f.dtype);
    s.page_stride = f.k_page_stride;
    s.page_ids = cache.table().page_ids + first;
    s.pages = std::min(pages - first, pages_per_call);
    s.page_size = f.page_size;
    s.last_slots = first + s.pages < pages ? f.page_size : cache.lengths()[0] - (pages - 1) * f.page_size;
    s.max = max.data() + first;
    s.sum = sum.data() + first;
    s.head_stride = pages;
    SparqScores(s);
  }
  SparqMerge(max.data(), sum.data(), heads, pages, pages, scores.data());
  return scores;
}

TEST(SparqScores, AreThePagesSharesOfASoftmaxOverAllTokens) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const int page_size : {1, 3, 16, 23, 32, 64}) {
      for (const auto& [q_heads, kv_heads, dim] :
           std::vector<std::tuple<int, int, int>>{{4, 1, 64}, {9, 3, 80}, {14, 2, 18}, {5, 5, 2}}) {
        PagedCache cache(dtype, page_size, kv_heads, dim, dim, {333}, 1, true);
        cache.Fill(TwoThreads());
        Step step(cache, q_heads, {0}, {333}, 2);
        for (int h = 0; h < kv_heads; h += 2) {
          const std::vector<double> expected = reference::SparqScores(step.p, 0, h, dim);
          const std::vector<float> scores = ScoresOf(cache, step, h, 1000);
          ASSERT_EQ(scores.size(), expected.size());
          double sum = 0;
          for (size_t i = 0; i < expected.size(); ++i) {
            EXPECT_NEAR(scores[i], expected[i], 5e-5 * expected[i]) << i;
            sum += scores[i];
          }
          EXPECT_NEAR(sum, q_heads / kv_heads, 1e-4);
          EXPECT_EQ(ScoresOf(cache, step, h, 7), scores);  // however pages are cut into calls
        }
      }
    }
  }
}

TEST(SparqScores, KeysFarApartStayFiniteAndAPageOfNanIsAlone) {
  PagedCache cache(DType::kF32, 16, 1, 8, 8, {16 * 12}, 1, true);
  cache.Fill(TwoThreads());
  Step step(cache, 2, {0}, {16 * 12}, 2);
  for (float& x : step.q) x *= 1e4f;
  const std::vector<float> scores = ScoresOf(cache, step, 0, 1000);
  float sum = 0;
  for (const float score : scores) {
    EXPECT_TRUE(score >= 0) << score;
    sum += score;
  }
  EXPECT_NEAR(sum, 2, 1e-5);
  cache.PoisonSlot(0, 16 * 5 + 15);
  const std::vector<float> poisoned = ScoresOf(cache, step, 0, 1000);
  sum = 0;
  for (size_t page = 0; page < 12; ++page) {
    EXPECT_EQ(std::isnan(poisoned[page]), page == 5);
    if (page != 5) sum += poisoned[page];
  }
  EXPECT_NEAR(sum, 2, 1e-5);
}

TEST(Sparq, ChannelsAreThoseOfTheWholeGroup) {
  PagedCache cache(DType::kF32, 1, 1, 4, 4, {20}, 1, true);
  cache.Fill(TwoThreads());
  const PageFormat& f = cache.table().format;
  auto* k = static_cast<float*>(cache.pages().k);
  std::fill_n(k, 23 * f.k_page_stride, 0.0f);
  const auto set = [&](int page, int channel, float x) {
    k[cache.PageId(0, page) * f.k_page_stride + f.KOffset(0, channel)] = x;
  };
  set(5, 0, 3);    // channel 0: Σ|q| = 3
  set(9, 2, 100);  // channel 2: Σ|q| = 2, left out when one channel is taken
  Step step(cache, 2, {0}, {20}, 2);
  step.q = {3, 0.5f, 1, 0, 0, 0.5f, 1, 0};
  step.p.q = step.q.data();
  const std::string spec = "sparq:token_budget=3:sink_tokens=1:recent_tokens=1:channels=";
  EXPECT_EQ(Select(*Make(spec + "1", 1), step.p, 1).List(0), (std::vector<int32_t>{0, 5, 19}));
  EXPECT_EQ(Select(*Make(spec + "3", 1), step.p, 1).List(0), (std::vector<int32_t>{0, 9, 19}));
}

TEST(Sparq, ReadsNothingButKAndNeedsNoMetadata) {
  PagedCache cache(DType::kBF16, 16, 2, 64, 64, {16 * 60 + 3}, 1);
  cache.Fill(TwoThreads());
  Step step(cache, 4, {0}, {16 * 60 + 3}, 2);
  const auto policy = Make("sparq:token_budget=160", 16);
  EXPECT_FALSE(policy->Declare().min_max);
  const std::vector<int32_t> list = Select(*policy, step.p, 2).List(1);
  EXPECT_EQ(list.size(), 10u);
  EXPECT_EQ(policy->SelectBytes(step.p), (16 * 60 + 3) * 2 * 32 * 2);
}

TEST(Sparq, RunsThatDontFillLinesCountWholeLines) {
  for (const int page_size : {3, 7, 16, 32}) {
    PagedCache cache(DType::kBF16, page_size, 2, 64, 64, {page_size * 40}, 1);
    Step step(cache, 4, {0}, {page_size * 40}, 2);
    const auto policy = Make("sparq:channels=12:token_budget=" + std::to_string(8 * page_size), page_size);
    // Counted slot by slot.
    const PageFormat& f = cache.table().format;
    int64_t lines = 0;
    for (int head = 0; head < 2; ++head) {
      for (int page = 0; page < 40; ++page) {
        std::set<int64_t> touched;
        for (const int32_t word : reference::SparqWords(step.p, 0, head, 12)) {
          for (int slot = 0; slot < page_size; ++slot) {
            const int64_t at =
                cache.PageId(0, page) * f.k_page_stride + head * f.k_head_stride + f.KOffset(slot, word * 2);
            touched.insert(at * 2 / 64);
          }
        }
        lines += static_cast<int64_t>(touched.size());
      }
    }
    EXPECT_EQ(policy->SelectLineBytes(step.p), lines * 64) << page_size;
    EXPECT_GE(lines * 64, policy->SelectBytes(step.p));
  }
}

TEST(Sparq, TokensAreListedByTheirPagesAndSlots) {
  for (const int page_size : {1, 7, 16, 100}) {  // of more than one word of mask
    PagedCache cache(DType::kF32, page_size, 2, 16, 16, {777, 40}, 1);
    cache.Fill(TwoThreads());
    Step step(cache, 4, {0, 1}, {777, 40}, 2);
    const auto policy = Make("sparq:level=token:token_budget=61:recent_tokens=5:sink_tokens=3", page_size);
    EXPECT_TRUE(policy->Declare().slots);
    EXPECT_EQ(policy->MaxPages(100000, page_size), 61);
    EXPECT_TRUE(policy->IsDense(61, 5, page_size));
    EXPECT_FALSE(policy->IsDense(62, 5, page_size));
    const Selected s = Select(*policy, step.p, 2);
    for (size_t list = 0; list < 4; ++list) {
      const std::vector<int32_t> tokens = s.Tokens(list), pages = s.List(list);
      EXPECT_EQ(tokens.size(), list < 2 ? 61u : 40u);
      EXPECT_TRUE(std::is_sorted(pages.begin(), pages.end()));
      std::set<int32_t> of_tokens;
      for (const int32_t token : tokens) of_tokens.insert(token / page_size);
      EXPECT_EQ(std::vector<int32_t>(of_tokens.begin(), of_tokens.end()), pages);  // no page without a token
      const int length = list < 2 ? 777 : 40;
      for (const int forced : {0, 1, 2, length - 5, length - 1}) {
        EXPECT_TRUE(std::binary_search(tokens.begin(), tokens.end(), forced)) << forced;
      }
    }
    EXPECT_EQ(Select(*policy, step.p, 1).masks, s.masks);
  }
}

TEST(Sparq, ATokenOfNanIsNotChosenAndNeitherIsAFreedPage) {
  PagedCache cache(DType::kF32, 16, 1, 16, 16, {16 * 12}, 1);
  cache.Fill(TwoThreads());
  Step step(cache, 2, {0}, {16 * 12}, 2);
  cache.PoisonSlot(0, 16 * 5 + 3);
  std::vector<int32_t> ids;
  for (int page = 0; page < 12; ++page) ids.push_back(cache.PageId(0, page));
  ids[7] = -1;
  step.p.table.page_ids = ids.data();
  for (const char* spec : {"sparq:level=token:token_budget=170:v_mean=on", "sparq:token_budget=176:v_mean=on"}) {
    const Selected s = Select(*Make(spec, ShapeOf(step.p)), step.p, 1);
    for (const int32_t page : s.List(0)) EXPECT_NE(page, 7);
    if (!s.masks.empty()) {
      for (const int32_t token : s.Tokens(0)) EXPECT_NE(token, 16 * 5 + 3);
    }
    for (const float alpha : s.alpha) EXPECT_TRUE(alpha > 0.5f && alpha <= 1) << alpha;
  }
}

TEST(Sparq, TheMeanOfVIsOnForHeadsOfTheirOwnOnly) {
  const PolicyShape own{16, 64, 64, DType::kBF16, 1}, grouped{16, 64, 64, DType::kBF16, 3};
  EXPECT_TRUE(Make("sparq", own)->Declare().correction);
  EXPECT_EQ(Make("sparq", own)->Declare().history, 65);
  EXPECT_FALSE(Make("sparq", own)->Declare().mass);
  EXPECT_FALSE(Make("sparq", grouped)->Declare().correction);
  EXPECT_EQ(Make("sparq", grouped)->Declare().history, 0);
  EXPECT_FALSE(Make("sparq:v_mean=off", own)->Declare().correction);
  EXPECT_TRUE(Make("sparq:v_mean=on", grouped)->Declare().correction);
}

// The history that a step leaves is that of the cache, however many steps made it, and whatever was there before a fork
// or a truncation.
TEST(Sparq, SumsOfVFollowFromTheCacheAlone) {
  constexpr int kPage = 8, kLength = 100;
  PagedCache cache(DType::kBF16, kPage, 2, 16, 16, {kLength}, 1);
  cache.Fill(TwoThreads());
  Step step(cache, 2, {0}, {kLength}, 2);
  const auto policy = Make("sparq:token_budget=32:v_mean=on", ShapeOf(step.p));
  const int width = policy->Declare().history, pages = (kLength + kPage - 1) / kPage;
  const auto fresh = [&] { return std::vector<float>(static_cast<size_t>(2 * pages * width)); };
  const auto select = [&](std::vector<float>& values, int length) {
    const PageHistory history{values.data(), int64_t{pages} * width, 2, (length + kPage - 1) / kPage, width};
    const std::vector<int32_t> lengths = {length};
    SelectParams p = step.p;
    p.row_len = lengths.data();
    p.history = &history;
    return Select(*policy, p, 1).v_mean;
  };
  std::vector<float> at_once = fresh(), step_by_step = fresh();
  const std::vector<float> mean = select(at_once, kLength);
  for (int length = 40; length < kLength; ++length) select(step_by_step, length);
  EXPECT_EQ(select(step_by_step, kLength), mean);
  EXPECT_EQ(step_by_step, at_once);
  const std::vector<double> expected = reference::MeanOfV(step.p, 0, 1);
  for (size_t c = 0; c < 16; ++c) EXPECT_NEAR(mean[16 + c], expected[c], 1e-6);

  // A fork, then a truncation into a page that was full, then other tokens there.
  std::vector<float> child = fresh();
  PageHistory from{at_once.data(), int64_t{pages} * width, 2, pages, width};
  PageHistory to{child.data(), int64_t{pages} * width, 2, 0, width};
  policy->Fork(from, &to);
  EXPECT_EQ(child, at_once);
  policy->Truncate(61, kPage, &to);
  EXPECT_EQ(to.pages, 8);
  const int32_t seq = 0;
  std::vector<float> k(32, 1.0f), v(32, 5.0f);
  for (int32_t pos = 61; pos < kLength; ++pos) {
    KvAppend(TwoThreads(), {.pages = cache.pages(),
                            .table = cache.table(),
                            .k = k.data(),
                            .k_stride = 32,
                            .v = v.data(),
                            .v_stride = 32,
                            .row_seq = &seq,
                            .row_pos = &pos,
                            .rows = 1});
  }
  std::vector<float> other = fresh();
  EXPECT_NE(select(other, kLength), mean);
  EXPECT_EQ(select(child, kLength), select(other, kLength));
  EXPECT_EQ(child, other);
}

// Where ranks share a KV head each sees the whole group, and takes the factors of its own heads.
TEST(Sparq, FactorsAreThoseOfTheHeadsThatAttend) {
  PagedCache cache(DType::kF32, 4, 1, 16, 16, {100}, 1);
  cache.Fill(TwoThreads());
  Step step(cache, 6, {0, 0}, {100, 77}, 2);
  const auto policy = Make("sparq:token_budget=32:v_mean=on", ShapeOf(step.p));
  const Selected all = Select(*policy, step.p, 1);
  step.p.first_head = 2;
  step.p.heads = 3;
  const Selected part = Select(*policy, step.p, 1);
  EXPECT_EQ(part.pages, all.pages);
  for (size_t row = 0; row < 2; ++row) {
    for (size_t h = 0; h < 3; ++h) EXPECT_EQ(part.alpha[row * 3 + h], all.alpha[row * 6 + 2 + h]);
  }
}

}  // namespace
}  // namespace quire

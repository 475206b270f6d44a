// Quest on the GPU under the emulator: scores against the bounds of K itself, lists exactly the rules' from those scores, and
// the top-k against sorting.
#include "kernels/cuda/quest.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/cuda/top_pages.h"
#include "kernels/reference/quest.h"
#include "kernels/reference/top_p.h"
#include "tests/kernels/cuda/emulator/options.h"
#include "tests/kernels/cuda/typed.h"
#include "tests/kernels/paged_cache.h"
#include "tests/kernels/pairwise.h"

namespace quire {
namespace {

using testing::PagedCache;
using testing::Typed;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Lists {
  std::vector<int32_t> pages, counts;
  int max_pages;
  Lists(int64_t lists, int most)
      : pages(static_cast<size_t>(lists * most), -7), counts(static_cast<size_t>(lists), -7), max_pages(most) {}
  SelectionView View() {
    SelectionView view;
    view.pages = pages.data();
    view.counts = counts.data();
    view.max_pages = max_pages;
    return view;
  }
  std::vector<int32_t> List(size_t i) const {
    const auto begin = pages.begin() + static_cast<int64_t>(i) * max_pages;
    return {begin, begin + counts[i]};
  }
};

// The rules, from scores: forced pages that exist, and the best of the rest.
std::vector<int32_t> Expected(const std::vector<float>& scores, const PageBudget& budget, int length, int page_size,
                              const int32_t* ids) {
  const ForcedPages cut = ForcedPages::Create(budget, length, page_size);
  std::vector<int32_t> list;
  for (int page = 0; page < cut.sinks; ++page) {
    if (ids == nullptr || ids[page] >= 0) list.push_back(page);
  }
  std::vector<double> free;
  for (int page = cut.sinks; page < cut.recent; ++page) {
    free.push_back(ids != nullptr && ids[page] < 0 ? kNan : scores[static_cast<size_t>(page)]);
  }
  for (const int32_t page : reference::TopPages(free, cut.free)) list.push_back(cut.sinks + page);
  for (int page = cut.recent; page < cut.pages; ++page) {
    if (ids == nullptr || ids[page] >= 0) list.push_back(page);
  }
  return list;
}

struct Shape {
  DType dtype;
  int page_size, q_heads, kv_heads, dim;
  GroupReduce reduce;
  bool float_q;
  double share = 0;  // budget_share
};

void ScoresAndLists(const Shape& shape, const std::vector<int>& lengths, int budget_pages, uint64_t seed, int freed = 0) {
  SCOPED_TRACE(::testing::Message() << DTypeName(shape.dtype) << " page " << shape.page_size << " heads " << shape.q_heads << "/"
                                    << shape.kv_heads << " d " << shape.dim << " length " << lengths[0] << " budget "
                                    << budget_pages << " seed " << seed);
  emulator::Options options;
  options.seed = seed;
  const emulator::ScopedOptions scoped(options);
  static ThreadPool pool(2);
  Context ctx;
  ctx.pool = &pool;
  PagedCache cache(shape.dtype, shape.page_size, shape.kv_heads, shape.dim, shape.dim, lengths, seed, true);
  cache.Fill(ctx);
  for (int page = 0; page < freed; ++page) cache.PageId(0, page) = -1;
  const int rows = static_cast<int>(lengths.size());
  std::vector<int32_t> seq, len(lengths.begin(), lengths.end());
  for (int r = 0; r < rows; ++r) seq.push_back(r);
  const DType q_dtype = shape.float_q ? DType::kF32 : shape.dtype;
  const int64_t q_stride = shape.q_heads * shape.dim + 8;
  const Typed q(q_dtype, testing::SeededFloats(static_cast<size_t>(rows * q_stride), seed + 1));
  cuda::QuestParams p;
  p.q = q.data();
  p.q_stride = q_stride;
  p.rows = rows;
  p.q_heads = shape.q_heads;
  p.row_seq = seq.data();
  p.row_len = len.data();
  p.pages = cache.pages();
  p.table = cache.table();
  p.budget = PageBudget::Create(int64_t{budget_pages} * shape.page_size, shape.page_size, shape.page_size, shape.page_size,
                                shape.share);
  p.reduce = shape.reduce;
  const int longest = *std::max_element(lengths.begin(), lengths.end());
  p.max_groups = ((longest + shape.page_size - 1) / shape.page_size + kPagesPerGroup - 1) / kPagesPerGroup;
  std::vector<float> scores(static_cast<size_t>(rows * shape.kv_heads * p.max_groups * kPagesPerGroup), -12345.0f);
  p.scores = scores.data();
  const int most_pages = std::max(budget_pages, static_cast<int>(shape.share * longest) / shape.page_size);
  Lists lists(rows * shape.kv_heads, most_pages);
  ASSERT_TRUE(cuda::QuestSelect(Stream{}, q_dtype, p, lists.View()).ok());

  const std::vector<float> qf = q.Floats();
  SelectParams reference_params;
  reference_params.q = qf.data();
  reference_params.q_stride = q_stride;
  reference_params.rows = rows;
  reference_params.q_heads = shape.q_heads;
  reference_params.row_seq = seq.data();
  reference_params.row_len = len.data();
  reference_params.pages = cache.pages();
  reference_params.table = cache.table();
  for (int row = 0; row < rows; ++row) {
    const int length = lengths[static_cast<size_t>(row)];
    const ForcedPages cut = ForcedPages::Create(p.budget, length, shape.page_size);
    for (int h = 0; h < shape.kv_heads; ++h) {
      const size_t list = static_cast<size_t>(row * shape.kv_heads + h);
      const std::vector<float> mine(scores.begin() + static_cast<int64_t>(list) * p.max_groups * kPagesPerGroup,
                                    scores.begin() + static_cast<int64_t>(list + 1) * p.max_groups * kPagesPerGroup);
      if (cut.free > 0 && (h == 0 || h + 1 == shape.kv_heads)) {
        const std::vector<double> want = reference::QuestScores(reference_params, row, h, shape.reduce);
        for (int page = cut.sinks; page < cut.recent; ++page) {
          const auto at = static_cast<size_t>(page);
          if (std::isnan(want[at])) continue;  // a freed page: the list shows that it is left out
          // Sums of `dim` products of size about 2 in f32, over the heads of the group.
          ASSERT_NEAR(mine[at], want[at], shape.q_heads / shape.kv_heads * shape.dim * 2e-6) << "row " << row << " page " << page;
        }
      }
      ASSERT_EQ(lists.List(list), Expected(mine, p.budget, length, shape.page_size, cache.table().page_ids +
                                           cache.table().page_begin[row])) << "row " << row << " head " << h;
    }
  }
}

TEST(CudaQuest, ScoresAndListsOnShortLengths) {
  ScoresAndLists({DType::kBF16, 16, 8, 2, 64, GroupReduce::kMax, false}, {1110, 17, 400}, 16, 1);
  ScoresAndLists({DType::kF16, 7, 9, 3, 80, GroupReduce::kMean, false}, {600, 1, 127}, 16, 2);
  ScoresAndLists({DType::kF32, 3, 8, 1, 96, GroupReduce::kSum, true}, {200}, 4, 3);
  ScoresAndLists({DType::kBF16, 1, 2, 2, 128, GroupReduce::kMax, true}, {63, 15}, 16, 4);
  ScoresAndLists({DType::kBF16, 16, 2, 1, 256, GroupReduce::kMax, false}, {700}, 16, 5);
  ScoresAndLists({DType::kF16, 16, 14, 2, 18, GroupReduce::kMax, false}, {500}, 4, 6);
  ScoresAndLists({DType::kBF16, 32, 16, 1, 64, GroupReduce::kSum, false}, {2000}, 16, 7);
  ScoresAndLists({DType::kF32, 16, 1, 1, 64, GroupReduce::kMax, true}, {1110}, 4, 8);
  ScoresAndLists({DType::kF32, 16, 4, 1, 8, GroupReduce::kMean, true}, {1110}, 4, 9);
}

// Long rows take a part of their length, short ones the budget; the lengths are such that the parts end within pages.
TEST(CudaQuest, ABudgetThatIsAPartOfTheLengthIsEachRowsOwn) {
  ScoresAndLists({DType::kBF16, 16, 8, 2, 64, GroupReduce::kMax, false, 0.3}, {1110, 17, 400, 160, 159}, 6, 1);
  ScoresAndLists({DType::kF32, 3, 9, 3, 80, GroupReduce::kMean, true, 0.1}, {600, 1, 127}, 4, 2);
  ScoresAndLists({DType::kF16, 7, 4, 1, 64, GroupReduce::kMax, false, 1}, {300, 80}, 4, 3);
}

TEST(CudaQuest, FreedPagesAreNeverChosen) {
  ScoresAndLists({DType::kBF16, 16, 4, 1, 64, GroupReduce::kMax, false}, {16 * 50}, 38, 1, 10);
}

TEST(SlowCudaQuest, ScoresAndListsOnTheGrid) {
  const std::vector<int> lengths{1, 15, 16, 17, 63, 127, 1110, 4099, 8192, 28837}, pages{1, 3, 7, 16, 32, 64}, budgets{4, 16, 64};
  const std::vector<int> dims{64, 80, 96, 128, 256};
  const std::vector<std::pair<int, int>> heads{{32, 32}, {32, 8}, {9, 3}, {8, 1}};
  uint64_t seed = 1;
  for (const std::vector<int>& r : testing::AllPairs({10, 6, 3, 5, 4, 3, 2})) {
    const auto at = [&](const auto& values, size_t i) { return values[static_cast<size_t>(r[i])]; };
    int n = at(lengths, 0);
    const int page_size = at(pages, 1);
    if (n / page_size > 4200) n = 4200 * page_size;  // a page a token at the longest: as many pages as 67k tokens have at 16
    const auto [q_heads, kv_heads] = at(heads, 4);
    std::vector<int> lens{n};
    if (r[6] == 1) lens.insert(lens.end(), {std::max(1, n / 3), 1});
    const DType dtype = testing::kFloatDTypes[r[5]];
    ScoresAndLists({dtype, page_size, q_heads, kv_heads, at(dims, 3), static_cast<GroupReduce>(seed % 3), seed % 2 == 0,
                    seed % 4 == 3 ? 0.37 : 0},
                   lens, at(budgets, 2), seed);
    ++seed;
  }
}

TEST(CudaQuest, BitsDependNeitherOnTheBatchNorOnTheCut) {
  static ThreadPool pool(2);
  Context ctx;
  ctx.pool = &pool;
  PagedCache cache(DType::kBF16, 16, 2, 64, 64, {3000, 1500}, 1, true);
  cache.Fill(ctx);
  const Typed q(DType::kBF16, testing::SeededFloats(2 * 512, 2));
  const std::vector<int32_t> seq{0, 1}, len{3000, 1500};
  const auto scores = [&](int first, int rows, int max_groups) {
    std::vector<float> out(static_cast<size_t>(rows * 2 * max_groups * 16), 0.0f);
    cuda::QuestParams p;
    p.q = static_cast<const BF16*>(q.data()) + first * 512;
    p.q_stride = 512;
    p.rows = rows;
    p.q_heads = 8;
    p.row_seq = seq.data() + first;
    p.row_len = len.data() + first;
    p.pages = cache.pages();
    p.table = cache.table();
    p.budget = PageBudget::Create(256, 16, 16, 16);
    p.max_groups = max_groups;
    p.scores = out.data();
    EXPECT_TRUE(cuda::QuestScores(Stream{}, DType::kBF16, p).ok());
    return out;
  };
  const std::vector<float> both = scores(0, 2, 12), alone = scores(1, 1, 80);
  for (int h = 0; h < 2; ++h) {
    for (int page = 1; page < 92; ++page) {
      ASSERT_EQ(both[static_cast<size_t>((2 + h) * 12 * 16 + page)], alone[static_cast<size_t>(h * 80 * 16 + page)]) << page;
    }
  }
}

// n scores a list through the kernel with nothing forced.
std::vector<int32_t> Top(const std::vector<float>& scores, int k, int32_t longest = 0) {
  const auto n = static_cast<int32_t>(scores.size());
  const std::vector<int32_t> length{n};
  Lists lists(1, std::max(k, 1));
  cuda::TopPagesParams p;
  p.scores = scores.data();
  p.rows = p.kv_heads = 1;
  p.budget.budget = k;
  p.row_len = length.data();
  p.selection = lists.View();
  EXPECT_TRUE(cuda::TopPages(Stream{}, p, std::max(n, longest)).ok());
  return lists.List(0);
}

TEST(CudaTopPages, TiesGoToTheLowerIndexNanNeverWinsAndIdsAscend) {
  EXPECT_EQ(Top({1, 3, 2, 3, 3, 0}, 2), (std::vector<int32_t>{1, 3}));
  EXPECT_EQ(Top({0.0f, -0.0f, 0.0f}, 2), (std::vector<int32_t>{0, 1}));
  EXPECT_EQ(Top({-0.0f, 0.0f}, 1), (std::vector<int32_t>{0}));
  EXPECT_EQ(Top({5, 5, 5}, 5), (std::vector<int32_t>{0, 1, 2}));
  EXPECT_TRUE(Top({5, 5, 5}, 0).empty());
  EXPECT_TRUE(Top({}, 3).empty());
  EXPECT_EQ(Top({kNan, -kInf, kNan, 1, kInf}, 3), (std::vector<int32_t>{1, 3, 4}));
  EXPECT_EQ(Top({kNan, -kInf, kNan, 1, kInf}, 4), (std::vector<int32_t>{1, 3, 4}));
  EXPECT_TRUE(Top({kNan, -kNan, kNan}, 2).empty());
  EXPECT_EQ(Top({kNan, 1, kNan}, 3), (std::vector<int32_t>{1}));
}

void AgreesWithSorting(int trials, int most) {
  std::mt19937_64 random(11);
  for (int trial = 0; trial < trials; ++trial) {
    emulator::Options options;
    options.seed = static_cast<uint64_t>(trial);
    const emulator::ScopedOptions scoped(options);
    const int n = 1 + static_cast<int>(random() % static_cast<uint64_t>(trial % 8 == 0 ? most : 200));
    std::vector<float> scores;
    for (int i = 0; i < n; ++i) {
      // Few distinct values, or floats of close bits, or wide ones: every stage of the radix search decides somewhere.
      const uint64_t r = random();
      switch (trial % 4) {
        case 0: scores.push_back(static_cast<float>(r % 5) - 2); break;
        case 1: scores.push_back(std::bit_cast<float>(0x3f800000u + static_cast<uint32_t>(r % 3000))); break;
        case 2: scores.push_back(std::bit_cast<float>(static_cast<uint32_t>(r))); break;
        default: scores.push_back(r % 9 == 0 ? kNan : std::normal_distribution<float>()(random));
      }
    }
    const int k = static_cast<int>(random() % static_cast<uint64_t>(n + 2));
    ASSERT_EQ(Top(scores, k), reference::TopPages({scores.begin(), scores.end()}, k)) << "trial " << trial << " n " << n << " k " << k;
  }
}
TEST(CudaTopPages, AgreesWithSortingOnRandomLists) { AgreesWithSorting(60, 1500); }
TEST(SlowCudaTopPages, AgreesWithSortingOnManyAndLongLists) { AgreesWithSorting(600, 20000); }

TEST(CudaTopPages, ListsThatDoNotFitInSharedMemoryAndManyListsAtOnce) {
  std::vector<float> scores = testing::SeededFloats(9000, 4);
  EXPECT_EQ(Top(scores, 700), reference::TopPages({scores.begin(), scores.end()}, 700));
  // Rows of different lengths, a padding row, two heads.
  const int stride = 300, heads = 2;
  const std::vector<int32_t> len{300, 17, 255, 1}, seq{0, 1, -1, 2};
  scores = testing::SeededFloats(static_cast<size_t>(4 * heads * stride), 5);
  Lists lists(4 * heads, 20);
  cuda::TopPagesParams p;
  p.scores = scores.data();
  p.score_stride = stride;
  p.rows = 4;
  p.kv_heads = heads;
  p.budget = {20, 2, 3};
  p.row_seq = seq.data();
  p.row_len = len.data();
  p.selection = lists.View();
  ASSERT_TRUE(cuda::TopPages(Stream{}, p, stride).ok());
  for (int row = 0; row < 4; ++row) {
    for (int h = 0; h < heads; ++h) {
      const size_t list = static_cast<size_t>(row * heads + h);
      const std::vector<float> mine(scores.begin() + static_cast<int64_t>(list) * stride, scores.begin() + static_cast<int64_t>(list + 1) * stride);
      EXPECT_EQ(lists.List(list), row == 2 ? std::vector<int32_t>{} : Expected(mine, p.budget, len[static_cast<size_t>(row)], 1, nullptr));
    }
  }
}

// The fewest of `weights` that hold `share` of them, of which those in `forced` come first, through the kernel; pages are their
// places times three.
std::vector<int32_t> Fewest(const std::vector<float>& weights, int sinks, int recent, double share) {
  const auto n = static_cast<int32_t>(weights.size());
  std::vector<int32_t> pages, places;
  for (int32_t i = 0; i < n; ++i) pages.push_back(3 * i);
  const std::vector<int32_t> seq{0}, length{std::max(1, 3 * (n - 1) + 1)}, counts{n};
  Lists lists(1, std::max(n, 1));
  cuda::TopShareParams p;
  p.weights = weights.data();
  p.lists = pages.data();
  p.counts = counts.data();
  p.list_stride = n;
  p.rows = p.kv_heads = 1;
  p.budget = {n, 3 * sinks, 3 * recent};
  p.share = share;
  p.row_seq = seq.data();
  p.row_len = length.data();
  p.selection = lists.View();
  EXPECT_TRUE(cuda::TopShare(Stream{}, p).ok());
  for (const int32_t page : lists.List(0)) places.push_back(page / 3);
  return places;
}

TEST(CudaTopShare, TakesTheFewestThatHoldTheShare) {
  using Places = std::vector<int32_t>;
  EXPECT_EQ(Fewest({1, 4, 2, 3}, 0, 0, 0.7), (Places{1, 3}));
  EXPECT_EQ(Fewest({1, 4, 2, 3}, 0, 0, 0.71), (Places{1, 2, 3}));
  EXPECT_EQ(Fewest({1, 4, 2, 3}, 0, 0, 0.4), (Places{1}));
  EXPECT_EQ(Fewest({1, 4, 2, 3}, 1, 0, 0.5), (Places{0, 1}));
  EXPECT_EQ(Fewest({1, 4, 2, 3}, 1, 1, 0.3), (Places{0, 3}));
  EXPECT_EQ(Fewest({2, 2, 2, 2, 2}, 0, 0, 0.5), (Places{0, 1, 2}));
  EXPECT_EQ(Fewest({0, 1, 0, 1}, 0, 0, 1), (Places{1, 3}));
  EXPECT_EQ(Fewest({kNan, 1, kNan, 1}, 0, 0, 1), (Places{1, 3}));
  EXPECT_EQ(Fewest({kNan, 1, 1}, 1, 0, 0.4), (Places{0, 1}));
  EXPECT_TRUE(Fewest({1, 2, 3}, 0, 0, 0).empty());
  EXPECT_TRUE(Fewest({kNan, kNan}, 0, 0, 1).empty());
  EXPECT_TRUE(Fewest({}, 0, 0, 1).empty());
}

TEST(CudaTopShare, AgreesWithSortingOnRandomLists) {
  std::mt19937_64 random(5);
  for (int trial = 0; trial < 40; ++trial) {
    emulator::Options options;
    options.seed = static_cast<uint64_t>(trial);
    const emulator::ScopedOptions scoped(options);
    const int n = 1 + static_cast<int>(random() % 700);
    std::vector<float> weights;
    // Sums of quarters are exact; or sharp softmaxes' weights.
    for (int i = 0; i < n; ++i) {
      weights.push_back(trial % 2 == 0 ? static_cast<float>(random() % 40) / 4 : std::exp(-static_cast<float>(random() % 1000) / 40));
    }
    const int sinks = static_cast<int>(random() % 3), recent = static_cast<int>(random() % 3);
    const double share = static_cast<double>(random() % 101) / 100;
    std::vector<bool> forced;
    for (int i = 0; i < n; ++i) forced.push_back(i < sinks || i >= n - recent);
    if (n <= sinks + recent) continue;
    ASSERT_EQ(Fewest(weights, sinks, recent, share), reference::FewestWith({weights.begin(), weights.end()}, forced, share))
        << "trial " << trial << " n " << n << " share " << share;
  }
}

TEST(CudaQuest, ConfigurationsAreOfLengthsAlone) {
  const auto text = [](DType dtype, int kv_heads, int dim, int rows, int q_heads, int max_groups) {
    return cuda::QuestScoresConfig::For(*PageFormat::Create(dtype, 16, kv_heads, dim, dim), rows, q_heads, max_groups).ToString();
  };
  EXPECT_EQ(text(DType::kBF16, 8, 128, 16, 32, 128), "tensor cores, 4 heads, 4 warps of 11 groups, 3 parts, 73728 B shared");
  EXPECT_EQ(text(DType::kF16, 8, 128, 1, 64, 512), "tensor cores, 8 heads, 4 warps of 4 groups, 32 parts, 81920 B shared");
  EXPECT_EQ(text(DType::kF32, 8, 80, 1, 24, 3), "4 heads, 3 warps of 1 groups, 1 parts, 1280 B shared");
  EXPECT_EQ(text(DType::kBF16, 1, 128, 1, 12, 512), "4 heads, 4 warps of 1 groups, 128 parts, 6144 B shared");
  EXPECT_EQ(cuda::TopPagesConfig::For(2048).threads, 512);
  EXPECT_EQ(cuda::TopPagesConfig::For(64).cached_keys, 64);
  EXPECT_EQ(cuda::TopPagesConfig::For(100000).cached_keys, 8192);
}

}  // namespace
}  // namespace quire

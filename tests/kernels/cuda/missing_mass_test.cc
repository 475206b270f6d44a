// The bound of what selections leave out on the GPU under the emulator: against the formula in double over the reference's page
// bounds, and against the CPU.
#include "kernels/cuda/missing_mass.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <set>

#include "kernels/reference/quest.h"
#include "kernels/selection/missing_mass.h"
#include "tests/kernels/cuda/emulator/options.h"
#include "tests/kernels/cuda/typed.h"
#include "tests/kernels/pairwise.h"
#include "tests/kernels/selecting.h"

namespace quire {
namespace {

using testing::PagedCache;

struct Case {
  DType dtype = DType::kBF16;
  int page_size = 16, q_heads = 8, kv_heads = 2, dim = 64;
  std::vector<int> lengths;  // of the sequences, a row each
  float softcap = 0;
  uint64_t seed = 1;
};

enum class Lists { kSome, kAll, kNone };

// Rows over a cache whose metadata is full of large numbers wherever nobody appended, and an empty row behind them.
struct Call {
  Call(const Case& c, Lists lists) : c_(c), cache_(c.dtype, c.page_size, c.kv_heads, c.dim, c.dim, c.lengths, c.seed, true) {
    std::memset(cache_.pages().meta, 0x7f, cache_.meta().size());
    cache_.Fill(testing::TwoThreads());
    std::vector<int32_t> seq, len;
    for (size_t i = c.lengths.size(); i-- > 0;) {
      seq.push_back(static_cast<int32_t>(i));
      len.push_back(c.lengths[i]);
    }
    rows = static_cast<int>(seq.size());
    step_ = std::make_unique<testing::Step>(cache_, c.q_heads, seq, len, c.seed + 1);
    step_->p.scale = 3.0f / static_cast<float>(c.dim);  // flat enough for bounds that say something
    step_->seq.push_back(-1);
    step_->len.push_back(-7);
    step_->q.resize(step_->q.size() + static_cast<size_t>(step_->p.q_stride), std::nanf(""));
    step_->p.q = step_->q.data();
    step_->p.row_seq = step_->seq.data();
    step_->p.row_len = step_->len.data();
    for (const int n : c.lengths) step_->p.longest = std::max(step_->p.longest, n);
    const int most = (step_->p.longest + c.page_size - 1) / c.page_size;
    pages_.assign(static_cast<size_t>((rows + 1) * c.kv_heads * (most + 3)), -7);
    counts_.assign(static_cast<size_t>((rows + 1) * c.kv_heads), 1 << 20);
    selection.pages = pages_.data();
    selection.counts = counts_.data();
    selection.max_pages = most + 3;
    for (int list = 0; list < rows * c.kv_heads; ++list) {
      const int pages = (len[static_cast<size_t>(list / c.kv_heads)] + c.page_size - 1) / c.page_size;
      int& count = counts_[static_cast<size_t>(list)] = 0;
      for (int page = 0; page < pages && lists != Lists::kNone; ++page) {
        if (lists == Lists::kSome && cache_.random()() % 3 == 0) continue;
        pages_[static_cast<size_t>(list * selection.max_pages + count++)] = page;
      }
    }
    std::normal_distribution<float> normal;
    for (int i = 0; i < rows * c.q_heads; ++i) {
      lse.push_back(lists == Lists::kNone ? -INFINITY : std::log(static_cast<float>(step_->p.longest)) + 4 + 2 * normal(cache_.random()));
    }
    lse.resize(lse.size() + static_cast<size_t>(c.q_heads), std::nanf(""));
  }

  std::vector<float> OnCpu() const {
    SelectParams p = step_->p;
    p.rows = rows;
    std::vector<float> sums(static_cast<size_t>(rows), -7.0f);
    MissingMassBounds(testing::TwoThreads(), p, selection, lse.data(), c_.softcap, sums.data(), nullptr);
    return sums;
  }
  // longer: than the longest row, as a captured graph has them.
  std::vector<float> OnGpu(uint64_t seed, int longer = 0) const {
    emulator::Options options;
    options.seed = seed;
    const emulator::ScopedOptions scoped(options);
    const SelectParams& s = step_->p;
    cuda::MissingMassParams p;
    p.q = s.q;
    p.q_stride = s.q_stride;
    p.rows = rows + 1;
    p.q_heads = s.q_heads;
    p.row_seq = s.row_seq;
    p.row_len = s.row_len;
    p.pages = s.pages;
    p.table = s.table;
    p.scale = s.scale;
    p.softcap = c_.softcap;
    p.selection = selection;
    p.lse = lse.data();
    p.max_groups = (s.longest + longer + 16 * c_.page_size - 1) / (16 * c_.page_size);
    std::vector<float> sums(static_cast<size_t>(rows + 1), -7.0f);
    p.sums = sums.data();
    std::vector<std::byte> workspace(cuda::MissingMassWorkspace(s.table.format, p.rows, p.q_heads, p.max_groups), std::byte{0xff});
    const Status status = cuda::MissingMass(Stream{}, p, workspace.data());
    EXPECT_TRUE(status.ok()) << status.ToString();
    EXPECT_EQ(sums.back(), 0.0f) << "of the empty row";
    sums.pop_back();
    return sums;
  }
  std::vector<double> Reference() const {
    const SelectParams& p = step_->p;
    const int group = c_.q_heads / c_.kv_heads;
    std::vector<double> sums(static_cast<size_t>(rows));
    for (int row = 0; row < rows; ++row) {
      const int32_t* ids = p.table.page_ids + p.table.page_begin[p.row_seq[row]];
      for (int head = 0; head < c_.q_heads; ++head) {
        const int kv_head = head / group;
        const int64_t list = int64_t{row} * c_.kv_heads + kv_head;
        const int32_t* first = selection.pages + list * selection.max_pages;
        const std::set<int32_t> read(first, first + selection.counts[list]);
        SelectParams one = p;  // a group of this head alone
        one.q_heads = c_.kv_heads;
        std::vector<float> q(static_cast<size_t>(c_.kv_heads * c_.dim));
        std::copy_n(p.q + row * p.q_stride + int64_t{head} * c_.dim, c_.dim, q.begin() + kv_head * c_.dim);
        one.q = q.data() - row * p.q_stride;
        const std::vector<double> bounds = reference::QuestScores(one, row, kv_head, GroupReduce::kMax);
        double left = 0;
        for (int t = 0; t < p.row_len[row]; ++t) {
          const int page = t / c_.page_size;
          if (read.contains(page) || ids[page] < 0) continue;
          double score = double{p.scale} * bounds[static_cast<size_t>(page)];
          if (c_.softcap > 0) score = c_.softcap * std::tanh(score / c_.softcap);
          left += std::exp(score - lse[static_cast<size_t>(row * c_.q_heads + head)]);
        }
        sums[static_cast<size_t>(row)] += std::isinf(left) ? 1 : left / (1 + left);
      }
    }
    return sums;
  }

  int rows = 0;
  SelectionView selection;
  std::vector<float> lse;

 private:
  Case c_;
  PagedCache cache_;
  std::unique_ptr<testing::Step> step_;
  std::vector<int32_t> pages_, counts_;

 public:
  PagedCache& cache() { return cache_; }
};

void Check(const Case& c) {
  SCOPED_TRACE(::testing::Message() << DTypeName(c.dtype) << " page " << c.page_size << " heads " << c.q_heads << "/" << c.kv_heads
                                    << " d " << c.dim << " cap " << c.softcap << " seed " << c.seed);
  Call some(c, Lists::kSome);
  const std::vector<double> want = some.Reference();
  const std::vector<float> cpu = some.OnCpu(), gpu = some.OnGpu(c.seed), again = some.OnGpu(c.seed + 7);
  bool tells = false;
  for (size_t row = 0; row < want.size(); ++row) {
    EXPECT_NEAR(gpu[row], want[row], 1e-5 * c.q_heads) << row;
    EXPECT_NEAR(gpu[row], cpu[row], 1e-5 * c.q_heads) << row;
    tells |= want[row] > 0.01 * c.q_heads && want[row] < 0.99 * c.q_heads;
  }
  EXPECT_TRUE(tells) << "bounds that say nothing";
  EXPECT_EQ(gpu, again);
  // Another cut of the work.
  const std::vector<float> longer = some.OnGpu(c.seed, 200 * c.page_size);
  for (size_t row = 0; row < want.size(); ++row) EXPECT_NEAR(longer[row], want[row], 1e-5 * c.q_heads) << row;

  const Call all(c, Lists::kAll);
  EXPECT_EQ(all.OnGpu(c.seed), std::vector<float>(want.size(), 0.0f));
  EXPECT_EQ(all.OnCpu(), std::vector<float>(want.size(), 0.0f));
  const Call none(c, Lists::kNone);
  EXPECT_EQ(none.OnGpu(c.seed), std::vector<float>(want.size(), static_cast<float>(c.q_heads)));
  EXPECT_EQ(none.OnCpu(), std::vector<float>(want.size(), static_cast<float>(c.q_heads)));
}

TEST(CudaMissingMass, IsTheFormulasAndTheCpus) {
  const std::vector<int> page_sizes{1, 3, 16, 32}, dims{64, 18, 80, 128};
  const std::vector<std::pair<int, int>> heads{{8, 2}, {9, 3}, {4, 4}, {16, 1}, {11, 1}, {4, 2}};
  uint64_t seed = 1;
  for (const std::vector<int>& r : testing::AllPairs({3, 4, 6, 4, 2})) {
    Case c;
    c.dtype = testing::kFloatDTypes[r[0]];
    c.page_size = page_sizes[static_cast<size_t>(r[1])];
    std::tie(c.q_heads, c.kv_heads) = heads[static_cast<size_t>(r[2])];
    c.dim = dims[static_cast<size_t>(r[3])];
    c.softcap = r[4] == 0 ? 0.0f : 3.0f;
    c.seed = seed++;
    // A token, a partly filled page of a partly filled group, whole groups, and more than a block's warps take at once.
    c.lengths = {1, 21 * c.page_size + 1, 32 * c.page_size, 100 * c.page_size - c.page_size / 2};
    Check(c);
  }
}

TEST(CudaMissingMass, PagesThatAreGoneWeighNothing) {
  Case c;
  c.lengths = {50 * 16};
  Call call(c, Lists::kNone);
  for (float& x : call.lse) x = 9.0f;
  const float before = call.OnGpu(1)[0];
  for (int page = 3; page < 40; ++page) call.cache().PageId(0, page) = -1;
  const float after = call.OnGpu(1)[0];
  EXPECT_LT(after, 0.9f * before);
  EXPECT_NEAR(after, call.Reference()[0], 1e-4);
  EXPECT_NEAR(after, call.OnCpu()[0], 1e-4);
}

TEST(CudaMissingMass, WithoutMetadataItIsRefused) {
  const PagedCache cache(DType::kF32, 16, 1, 32, 32, {20}, 1);
  cuda::MissingMassParams p;
  p.pages = cache.pages();
  p.table = cache.table();
  p.q_heads = 1;
  EXPECT_EQ(cuda::MissingMass(Stream{}, p, nullptr).code(), StatusCode::kInternal);
}

}  // namespace
}  // namespace quire

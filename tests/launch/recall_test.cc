// The figures of `quire eval recall` against a softmax in double precision, token by token.
#include "launch/recall.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/reference/attention.h"
#include "kernels/reference/quest.h"
#include "tests/kernels/selecting.h"

namespace quire {
namespace {

using launch::RecallRecorder;
using launch::SelectionSums;
using testing::Make;
using testing::PagedCache;
using testing::Select;
using testing::Selected;
using testing::Step;

constexpr float kScale = 0.25f;

// Of one query head: softmax mass by page.
std::vector<double> MassOf(const SelectParams& p, int row, int kv_head, int g, double cap) {
  const PageFormat& f = p.table.format;
  const float* q = reference::QueryOf(p, row, kv_head, g);
  const int32_t* ids = p.table.page_ids + p.table.page_begin[p.row_seq[row]];
  std::vector<double> mass(static_cast<size_t>((p.row_len[row] + f.page_size - 1) / f.page_size));
  double sum = 0;
  for (int t = 0; t < p.row_len[row]; ++t) {
    double score = 0;
    for (int c = 0; c < f.k_dim; ++c) {
      score += double{q[c]} * reference::KAt(p.table, p.pages, ids[t / f.page_size], kv_head, t % f.page_size, c);
    }
    score *= kScale;
    const double weight = std::exp(cap > 0 ? cap * std::tanh(score / cap) : score);
    mass[static_cast<size_t>(t / f.page_size)] += weight;
    sum += weight;
  }
  for (double& m : mass) m /= sum;
  return mass;
}

struct Fixture {
  Fixture() : cache(DType::kBF16, 16, 2, 32, 32, {700, 423}, 11, /*metadata=*/true) { cache.Fill(testing::TwoThreads()); }
  PagedCache cache;
};

void ExpectAgrees(float cap) {
  Fixture f;
  Step step(f.cache, 6, {0, 1, 0}, {700, 423, 333}, 5);
  const auto policy = Make("quest:token_budget=128:dense_layers=0", 16);
  const Selected selected = Select(*policy, step.p, 1);
  RecallRecorder recorder(kScale, cap, 2, 3);
  recorder.OnSelect(step.p, selected.view);
  ASSERT_TRUE(recorder.status().ok());
  ASSERT_EQ(recorder.sums().size(), 2u);
  for (int head = 0; head < 2; ++head) {
    const SelectionSums& got = recorder.sums().at({9, head});
    EXPECT_EQ(got.steps, 3);
    EXPECT_EQ(got.bounds, 9);
    EXPECT_EQ(got.broken_bounds, 0);
    double chosen = 0, best = 0, recent = 0, recall = 0, missing = 0;
    for (int row = 0; row < 3; ++row) {
      const std::vector<int32_t> list = selected.List(static_cast<size_t>(row * 2 + head));
      std::vector<double> mass;
      for (int g = 0; g < 3; ++g) {
        const std::vector<double> own = MassOf(step.p, row, head, g, cap);
        mass.resize(own.size());
        for (size_t i = 0; i < own.size(); ++i) mass[i] += own[i] / 3;
      }
      double in_list = 0, in_best = 0;
      for (const int32_t page : list) in_list += mass[static_cast<size_t>(page)];
      for (size_t i = mass.size() - list.size(); i < mass.size(); ++i) recent += mass[i];
      for (const int32_t page : reference::TopPages(mass, static_cast<int>(list.size()))) {
        in_best += mass[static_cast<size_t>(page)];
      }
      chosen += in_list;
      best += in_best;
      recall += in_list / in_best;
      missing += 1 - in_list;
    }
    EXPECT_NEAR(got.chosen, chosen, 1e-4);
    EXPECT_NEAR(got.best, best, 1e-4);
    EXPECT_NEAR(got.recent, recent, 1e-4);
    EXPECT_NEAR(got.recall, recall, 1e-4);
    EXPECT_NEAR(got.missing, missing, 1e-4);
    EXPECT_GE(got.bound, got.missing);
    EXPECT_LT(got.bound, 3);  // each of three steps has one in [0, 1]
    EXPECT_GT(got.random, 0);
    EXPECT_LT(got.random, got.best);
  }
}

TEST(Recall, AgreesWithSoftmaxesInDoublePrecision) { ExpectAgrees(0); }

TEST(Recall, AgreesWhereScoresHaveASoftCap) { ExpectAgrees(2); }

TEST(Recall, ABoundThatMetadataDontKeepIsCounted) {
  Fixture f;
  Step step(f.cache, 2, {0}, {700}, 6);
  const auto policy = Make("quest:token_budget=64:dense_layers=0", 16);
  const Selected selected = Select(*policy, step.p, 1);
  std::fill_n(static_cast<BF16*>(f.cache.pages().meta), f.cache.meta().size() / sizeof(BF16), FromFloat<BF16>(-9.0f));
  for (float& x : step.q) x = std::abs(x);  // so that every bound is far below every score
  RecallRecorder recorder(kScale, 0, 1, 3);
  recorder.OnSelect(step.p, selected.view);
  EXPECT_EQ(recorder.Total().broken_bounds, 2);
  recorder.Clear();
  EXPECT_EQ(recorder.Total().steps, 0);
}

TEST(Recall, WithoutMetadataThereIsNoBound) {
  PagedCache cache(DType::kF32, 16, 1, 16, 16, {300}, 12);
  cache.Fill(testing::TwoThreads());
  Step step(cache, 1, {0}, {300}, 7);
  const auto policy = Make("sparq:token_budget=64:dense_layers=0:channels=8", 16);
  const Selected selected = Select(*policy, step.p, 1);
  RecallRecorder recorder(kScale, 0, 1, 3);
  recorder.OnSelect(step.p, selected.view);
  EXPECT_EQ(recorder.Total().steps, 1);
  EXPECT_EQ(recorder.Total().bounds, 0);
  EXPECT_GT(recorder.Total().recall, 0);
  EXPECT_LE(recorder.Total().recall, 1 + 1e-5);
}

}  // namespace
}  // namespace quire

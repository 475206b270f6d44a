// The tile kernels' logic on the software twin; on a machine with AMX the same cases run on the hardware too.
#include "kernels/cpu/amx_decode.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kernels/cpu/amx.h"

namespace quire {
namespace {

std::vector<BF16> RandomBF16(size_t n, std::mt19937& rng) {
  std::normal_distribution<float> normal;
  std::vector<BF16> x(n);
  for (BF16& v : x) v = ToBF16(normal(rng));
  return x;
}

struct Case {
  int heads, page_size, k_dim, v_dim, pages;
  bool stacked = AmxStacks(heads);
};

const Case kCases[] = {{3, 16, 64, 64, 5},   {4, 16, 128, 128, 16}, {8, 32, 128, 128, 4}, {9, 16, 64, 64, 3},
                       {16, 64, 96, 192, 2}, {7, 48, 256, 256, 3},  {12, 32, 32, 64, 1},  {3, 16, 64, 64, 5, false},
                       {8, 32, 128, 128, 4, false}};

// Scores and sums of a case against double arithmetic on the same bf16 values. run(q, k, …) are the kernels under test.
template <class ScoreFn, class SumFn>
void Check(const Case& c, const ScoreFn& score, const SumFn& sum) {
  ASSERT_TRUE(AmxShapeFits(c.heads, c.page_size, c.k_dim, c.v_dim));
  std::mt19937 rng(7);
  std::normal_distribution<float> normal;
  const int slots = c.pages * c.page_size;
  const int stride = slots + 16;
  std::vector<std::vector<BF16>> k, v;
  std::vector<const BF16*> k_pages;
  std::vector<int64_t> at;
  std::vector<AmxPage> pages;
  for (int i = 0; i < c.pages; ++i) {
    k.push_back(RandomBF16(static_cast<size_t>(c.page_size) * c.k_dim, rng));
    v.push_back(RandomBF16(static_cast<size_t>(c.page_size) * c.v_dim, rng));
    k_pages.push_back(k.back().data());
    at.push_back(int64_t{i} * c.page_size);
    pages.push_back({v.back().data(), int64_t{i} * c.page_size});
  }
  std::vector<float> q(static_cast<size_t>(c.heads) * c.k_dim), scores(static_cast<size_t>(c.heads) * stride, -77.0f);
  for (float& x : q) x = normal(rng);
  AmxQueries queries;
  queries.Set(q.data(), c.heads, c.k_dim, c.stacked);
  score(queries, k_pages.data(), at.data(), c, scores.data(), stride);
  for (int h = 0; h < c.heads; ++h) {
    for (int t = 0; t < slots; ++t) {
      double want = 0, size = 0;
      for (int d = 0; d < c.k_dim; ++d) {
        const float key = ToFloat(k[t / c.page_size][(d / 2 * c.page_size + t % c.page_size) * 2 + d % 2]);
        want += double{q[h * c.k_dim + d]} * key;
        size += std::abs(double{q[h * c.k_dim + d]} * key);
      }
      // 2^-17 from the split, and f32 sums of k_dim products.
      ASSERT_NEAR(scores[h * stride + t], 0.5 * want, 0.5 * size * (0x1p-16 + c.k_dim * 0x1p-24)) << h << " " << t;
    }
    for (int t = slots; t < stride; ++t) ASSERT_EQ(scores[h * stride + t], -77.0f);  // nothing written past the pages
  }

  std::vector<float> weights(static_cast<size_t>(c.heads) * stride), acc(static_cast<size_t>(c.heads) * c.v_dim, 1.0f);
  for (float& w : weights) w = std::abs(normal(rng));
  std::vector<AmxOperand> operands(static_cast<size_t>(slots / AmxSumSlots(c.page_size)));
  sum(pages.data(), c, weights.data(), stride, operands.data(), acc.data());
  for (int h = 0; h < c.heads; ++h) {
    for (int d = 0; d < c.v_dim; ++d) {
      double want = 1, size = 1;
      for (int t = 0; t < slots; ++t) {
        const int s = t % c.page_size;
        const double x = double{weights[h * stride + t]} * ToFloat(v[t / c.page_size][(s / 2 * c.v_dim + d) * 2 + s % 2]);
        want += x;
        size += std::abs(x);
      }
      ASSERT_NEAR(acc[h * c.v_dim + d], want, size * (0x1p-16 + slots * 0x1p-24)) << h << " " << d;
    }
  }
}

TEST(AmxDecode, SoftwareTilesAgreeWithDouble) {
  for (const Case& c : kCases) {
    SoftTiles tiles;
    Check(
        c,
        [&](const AmxQueries& q, const BF16* const* k, const int64_t* at, const Case& c, float* scores, int64_t stride) {
          tiles.Configure(AmxScoreConfig());
          for (int i = 0; i < c.pages; ++i) {
            AmxScorePage(tiles, q, k[i], k[i], c.page_size, 0.5f, scores + at[i], stride);
          }
        },
        [&](const AmxPage* pages, const Case& c, const float* weights, int64_t stride, AmxOperand* operands, float* acc) {
          tiles.Configure(AmxSumConfig(c.page_size));
          AmxSumPages(tiles, pages, c.pages, c.page_size, c.v_dim, weights, stride, c.heads, c.stacked, operands, acc);
        });
    EXPECT_FALSE(tiles.fault) << "shapes that trap on hardware";
  }
}

TEST(AmxDecode, HardwareTilesAgreeWithDouble) {
  if (!HasAmx()) GTEST_SKIP() << "this processor has no AMX";
  for (const Case& c : kCases) {
    Check(
        c,
        [&](const AmxQueries& q, const BF16* const* k, const int64_t* at, const Case& c, float* scores, int64_t stride) {
          AmxScorePages(q, k, at, c.pages, c.page_size, 0.5f, scores, stride);
        },
        [&](const AmxPage* pages, const Case& c, const float* weights, int64_t stride, AmxOperand* operands, float* acc) {
          AmxAccumulatePages(pages, c.pages, c.page_size, c.v_dim, weights, stride, c.heads, c.stacked, operands, acc);
        });
  }
}

TEST(AmxDecode, AnInfiniteQueryStaysInfinite) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const float values[3] = {kInf, -kInf, 3.4e38f};  // the last rounds to infinity
  AmxOperand a;
  AmxSplit(values, 1, 3, 1, true, &a);
  EXPECT_EQ(ToFloat(a.rows[0][0][0]), kInf);
  EXPECT_EQ(ToFloat(a.rows[0][1][0]), -kInf);
  EXPECT_EQ(ToFloat(a.rows[0][2][0]), kInf);
  for (int h = 8; h < 11; ++h) EXPECT_EQ(ToFloat(a.rows[0][h][0]), 0.0f);
}

TEST(AmxDecode, SoftwareTilesFaultOnShapesThatTrap) {
  SoftTiles tiles;
  TileConfig config = AmxScoreConfig();
  config.Set(4, 8, kTileBytes);  // B has 8 rows, A 16 pairs
  tiles.Configure(config);
  tiles.Dot<0, 2, 4>();
  EXPECT_TRUE(tiles.fault);
}

TEST(AmxDecode, OnlyWholeTilesFit) {
  EXPECT_TRUE(AmxShapeFits(3, 16, 64, 64));
  EXPECT_FALSE(AmxShapeFits(2, 16, 64, 64));
  EXPECT_FALSE(AmxShapeFits(17, 16, 64, 64));
  EXPECT_FALSE(AmxShapeFits(4, 7, 64, 64));
  EXPECT_FALSE(AmxShapeFits(4, 16, 80, 80));
}

}  // namespace
}  // namespace quire

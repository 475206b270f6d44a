#include "kernels/cpu/top_k.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kernels/reference/quest.h"

namespace quire {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<int32_t> Top(const std::vector<float>& scores, int k, int32_t first = 0) {
  std::vector<int32_t> out(scores.size() + 1, -7);
  const int count = TopPages(scores.data(), static_cast<int>(scores.size()), k, first, out.data());
  EXPECT_EQ(out[static_cast<size_t>(std::min<int>(std::max(k, 0), static_cast<int>(scores.size())))], -7);  // no write past k
  out.resize(static_cast<size_t>(count));
  return out;
}

TEST(TopPages, TiesGoToTheLowerIndexAndIdsAscend) {
  EXPECT_EQ(Top({1, 3, 2, 3, 3, 0}, 2), (std::vector<int32_t>{1, 3}));
  EXPECT_EQ(Top({1, 3, 2, 3, 3, 0}, 4, 100), (std::vector<int32_t>{101, 102, 103, 104}));
  EXPECT_EQ(Top({0.0f, -0.0f, 0.0f}, 2), (std::vector<int32_t>{0, 1}));
  EXPECT_EQ(Top({-0.0f, 0.0f}, 1), (std::vector<int32_t>{0}));
  EXPECT_EQ(Top({5, 5, 5}, 5), (std::vector<int32_t>{0, 1, 2}));
  EXPECT_TRUE(Top({5, 5, 5}, 0).empty());
  EXPECT_TRUE(Top({}, 3).empty());
}

TEST(TopPages, NanNeverWinsAndInfinitiesOrder) {
  EXPECT_EQ(Top({kNan, -kInf, kNan, 1, kInf}, 3), (std::vector<int32_t>{1, 3, 4}));
  EXPECT_EQ(Top({kNan, -kInf, kNan, 1, kInf}, 4), (std::vector<int32_t>{1, 3, 4}));
  EXPECT_EQ(Top({kNan, -kNan, kNan}, 2), (std::vector<int32_t>{}));
  EXPECT_EQ(Top({kNan, 1, kNan}, 3), (std::vector<int32_t>{1}));
}

TEST(TopPages, AgreesWithSortingOnManyRandomLists) {
  std::mt19937_64 random(11);
  for (int trial = 0; trial < 400; ++trial) {
    const int n = 1 + static_cast<int>(random() % (trial % 20 == 0 ? 5000 : 200));
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
    ASSERT_EQ(Top(scores, k), reference::TopPages({scores.begin(), scores.end()}, k)) << "trial " << trial;
  }
}

}  // namespace
}  // namespace quire

#include "rpc/coordinator/router.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

namespace quire::rpc {
namespace {

TEST(ChooseGroup, TakesTheLeastToComputeAmongThoseWithRoom) {
  const std::vector<RouteCandidate> groups = {{true, 300, 0, 3}, {false, 10, 0, 1}, {true, 200, 0, 9}};
  EXPECT_EQ(ChooseGroup(groups, 0), 2);
}

TEST(ChooseGroup, NoneWithRoomIsMinusOne) {
  const std::vector<RouteCandidate> groups = {{false, 0, 0, 0}, {false, 0, 0, 0}};
  EXPECT_EQ(ChooseGroup(groups, 1), -1);
  EXPECT_EQ(ChooseGroup({}, 0), -1);
}

TEST(ChooseGroup, EqualsTakeTurns) {
  const std::vector<RouteCandidate> groups(3, RouteCandidate{true, 0, 0, 0});
  EXPECT_EQ(ChooseGroup(groups, 0), 0);
  EXPECT_EQ(ChooseGroup(groups, 1), 1);
  EXPECT_EQ(ChooseGroup(groups, 2), 2);
  EXPECT_EQ(ChooseGroup(groups, 3), 0);
}

TEST(ChooseGroup, AKnownPrefixCountsForWhatItSavesAndNoMore) {
  std::vector<RouteCandidate> groups = {{true, 1000, 512, 4}, {true, 600, 0, 4}};
  EXPECT_EQ(ChooseGroup(groups, 0), 0);
  groups[0].tokens = 1200;
  EXPECT_EQ(ChooseGroup(groups, 0), 1);
}

TEST(WorthSpreading, LongPromptsStayTogetherShortOnesSpread) {
  EXPECT_TRUE(WorthSpreading(100, 100, 4, 2));
  EXPECT_FALSE(WorthSpreading(100000, 100, 4, 2));
  EXPECT_FALSE(WorthSpreading(100, 100, 4, 1));
  EXPECT_FALSE(WorthSpreading(1, 1000, 1, 8));
}

std::vector<int32_t> Tokens(int n, int from = 0) {
  std::vector<int32_t> tokens(static_cast<size_t>(n));
  std::iota(tokens.begin(), tokens.end(), from);
  return tokens;
}

TEST(PrefixKeys, AreOfWholePagesInPowersOfTwo) {
  const auto keys = PrefixKeys(Tokens(16 * 9 + 3), 16);
  ASSERT_EQ(keys.size(), 4u);
  EXPECT_EQ(keys[0].tokens, 16);
  EXPECT_EQ(keys[3].tokens, 128);
  EXPECT_TRUE(PrefixKeys(Tokens(15), 16).empty());
}

TEST(PrefixMap, MatchesTheLongestCommonBeginning) {
  PrefixMap map;
  std::vector<int32_t> known = Tokens(256), asked = Tokens(256);
  asked[100] = -7;  // differs in the seventh page: the first four are common, eight are not
  map.Note(1, PrefixKeys(known, 16));
  EXPECT_EQ(map.Match(1, PrefixKeys(known, 16)), 256);
  EXPECT_EQ(map.Match(1, PrefixKeys(asked, 16)), 64);
  EXPECT_EQ(map.Match(2, PrefixKeys(known, 16)), 0);
  map.Forget(1);
  EXPECT_EQ(map.Match(1, PrefixKeys(known, 16)), 0);
}

TEST(PrefixMap, OldPrefixesAreForgottenUsedOnesStay) {
  PrefixMap map(64);
  const auto used = PrefixKeys(Tokens(16, -1000), 16), unused = PrefixKeys(Tokens(16, -2000), 16);
  map.Note(1, used);
  map.Note(1, unused);
  for (int i = 0; i < 1000; ++i) {
    map.Note(1, PrefixKeys(Tokens(16, 100 * i), 16));
    map.Note(1, used);
  }
  EXPECT_EQ(map.Match(1, used), 16);
  EXPECT_EQ(map.Match(1, unused), 0);
}

}  // namespace
}  // namespace quire::rpc

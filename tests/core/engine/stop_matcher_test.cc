#include "core/engine/stop_matcher.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

namespace quire {
namespace {

struct Outcome {
  std::string text, matched;
  bool stopped = false;
  bool operator==(const Outcome&) const = default;
};

Outcome Feed(const std::vector<std::string>& stops, bool include, const std::vector<std::string>& pieces) {
  StopMatcher matcher(stops, include);
  Outcome out;
  for (const std::string& piece : pieces) {
    StopMatcher::Piece got = matcher.Push(piece);
    out.text += got.text;
    if (got.stopped) {
      out.stopped = true;
      out.matched = got.matched;
      return out;
    }
  }
  out.text += matcher.Finish();
  return out;
}

TEST(StopMatcher, Table) {
  struct Case {
    std::vector<std::string> stops, pieces;
    bool include;
    Outcome want;
  };
  const Case cases[] = {
      {{}, {"abc", "def"}, false, {"abcdef", "", false}},
      {{"cd"}, {"abc", "def"}, false, {"ab", "cd", true}},
      {{"cd"}, {"abc", "def"}, true, {"abcd", "cd", true}},
      {{"xyz"}, {"ax", "y", "bx", "yz!"}, false, {"axyb", "xyz", true}},
      {{"aab"}, {"a", "a", "a", "b"}, false, {"a", "aab", true}},
      {{"b", "abc"}, {"abc"}, false, {"a", "b", true}},
      {{"bc", "abc"}, {"abc"}, false, {"", "abc", true}},
      {{"END"}, {"the EN"}, false, {"the EN", "", false}},
      {{"über"}, {"x\xC3", "\xBC", "ber"}, false, {"x", "über", true}},
      {{"\n\n"}, {"a\n", "b\n", "\nc"}, false, {"a\nb", "\n\n", true}},
  };
  for (const Case& c : cases) {
    const Outcome got = Feed(c.stops, c.include, c.pieces);
    EXPECT_EQ(got.text, c.want.text);
    EXPECT_EQ(got.matched, c.want.matched);
    EXPECT_EQ(got.stopped, c.want.stopped);
  }
}

TEST(StopMatcher, HoldsBackOnlyWhatMayBecomeAStop) {
  StopMatcher matcher({"stop!"}, false);
  EXPECT_EQ(matcher.Push("go sto").text, "go ");
  EXPECT_EQ(matcher.Push("r").text, "stor");
  EXPECT_EQ(matcher.Push("st").text, "");
  EXPECT_EQ(matcher.Push("stop").text, "st");
  EXPECT_EQ(matcher.Finish(), "stop");
}

TEST(StopMatcher, UnarmedTextDoesNotStopButMayBegin) {
  StopMatcher matcher({"ab"}, false);
  StopMatcher::Piece piece = matcher.Push("xab", false);
  EXPECT_FALSE(piece.stopped);
  EXPECT_EQ(piece.text, "xab");
  EXPECT_EQ(matcher.Push("a", false).text, "");
  piece = matcher.Push("b", true);
  EXPECT_TRUE(piece.stopped);
  EXPECT_EQ(piece.text, "");
}

// However a text is cut, the outcome is that of feeding single bytes; and the text before the stop is a prefix.
TEST(StopMatcher, RandomCutsGiveTheSameOutcome) {
  std::mt19937 rng(20260101);
  for (int trial = 0; trial < 2000; ++trial) {
    const auto word = [&](int most) {
      std::string s;
      for (int n = 1 + static_cast<int>(rng() % most); n > 0; --n) s += static_cast<char>('a' + rng() % 2);
      return s;
    };
    std::vector<std::string> stops;
    for (int n = 1 + static_cast<int>(rng() % 3); n > 0; --n) stops.push_back(word(5));
    const std::string text = word(20);
    std::vector<std::string> bytes, cuts;
    for (char c : text) {
      bytes.emplace_back(1, c);
      if (cuts.empty() || rng() % 3 == 0) cuts.emplace_back();
      cuts.back() += c;
    }
    const bool include = rng() % 2 == 0;
    const Outcome one = Feed(stops, include, bytes), two = Feed(stops, include, cuts);
    ASSERT_EQ(one, two) << "trial " << trial << " text " << text << " stop " << stops[0];
    ASSERT_EQ(text.substr(0, one.text.size()), one.text);
    if (!one.stopped) {
      ASSERT_EQ(one.text, text);
    }
    for (const std::string& stop : stops) {
      if (!include) {
        ASSERT_EQ(one.text.find(stop), std::string::npos);
      }
    }
  }
}

}  // namespace
}  // namespace quire

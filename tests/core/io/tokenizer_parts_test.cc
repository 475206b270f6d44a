// The parts of a tokenizer one by one: UTF-8, normal forms, regular expressions, splitting, merging, added tokens,
// streaming; tables small enough to follow by hand.
#include "core/io/bpe.h"
#include "core/io/pretokenizer.h"
#include "core/io/tokenizer_added.h"
#include "core/io/tokenizer_byte_level.h"
#include "core/io/tokenizer_json.h"
#include "core/io/tokenizer_normalizer.h"
#include "core/io/tokenizer_regex.h"
#include "core/io/unicode.h"
#include "tests/core/io/tokenizer_test_util.h"

namespace quire {

std::string RandomText(std::mt19937_64& random, int characters) {
  static constexpr std::string_view kPieces[] = {
      " ",      "  ",   "\n", "\t",           "the",    " and",   "ing",     "A", "Zz",     "0", "42",
      "'s",     "'LL",  "!",  "...",          "(",      "é",      "e\u0301", "ß", "\u0301", "я", "Привет",
      "中",     "文字", "한", "\u1100\u1161", "\u3000", "\u00A0", "\u2028",  "½", "²",      "😀", "❤️",
      "\u200D", "▁",    "Ġ",  "<|im_end|>",   "<s>",    "<0x0A>", "\u0000"};
  std::string text;
  for (int i = 0; i < characters; ++i) {
    if (random() % 8 == 0) {
      char32_t c = random() % 0x110000;
      if (c >= 0xD800 && c < 0xE000) c = 'x';
      AppendCodePoint(c, &text);
    } else {
      text += kPieces[random() % std::size(kPieces)];
    }
  }
  return text;
}

namespace {

TEST(Unicode, InvalidUtf8IsFoundWhereItBegins) {
  EXPECT_EQ(FindInvalidUtf8("a\u00e9\u4e2d\U0001F600"), std::string_view::npos);
  EXPECT_EQ(FindInvalidUtf8("ab\xFF"), 2u);
  EXPECT_EQ(FindInvalidUtf8("\xC0\x80"), 0u);          // overlong
  EXPECT_EQ(FindInvalidUtf8("a\xE0\x80\x80"), 1u);     // overlong
  EXPECT_EQ(FindInvalidUtf8("\xED\xA0\x80"), 0u);      // a surrogate
  EXPECT_EQ(FindInvalidUtf8("\xF4\x90\x80\x80"), 0u);  // above U+10FFFF
  EXPECT_EQ(FindInvalidUtf8("x\xE4\xB8"), 1u);         // cut short
}

TEST(Unicode, LossyRepairReplacesMaximalParts) {
  EXPECT_EQ(LossyUtf8("a\xFF"
                      "b"),
            "a\uFFFDb");
  EXPECT_EQ(LossyUtf8("\xE4\xB8"), "\uFFFD");
  EXPECT_EQ(LossyUtf8("\xF0\x9F\x98"
                      "A"),
            "\uFFFD"
            "A");
  EXPECT_EQ(LossyUtf8("\xED\xA0\x80"), "\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(LossyUtf8("\xE4\xB8\xAD"), "中");
}

TEST(Unicode, RepairOfAPrefixDoesNotDependOnWhatFollows) {
  std::mt19937_64 random(7);
  for (int round = 0; round < 20000; ++round) {
    std::string bytes;
    static constexpr unsigned char kBytes[] = {'a',  0x80, 0xBF, 0xA0, 0x90, 0x8F, 0x9F, 0xC2,
                                               0xC0, 0xE0, 0xE4, 0xED, 0xF0, 0xF4, 0xFF};
    const size_t size = random() % 9;
    for (size_t i = 0; i < size; ++i) bytes += static_cast<char>(kBytes[random() % std::size(kBytes)]);
    const size_t cut = bytes.empty() ? 0 : random() % (bytes.size() + 1);
    const std::string head = bytes.substr(0, cut);
    const size_t ready = head.size() - IncompleteUtf8Suffix(head);
    EXPECT_EQ(LossyUtf8(head.substr(0, ready)) + LossyUtf8(bytes.substr(ready)), LossyUtf8(bytes));
  }
}

TEST(Unicode, NormalForms) {
  EXPECT_EQ(Normalize("e\u0301 \uAC00", NormalForm::kNfc), "é \uAC00");
  EXPECT_EQ(Normalize("\u00e9\uAC01", NormalForm::kNfd), "e\u0301\u1100\u1161\u11A8");
  EXPECT_EQ(Normalize("ﬁ①Ａ", NormalForm::kNfkc), "fi1A");
  EXPECT_EQ(Normalize("\uFDFA", NormalForm::kNfkd).size(), 33u);             // the longest decomposition: 18 characters
  EXPECT_EQ(Normalize("a\u0301\u0323", NormalForm::kNfd), "a\u0323\u0301");  // by combining class
  EXPECT_EQ(Normalize("\u212B", NormalForm::kNfc), "\u00C5");
  EXPECT_EQ(Normalize("\u0958", NormalForm::kNfc), "\u0915\u093C");  // excluded from composition
  EXPECT_EQ(ToLower("ÀÉİΣß"), "àéi\u0307σß");
}

TEST(Unicode, LongRunsOfMarksAreNotQuadratic) {
  std::string text = "a";
  for (int i = 0; i < 200000; ++i) text += i % 2 == 0 ? "\u0301" : "\u0323";
  const std::string normal = Normalize(text, NormalForm::kNfc);
  EXPECT_EQ(normal.size(), text.size());  // a + U+0323 compose into three bytes: one more than a, two less for the mark
}

std::vector<std::string> Matches(std::string_view pattern, std::string_view text) {
  auto regex = TokenizerRegex::Compile(pattern);
  EXPECT_TRUE(regex.ok()) << regex.status().ToString();
  std::vector<ByteRange> ranges;
  EXPECT_TRUE(regex->FindAll(text, &ranges).ok());
  std::vector<std::string> out;
  for (const ByteRange& range : ranges) out.emplace_back(text.substr(range.begin, range.end - range.begin));
  return out;
}

TEST(TokenizerRegex, UnicodeClasses) {
  using Strings = std::vector<std::string>;
  EXPECT_EQ(Matches(R"(\p{L}+)", "ab дя 中1"), (Strings{"ab", "дя", "中"}));
  EXPECT_EQ(Matches(R"(\s+)", "a\u3000\u00A0b\u180Ec\u0085"), (Strings{"\u3000\u00A0", "\u0085"}));
  EXPECT_EQ(Matches(R"(\w+)", "a_\u203Fe\u0301 ½"), (Strings{"a_\u203Fe\u0301"}));
  EXPECT_EQ(Matches(R"([^\s\p{L}]+)", "a1! b"), (Strings{"1!"}));
  EXPECT_EQ(Matches(R"((?i:'S))", "'s'S'\u017F"), (Strings{"'s", "'S", "'\u017F"}));
  EXPECT_EQ(Matches(R"(\s+(?!\S)|\s+)", "a   b  "), (Strings{"  ", " ", "  "}));
  EXPECT_EQ(Matches(R"(x*)", "axb"), (Strings{"", "x", ""}));
}

TEST(TokenizerRegex, WhatItCantDoIsRefused) {
  for (const char* pattern : {"(", "[a", R"([\W])", R"(\h)", R"([a[b]])", R"([a&&b])", R"(\C)", "(?<n", "a{9999999}"}) {
    EXPECT_EQ(TokenizerRegex::Compile(pattern).status().code(), StatusCode::kInvalidArgument) << pattern;
  }
  auto regex = TokenizerRegex::Compile("(a+)+(a+)+(a+)+[bc]");
  ASSERT_TRUE(regex.ok());
  std::vector<ByteRange> ranges;
  EXPECT_FALSE(regex->FindAll(std::string(5000, 'a'), &ranges).ok());
}

std::vector<std::string> Split(PreTokenizerStep step, const std::string& text) {
  std::vector<PreTokenizerStep> steps;
  steps.push_back(std::move(step));
  auto words = ApplyPreTokenizer(steps, text, true);
  EXPECT_TRUE(words.ok());
  std::vector<std::string> out;
  for (const ByteRange& range : words->ranges) out.push_back(words->text.substr(range.begin, range.end - range.begin));
  return out;
}

TEST(PreTokenizer, SplitBehaviors) {
  using Strings = std::vector<std::string>;
  const auto on_dash = [](SplitBehavior behavior, bool invert) { return SplitOnText{"-", behavior, invert}; };
  const std::string text = "the-final--countdown";
  EXPECT_EQ(Split(on_dash(SplitBehavior::kRemoved, false), text), (Strings{"the", "final", "countdown"}));
  EXPECT_EQ(Split(on_dash(SplitBehavior::kIsolated, false), text),
            (Strings{"the", "-", "final", "-", "-", "countdown"}));
  EXPECT_EQ(Split(on_dash(SplitBehavior::kMergedWithPrevious, false), text),
            (Strings{"the-", "final-", "-", "countdown"}));
  EXPECT_EQ(Split(on_dash(SplitBehavior::kMergedWithNext, false), text), (Strings{"the", "-final", "-", "-countdown"}));
  EXPECT_EQ(Split(on_dash(SplitBehavior::kContiguous, false), text), (Strings{"the", "-", "final", "--", "countdown"}));
  EXPECT_EQ(Split(on_dash(SplitBehavior::kRemoved, true), text), (Strings{"-", "-", "-"}));
}

TEST(PreTokenizer, CharacterClassesAndMetaspace) {
  using Strings = std::vector<std::string>;
  EXPECT_EQ(Split(SplitOnCharacters{CharacterClass::kDigit, SplitBehavior::kIsolated}, "a12½"),
            (Strings{"a", "1", "2", "½"}));
  EXPECT_EQ(Split(SplitOnCharacters{CharacterClass::kDigit, SplitBehavior::kContiguous}, "a12b"),
            (Strings{"a", "12", "b"}));
  EXPECT_EQ(Split(SplitOnCharacters{CharacterClass::kWhitespace, SplitBehavior::kRemoved}, " a  b"),
            (Strings{"a", "b"}));
  EXPECT_EQ(Split(SplitOnCharacters{CharacterClass::kPunctuation, SplitBehavior::kIsolated}, "a$b、"),
            (Strings{"a", "$", "b", "、"}));
  EXPECT_EQ(Split(MetaspaceWords{"▁", PrependScheme::kAlways, true}, "Hey  you"), (Strings{"▁Hey", "▁", "▁you"}));
  EXPECT_EQ(Split(MetaspaceWords{"▁", PrependScheme::kNever, false}, "Hey you"), (Strings{"Hey▁you"}));
  EXPECT_EQ(Split(MakeByteLevelWords(true, true), "it's é"), (Strings{"Ġit", "'s", "ĠÃ©"}));
}

TEST(Bpe, LowestRankThenLeftmostMergesFirst) {
  const VocabMap vocab = {{"a", 0}, {"b", 1}, {"c", 2}, {"ab", 3}, {"bc", 4}, {"aa", 5}, {"abc", 6}};
  auto model = BpeModel::FromMerges(vocab, {{"b", "c"}, {"a", "b"}, {"a", "a"}, {"a", "bc"}}, {});
  ASSERT_TRUE(model.ok()) << model.status().ToString();
  BpeModel::Scratch scratch;
  const auto encode = [&](std::string_view word) {
    std::vector<int32_t> ids;
    model->EncodeWord(word, &scratch, &ids);
    return ids;
  };
  EXPECT_EQ(encode("abc"), (std::vector<int32_t>{6}));
  EXPECT_EQ(encode("ab"), (std::vector<int32_t>{3}));
  EXPECT_EQ(encode("aaa"), (std::vector<int32_t>{5, 0}));  // leftmost
  EXPECT_EQ(encode("axb"), (std::vector<int32_t>{3}));     // no unk: x is left out, and what remains are neighbours
  EXPECT_EQ(encode("abc"), (std::vector<int32_t>{6}));     // from the cache
}

TEST(Bpe, UnknownCharactersFallBackToBytesOrUnk) {
  VocabMap vocab = {{"a", 0}, {"<unk>", 1}, {"<0xC3>", 2}, {"<0xA9>", 3}};
  auto bytes = BpeModel::FromMerges(vocab, {}, {.unk_id = 1, .fuse_unk = true, .byte_fallback = true});
  auto unk = BpeModel::FromMerges(vocab, {}, {.unk_id = 1});
  ASSERT_TRUE(bytes.ok() && unk.ok());
  BpeModel::Scratch scratch, other;
  std::vector<int32_t> ids;
  bytes->EncodeWord("aéxyb", &scratch, &ids);
  EXPECT_EQ(ids, (std::vector<int32_t>{0, 2, 3, 1}));  // é by its bytes, "xyb" fused
  ids.clear();
  unk->EncodeWord("aéx", &other, &ids);
  EXPECT_EQ(ids, (std::vector<int32_t>{0, 1, 1}));
}

// The slow obvious way: look at all pairs, merge the best (leftmost), until none is left.
std::vector<std::string> NaiveByScore(std::string_view word, const std::vector<std::pair<std::string, float>>& scores) {
  std::vector<std::string> parts;
  for (size_t pos = 0; pos < word.size();) {
    const size_t begin = pos;
    NextCodePoint(word, &pos);
    parts.emplace_back(word.substr(begin, pos - begin));
  }
  for (;;) {
    size_t best = parts.size();
    float best_score = 0;
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      for (const auto& [token, score] : scores) {
        if (token == parts[i] + parts[i + 1] && (best == parts.size() || score > best_score))
          best = i, best_score = score;
      }
    }
    if (best == parts.size()) return parts;
    parts[best] += parts[best + 1];
    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
}

TEST(Bpe, MergingByScoreEqualsTheNaiveWay) {
  std::mt19937_64 random(11);
  static const std::string kLetters[] = {"a", "b", "▁", "é"};
  for (int round = 0; round < 25; ++round) {
    // Random tokens; "é" is never a token of its own, so it can only appear inside of merged ones.
    VocabMap vocab = {{"a", 0}, {"b", 1}, {"▁", 2}, {"<unk>", 3}};
    std::vector<std::pair<std::string, float>> scores = {{"a", -1}, {"b", -2}, {"▁", -3}};
    for (int i = 0; i < 25; ++i) {
      std::string token;
      for (size_t n = 2 + random() % 4; n > 0; --n) token += kLetters[random() % 4];
      if (vocab.emplace(token, static_cast<int32_t>(vocab.size())).second) {
        scores.emplace_back(token, -static_cast<float>(random() % 12));
      }
    }
    auto model = BpeModel::FromScores(vocab, scores, {.unk_id = 3});
    ASSERT_TRUE(model.ok());
    for (int i = 0; i < 20; ++i) {
      std::string word;
      for (size_t n = 1 + random() % 120; n > 0; --n) word += kLetters[random() % 4];
      std::vector<int32_t> wanted, ids;
      for (const std::string& part : NaiveByScore(word, scores)) {
        const auto it = vocab.find(part);
        wanted.push_back(it == vocab.end() ? 3 : it->second);
      }
      BpeModel::Scratch scratch;
      model->EncodeWord(word, &scratch, &ids);
      ASSERT_EQ(ids, wanted) << word;
    }
  }
}

TEST(Bpe, MergesOfUnknownTokensAreRefused) {
  EXPECT_FALSE(BpeModel::FromMerges({{"a", 0}}, {{"a", "b"}}, {}).ok());
  EXPECT_FALSE(BpeModel::FromMerges({{"a", 0}, {"b", 1}}, {{"a", "b"}}, {}).ok());
}

std::string Parts(const AddedTokenMatcher& matcher, std::string_view text, bool special = true) {
  std::vector<AddedTokenMatcher::Part> parts;
  matcher.Split(text, special, &parts);
  std::string out;
  for (const auto& part : parts) {
    out += part.id < 0 ? "(" : std::to_string(part.id) + "[";
    out += text.substr(part.range.begin, part.range.end - part.range.begin);
    out += part.id < 0 ? ")" : "]";
  }
  return out;
}

TEST(AddedTokens, LeftmostLongestWithTheirOptions) {
  AddedTokenMatcher matcher;
  const auto add = [&](AddedToken token) { matcher.Add(token, token.content); };
  add({.id = 1, .content = "<s>", .special = true});
  add({.id = 2, .content = "<s>x"});
  add({.id = 3, .content = "word", .single_word = true});
  add({.id = 4, .content = "L", .lstrip = true});
  add({.id = 5, .content = "R", .rstrip = true});
  EXPECT_EQ(Parts(matcher, "a<s>b"), "(a)1[<s>](b)");
  EXPECT_EQ(Parts(matcher, "<s>x<s>"), "2[<s>x]1[<s>]");
  EXPECT_EQ(Parts(matcher, "a<s><s>x", false), "(a<s>)2[<s>x]");
  EXPECT_EQ(Parts(matcher, "a word swords word"), "(a )3[word]( swords )3[word]");
  EXPECT_EQ(Parts(matcher, "a \n Lb"), "(a)4[ \n L](b)");
  EXPECT_EQ(Parts(matcher, "aR \t b"), "(a)5[R \t ](b)");
  EXPECT_EQ(Parts(matcher, "R L"), "5[R ]4[L]");
  EXPECT_EQ(Parts(matcher, ""), "");
  EXPECT_EQ(Parts(AddedTokenMatcher(), "abc"), "(abc)");
}

TEST(Normalizer, Steps) {
  const auto run = [](std::vector<NormalizerStep> steps, std::string text) {
    return ApplyNormalizer(steps, std::move(text)).value();
  };
  const auto one = [&](NormalizerStep step, std::string text) {
    std::vector<NormalizerStep> steps;
    steps.push_back(std::move(step));
    return run(std::move(steps), std::move(text));
  };
  EXPECT_EQ(one(NormalizeStrip{true, true}, "\u3000 a b\n"), "a b");
  EXPECT_EQ(one(NormalizeStrip{false, true}, " \u3000"), "");
  EXPECT_EQ(one(NormalizePrepend{"▁"}, "a"), "▁a");
  EXPECT_EQ(one(NormalizePrepend{"▁"}, ""), "");
  EXPECT_EQ(one(NormalizeStripAccents{}, "e\u0301a"), "ea");
  EXPECT_EQ(one(NormalizeReplace{" ", std::nullopt, "▁"}, "a  b"), "a▁▁b");
  auto regex = TokenizerRegex::Compile(" {2,}");
  EXPECT_EQ(one(NormalizeReplace{"", std::move(regex).value(), " "}, "a    b"), "a b");
  std::vector<NormalizerStep> doubling;
  for (int i = 0; i < 64; ++i) doubling.push_back(NormalizeReplace{"a", std::nullopt, "aa"});
  EXPECT_FALSE(ApplyNormalizer(doubling, "a").ok());
}

TEST(ByteLevel, EveryByteComesBack) {
  std::string all;
  for (int b = 0; b < 256; ++b) all += static_cast<char>(b);
  EXPECT_EQ(ByteLevelDecode(ByteLevelEncode(all)), all);
  EXPECT_EQ(ByteLevelEncode(" \n"), "ĠĊ");
  EXPECT_EQ(ByteLevelDecode("a b"), std::nullopt);
}

}  // namespace
}  // namespace quire

// See pretokenizer.h. Splits move ranges only; ByteLevel and Metaspace write a new text.
#include "core/io/pretokenizer.h"

#include <algorithm>
#include <utility>

#include "core/base/check.h"
#include "core/io/tokenizer_byte_level.h"
#include "core/io/unicode.h"

namespace quire {
namespace {

// Appends to *out the parts of `word` that `matches` (ranges relative to word.begin) make of it.
void Cut(ByteRange word, const std::vector<ByteRange>& matches, SplitBehavior behavior, bool invert,
         std::vector<ByteRange>* out) {
  struct Part {
    ByteRange range;
    bool is_match;
  };
  std::vector<Part> parts;
  parts.reserve(matches.size() * 2 + 1);
  size_t last = word.begin;
  for (const ByteRange& match : matches) {
    if (last != word.begin + match.begin) parts.push_back({{last, word.begin + match.begin}, invert});
    parts.push_back({{word.begin + match.begin, word.begin + match.end}, !invert});
    last = word.begin + match.end;
  }
  if (last != word.end) parts.push_back({{last, word.end}, invert});

  std::vector<ByteRange> cut;
  switch (behavior) {
    case SplitBehavior::kIsolated:
      for (const Part& part : parts) cut.push_back(part.range);
      break;
    case SplitBehavior::kRemoved:
      for (const Part& part : parts) {
        if (!part.is_match) cut.push_back(part.range);
      }
      break;
    case SplitBehavior::kContiguous:
      for (size_t i = 0; i < parts.size(); ++i) {
        if (i > 0 && parts[i].is_match == parts[i - 1].is_match) {
          cut.back().end = parts[i].range.end;
        } else {
          cut.push_back(parts[i].range);
        }
      }
      break;
    case SplitBehavior::kMergedWithPrevious:
      for (size_t i = 0; i < parts.size(); ++i) {
        if (i > 0 && parts[i].is_match && !parts[i - 1].is_match) {
          cut.back().end = parts[i].range.end;
        } else {
          cut.push_back(parts[i].range);
        }
      }
      break;
    case SplitBehavior::kMergedWithNext:
      for (size_t i = parts.size(); i-- > 0;) {
        if (i + 1 < parts.size() && parts[i].is_match && !parts[i + 1].is_match) {
          cut.back().begin = parts[i].range.begin;
        } else {
          cut.push_back(parts[i].range);
        }
      }
      std::reverse(cut.begin(), cut.end());
      break;
  }
  for (const ByteRange& range : cut) {
    if (range.begin < range.end) out->push_back(range);
  }
}

bool HasClass(char32_t c, CharacterClass characters) {
  switch (characters) {
    case CharacterClass::kDigit: return IsNumeric(c);
    case CharacterClass::kWhitespace: return IsWhitespace(c);
    case CharacterClass::kPunctuation: return IsPunctuation(c);
  }
  return false;
}

std::string_view WordText(const Words& words, ByteRange range) {
  return std::string_view(words.text).substr(range.begin, range.end - range.begin);
}

// Every word cut at what `find` (word text → matches) finds.
template <typename Find>
Status SplitWords(const Find& find, SplitBehavior behavior, bool invert, Words* words) {
  std::vector<ByteRange> out;
  std::vector<ByteRange> matches;
  out.reserve(words->ranges.size());
  for (const ByteRange& range : words->ranges) {
    matches.clear();
    RETURN_IF_ERROR(find(WordText(*words, range), &matches));
    Cut(range, matches, behavior, invert, &out);
  }
  words->ranges = std::move(out);
  return OkStatus();
}

Status Apply(const SplitOnRegex& step, bool, Words* words) {
  const auto find = [&](std::string_view text, std::vector<ByteRange>* matches) {
    return step.regex.FindAll(text, matches);
  };
  return SplitWords(find, step.behavior, step.invert, words);
}

void FindText(std::string_view text, std::string_view wanted, std::vector<ByteRange>* matches) {
  if (wanted.empty()) return;
  for (size_t at = 0; (at = text.find(wanted, at)) != std::string_view::npos; at += wanted.size()) {
    matches->push_back({at, at + wanted.size()});
  }
}

Status Apply(const SplitOnText& step, bool, Words* words) {
  const auto find = [&](std::string_view text, std::vector<ByteRange>* matches) {
    FindText(text, step.text, matches);
    return OkStatus();
  };
  return SplitWords(find, step.behavior, step.invert, words);
}

Status Apply(const SplitOnCharacters& step, bool, Words* words) {
  const auto find = [&](std::string_view text, std::vector<ByteRange>* matches) {
    for (size_t pos = 0; pos < text.size();) {
      const size_t begin = pos;
      if (HasClass(NextCodePoint(text, &pos), step.characters)) matches->push_back({begin, pos});
    }
    return OkStatus();
  };
  return SplitWords(find, step.behavior, false, words);
}

Status Apply(const ByteLevelWords& step, bool, Words* words) {
  if (step.add_prefix_space) {
    Words spaced;
    for (const ByteRange& range : words->ranges) {
      const size_t begin = spaced.text.size();
      const std::string_view word = WordText(*words, range);
      if (word.front() != ' ') spaced.text += ' ';
      spaced.text += word;
      spaced.ranges.push_back({begin, spaced.text.size()});
    }
    *words = std::move(spaced);
  }
  if (step.use_regex) {
    const auto find = [&](std::string_view text, std::vector<ByteRange>* matches) {
      return step.regex->FindAll(text, matches);
    };
    RETURN_IF_ERROR(SplitWords(find, SplitBehavior::kIsolated, false, words));
  }
  Words mapped;
  mapped.text.reserve(words->text.size() * 2);
  mapped.ranges.reserve(words->ranges.size());
  for (const ByteRange& range : words->ranges) {
    const size_t begin = mapped.text.size();
    AppendByteLevel(WordText(*words, range), &mapped.text);
    mapped.ranges.push_back({begin, mapped.text.size()});
  }
  *words = std::move(mapped);
  return OkStatus();
}

Status Apply(const MetaspaceWords& step, bool at_text_start, Words* words) {
  Words out;
  for (const ByteRange& range : words->ranges) {
    const size_t begin = out.text.size();
    const std::string_view word = WordText(*words, range);
    const bool prepend = step.prepend == PrependScheme::kAlways ||
                         (step.prepend == PrependScheme::kFirst && at_text_start && range.begin == 0);
    const bool starts = word.front() == ' ' || word.substr(0, step.replacement.size()) == step.replacement;
    if (prepend && !starts) out.text += step.replacement;
    for (char c : word) {
      if (c == ' ') {
        out.text += step.replacement;
      } else {
        out.text += c;
      }
    }
    const ByteRange whole{begin, out.text.size()};
    if (step.split) {
      std::vector<ByteRange> matches;
      FindText(std::string_view(out.text).substr(begin), step.replacement, &matches);
      Cut(whole, matches, SplitBehavior::kMergedWithNext, false, &out.ranges);
    } else {
      out.ranges.push_back(whole);
    }
  }
  *words = std::move(out);
  return OkStatus();
}

}  // namespace

PreTokenizerStep MakeByteLevelWords(bool add_prefix_space, bool use_regex) {
  ByteLevelWords step{add_prefix_space, use_regex, std::nullopt};
  if (use_regex) {
    auto regex = TokenizerRegex::Compile(kGpt2Pattern);
    CHECK(regex.ok());
    step.regex = std::move(regex).value();
  }
  return step;
}

Result<Words> ApplyPreTokenizer(const std::vector<PreTokenizerStep>& steps, std::string text, bool at_text_start) {
  Words words;
  if (!text.empty()) words.ranges.push_back({0, text.size()});
  words.text = std::move(text);
  for (const PreTokenizerStep& step : steps) {
    RETURN_IF_ERROR(std::visit([&](const auto& s) { return Apply(s, at_text_start, &words); }, step));
  }
  return words;
}

}  // namespace quire

// Pre-tokenizers of tokenizer.json: cut a normalized text into words, within which BPE merges. A sequence of
// plain steps; parsing the file is tokenizer_json.h's.
#pragma once

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "core/base/status.h"
#include "core/io/tokenizer_regex.h"

namespace quire {

// What becomes of the matches of a Split, as Hugging Face's tokenizers library names it.
enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

enum class CharacterClass { kDigit, kWhitespace, kPunctuation };

struct SplitOnRegex {
  TokenizerRegex regex;
  SplitBehavior behavior;
  bool invert;  // what does not match is the match
};
struct SplitOnText {
  std::string text;  // empty: matches nowhere
  SplitBehavior behavior;
  bool invert;
};
struct SplitOnCharacters {
  CharacterClass characters;  // each one of them is a match
  SplitBehavior behavior;
};
struct ByteLevelWords {
  bool add_prefix_space;
  bool use_regex;                       // GPT-2's expression
  std::optional<TokenizerRegex> regex;  // present when use_regex
};
enum class PrependScheme { kAlways, kFirst, kNever };
struct MetaspaceWords {
  std::string replacement;  // "▁"
  PrependScheme prepend;
  bool split;
};

using PreTokenizerStep = std::variant<SplitOnRegex, SplitOnText, SplitOnCharacters, ByteLevelWords, MetaspaceWords>;

// GPT-2's expression (Radford et al. 2019).
inline constexpr char kGpt2Pattern[] = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
// A step like tokenizer.json's {"type": "ByteLevel", …}.
PreTokenizerStep MakeByteLevelWords(bool add_prefix_space, bool use_regex);

// A text and its words: ranges in order, not empty, not overlapping.
struct Words {
  std::string text;
  std::vector<ByteRange> ranges;
};

// `text` cut by all steps. `at_text_start`: nothing (no special token) stands before this text.
Result<Words> ApplyPreTokenizer(const std::vector<PreTokenizerStep>& steps, std::string text, bool at_text_start);

}  // namespace quire

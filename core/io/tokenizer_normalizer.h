// Normalizers of tokenizer.json: what is done to a text before it is cut into words. A sequence of plain
// steps; parsing the file is tokenizer_json.h's.
#pragma once

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "core/base/status.h"
#include "core/io/tokenizer_regex.h"
#include "core/io/unicode.h"

namespace quire {

struct NormalizeUnicode {
  NormalForm form;
};
struct NormalizeLowercase {};
struct NormalizeStripAccents {};  // leaves out every nonspacing mark
struct NormalizeStrip {
  bool left, right;
};  // whitespace
struct NormalizePrepend {
  std::string text;
};  // unless the text is empty
struct NormalizeByteLevel {};
struct NormalizeReplace {
  std::string literal;  // what is replaced, if `regex` is absent
  std::optional<TokenizerRegex> regex;
  std::string content;
};

using NormalizerStep = std::variant<NormalizeUnicode, NormalizeLowercase, NormalizeStripAccents, NormalizeStrip,
                                    NormalizePrepend, NormalizeByteLevel, NormalizeReplace>;

// All steps, in order. INVALID_ARGUMENT when an expression gives up, or when replacing makes the text grow
// beyond all reason (64 times and a megabyte).
Result<std::string> ApplyNormalizer(const std::vector<NormalizerStep>& steps, std::string text);

}  // namespace quire

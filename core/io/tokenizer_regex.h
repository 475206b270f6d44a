// Regular expressions of tokenizer files, run by PCRE2 (UTF, Unicode properties, JIT). The files are written
// for Oniguruma; what the two read differently (\s, \w, ^ and $) is translated, and what can't be is refused.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/status.h"

namespace quire {

// A half-open range of bytes [begin, end) of some text.
struct ByteRange {
  size_t begin = 0;
  size_t end = 0;
  bool operator==(const ByteRange&) const = default;
};

class TokenizerRegex {
 public:
  TokenizerRegex();
  ~TokenizerRegex();
  TokenizerRegex(TokenizerRegex&&) noexcept;
  TokenizerRegex& operator=(TokenizerRegex&&) noexcept;

  // INVALID_ARGUMENT with the expression and PCRE2's reason.
  static Result<TokenizerRegex> Compile(std::string_view pattern);

  // Appends the matches, left to right and without overlap, to *matches. `text` is valid UTF-8. An empty match
  // directly after a match is left out. INVALID_ARGUMENT when the expression backtracks without end.
  // Thread safe.
  Status FindAll(std::string_view text, std::vector<ByteRange>* matches) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace quire

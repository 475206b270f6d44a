// See tokenizer_regex.h.
#include "core/io/tokenizer_regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <utility>

#include "core/base/check.h"

namespace quire {
namespace {

constexpr size_t kMaxPatternBytes = 64 << 10;
constexpr uint32_t kMatchLimit = 5'000'000;  // backtracking steps of one match, for hostile expressions

// Oniguruma's meaning in PCRE2's words: \s is White_Space (PCRE2 adds U+180E), \w has marks and all
// connectors (PCRE2 10.42 has letters, numbers and "_").
Result<std::string> Translate(std::string_view pattern) {
  std::string out;
  bool in_class = false;
  size_t class_begin = 0;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char e = pattern[++i];
      if (e == 's') {
        out += "\\p{White_Space}";
      } else if (e == 'S') {
        out += "\\P{White_Space}";
      } else if (e == 'w') {
        out += in_class ? "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}" : "[\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}]";
      } else if (e == 'W' && !in_class) {
        out += "[^\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}]";
      } else if (e == 'W' || e == 'h' || e == 'H' || e == 'R' || e == 'X') {
        return InvalidArgument(std::string("the regular expression \"") + std::string(pattern) + "\" has \\" + e +
                               (in_class ? " in a character class" : "") + ", which is not supported");
      } else {
        out += '\\';
        out += e;
      }
      continue;
    }
    if (!in_class && c == '[') {
      in_class = true;
      class_begin = i + 1;
      if (class_begin < pattern.size() && pattern[class_begin] == '^') ++class_begin;
    } else if (in_class && c == ']' && i > class_begin) {
      in_class = false;
    } else if (in_class && (c == '[' || (c == '&' && i + 1 < pattern.size() && pattern[i + 1] == '&'))) {
      return InvalidArgument("the regular expression \"" + std::string(pattern) +
                             "\" has a nested or intersected character class, which is not supported");
    }
    out += c;
  }
  return out;
}

// What a match needs beside the expression; one a thread, for all expressions.
struct Scratch {
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(32 << 10, 8 << 20, nullptr);
  Scratch() {
    CHECK(context != nullptr && data != nullptr);
    pcre2_set_match_limit(context, kMatchLimit);
    pcre2_set_heap_limit(context, 64 << 10);  // KiB
    if (stack != nullptr) pcre2_jit_stack_assign(context, nullptr, stack);
  }
  ~Scratch() {
    pcre2_jit_stack_free(stack);
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
  }
};

std::string ErrorText(int code) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(code, buffer, sizeof(buffer));
  return reinterpret_cast<const char*>(buffer);
}

}  // namespace

struct TokenizerRegex::Impl {
  pcre2_code* code = nullptr;
  std::string pattern;
  ~Impl() { pcre2_code_free(code); }
};

TokenizerRegex::TokenizerRegex() = default;
TokenizerRegex::~TokenizerRegex() = default;
TokenizerRegex::TokenizerRegex(TokenizerRegex&&) noexcept = default;
TokenizerRegex& TokenizerRegex::operator=(TokenizerRegex&&) noexcept = default;

Result<TokenizerRegex> TokenizerRegex::Compile(std::string_view pattern) {
  if (pattern.size() > kMaxPatternBytes) {
    return InvalidArgument("a regular expression of " + std::to_string(pattern.size()) + " bytes, more than the " +
                           std::to_string(kMaxPatternBytes) + " that are taken");
  }
  ASSIGN_OR_RETURN(const std::string translated, Translate(pattern));
  int error = 0;
  PCRE2_SIZE where = 0;
  // Ruby's syntax, which Oniguruma defaults to, has ^ and $ at every line.
  const uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
  auto impl = std::make_unique<Impl>();
  impl->pattern = std::string(pattern);
  impl->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(), options, &error,
                             &where, nullptr);
  if (impl->code == nullptr) {
    return InvalidArgument("the regular expression \"" + impl->pattern + "\" is not valid: " + ErrorText(error));
  }
  // Without JIT (a platform that lacks it) pcre2_match interprets: slower, same matches.
  (void)pcre2_jit_compile(impl->code, PCRE2_JIT_COMPLETE);
  TokenizerRegex regex;
  regex.impl_ = std::move(impl);
  return regex;
}

Status TokenizerRegex::FindAll(std::string_view text, std::vector<ByteRange>* matches) const {
  static thread_local Scratch scratch;
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  size_t pos = 0;
  size_t last_end = std::string_view::npos;
  while (pos <= text.size()) {
    const int rc =
        pcre2_match(impl_->code, subject, text.size(), pos, PCRE2_NO_UTF_CHECK, scratch.data, scratch.context);
    if (rc == PCRE2_ERROR_NOMATCH) break;
    if (rc < 0) {
      return InvalidArgument("the regular expression \"" + impl_->pattern + "\" failed at byte " + std::to_string(pos) +
                             " of the text: " + ErrorText(rc));
    }
    const PCRE2_SIZE* ovector = pcre2_get_ovector_pointer(scratch.data);
    const ByteRange match{ovector[0], ovector[1]};
    // \K in a lookahead can put the begin behind the end, or before an earlier match.
    if (match.begin > match.end || match.begin < pos) {
      return InvalidArgument("the regular expression \"" + impl_->pattern + "\" moves the begin of its match (\\K)");
    }
    const bool empty = match.begin == match.end;
    if (!(empty && match.begin == last_end)) matches->push_back(match);
    last_end = match.end;
    pos = match.end;
    if (empty) {  // go on behind the next character
      ++pos;
      while (pos < text.size() && (static_cast<unsigned char>(text[pos]) & 0xC0) == 0x80) ++pos;
    }
  }
  return OkStatus();
}

}  // namespace quire

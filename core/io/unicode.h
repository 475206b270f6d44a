// UTF-8 and the character properties that tokenizers ask for: validation, decoding, lossy repair, normal
// forms. Properties and decompositions come from utf8proc (Unicode 15). Leaves regular expressions to
// tokenizer_regex.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace quire {

// Byte offset of the first byte that is not valid UTF-8 (overlong forms, surrogates and values above
// U+10FFFF are invalid), npos when all of it is valid.
size_t FindInvalidUtf8(std::string_view text);

// The code point at text[*pos], and *pos moved past it. `text` must be valid UTF-8, *pos < text.size().
char32_t NextCodePoint(std::string_view text, size_t* pos);
void AppendCodePoint(char32_t c, std::string* out);

// `bytes` with each maximal ill-formed part replaced by one U+FFFD (Unicode 15, section 3.9; what WHATWG
// decoders and Rust's from_utf8_lossy do).
std::string LossyUtf8(std::string_view bytes);
// Length of the longest suffix that could be the beginning of a character (0 … 3): what a stream must hold
// back. The repair of the bytes before it does not depend on what follows.
size_t IncompleteUtf8Suffix(std::string_view bytes);

bool IsWhitespace(char32_t c);      // Unicode White_Space
bool IsNumeric(char32_t c);         // general category N*
bool IsPunctuation(char32_t c);     // general category P*, or ASCII punctuation ($ + < = > ^ ` | ~ too)
bool IsNonspacingMark(char32_t c);  // Mn
bool IsWordCharacter(char32_t c);   // \w: alphabetic, mark, decimal digit, connector punctuation

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };
// `text` must be valid UTF-8. O(n log n) for any text, long runs of combining marks included.
std::string Normalize(std::string_view text, NormalForm form);
// Every character by its own full lower-case mapping (no context: Σ gives σ).
std::string ToLower(std::string_view text);

}  // namespace quire

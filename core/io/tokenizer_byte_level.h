// The byte ↔ character table of byte-level BPE (GPT-2, Radford et al. 2019): printable Latin-1 bytes stand for
// themselves, the other 68 for U+0100 … U+0143 in order, so that every byte is a visible character.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace quire {

// Each byte of `bytes` as its character, in UTF-8.
std::string ByteLevelEncode(std::string_view bytes);
void AppendByteLevel(std::string_view bytes, std::string* out);
// The bytes of `token`, nullopt when some character stands for no byte (an added token with a space, say).
std::optional<std::string> ByteLevelDecode(std::string_view token);

}  // namespace quire

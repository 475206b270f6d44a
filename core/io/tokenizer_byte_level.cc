// See tokenizer_byte_level.h.
#include "core/io/tokenizer_byte_level.h"

#include <array>
#include <cstdint>

#include "core/io/unicode.h"

namespace quire {
namespace {

constexpr char32_t kLastCharacter = 0x143;

struct Table {
  std::array<std::string, 256> text;              // byte → UTF-8 of its character
  std::array<int, kLastCharacter + 1> byte_of{};  // character → byte, -1 for none
  Table() {
    byte_of.fill(-1);
    char32_t next = 0x100;
    for (int b = 0; b < 256; ++b) {
      const bool printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      const char32_t c = printable ? static_cast<char32_t>(b) : next++;
      AppendCodePoint(c, &text[b]);
      byte_of[c] = b;
    }
  }
};

const Table& GetTable() {
  static const Table table;
  return table;
}

}  // namespace

void AppendByteLevel(std::string_view bytes, std::string* out) {
  const Table& table = GetTable();
  for (char b : bytes) out->append(table.text[static_cast<unsigned char>(b)]);
}

std::string ByteLevelEncode(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size() * 2);
  AppendByteLevel(bytes, &out);
  return out;
}

std::optional<std::string> ByteLevelDecode(std::string_view token) {
  const Table& table = GetTable();
  std::string out;
  for (size_t pos = 0; pos < token.size();) {
    const char32_t c = NextCodePoint(token, &pos);
    if (c > kLastCharacter || table.byte_of[c] < 0) return std::nullopt;
    out.push_back(static_cast<char>(static_cast<unsigned char>(table.byte_of[c])));
  }
  return out;
}

}  // namespace quire

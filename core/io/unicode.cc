// See unicode.h. Canonical ordering is done here and not by utf8proc_map: its insertion sort is quadratic in
// the length of a run of combining marks, which a prompt controls.
#include "core/io/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "core/base/check.h"

namespace quire {
namespace {

// Looks at one character at bytes[pos]. Returns its length when it is valid; otherwise 0, with *bad the
// length of the maximal ill-formed part and *truncated true when that part ends the text and more bytes
// could complete it.
size_t ScanCharacter(std::string_view bytes, size_t pos, size_t* bad, bool* truncated) {
  *truncated = false;
  *bad = 1;
  const auto at = [&](size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const unsigned char lead = at(pos);
  if (lead < 0x80) return 1;
  size_t length;
  unsigned char low = 0x80, high = 0xBF;  // range of the second byte (Unicode table 3-7)
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return 0;
  }
  for (size_t i = 1; i < length; ++i) {
    if (pos + i >= bytes.size()) {
      *bad = i;
      *truncated = true;
      return 0;
    }
    const unsigned char c = at(pos + i);
    if (c < low || c > high) {
      *bad = i;
      return 0;
    }
    low = 0x80;
    high = 0xBF;
  }
  return length;
}

const utf8proc_property_t& Property(char32_t c) { return *utf8proc_get_property(static_cast<utf8proc_int32_t>(c)); }

}  // namespace

size_t FindInvalidUtf8(std::string_view text) {
  size_t pos = 0, bad;
  bool truncated;
  while (pos < text.size()) {
    if (static_cast<unsigned char>(text[pos]) < 0x80) {
      ++pos;
      continue;
    }
    const size_t length = ScanCharacter(text, pos, &bad, &truncated);
    if (length == 0) return pos;
    pos += length;
  }
  return std::string_view::npos;
}

char32_t NextCodePoint(std::string_view text, size_t* pos) {
  const auto at = [&](size_t i) -> char32_t { return static_cast<unsigned char>(text[*pos + i]); };
  const char32_t lead = at(0);
  char32_t c;
  size_t length;
  if (lead < 0x80) {
    c = lead;
    length = 1;
  } else if (lead < 0xE0) {
    c = (lead & 0x1F) << 6 | (at(1) & 0x3F);
    length = 2;
  } else if (lead < 0xF0) {
    c = (lead & 0x0F) << 12 | (at(1) & 0x3F) << 6 | (at(2) & 0x3F);
    length = 3;
  } else {
    c = (lead & 0x07) << 18 | (at(1) & 0x3F) << 12 | (at(2) & 0x3F) << 6 | (at(3) & 0x3F);
    length = 4;
  }
  *pos += length;
  return c;
}

void AppendCodePoint(char32_t c, std::string* out) {
  const auto byte = [](char32_t v) { return static_cast<char>(static_cast<unsigned char>(v)); };
  if (c < 0x80) {
    out->push_back(byte(c));
  } else if (c < 0x800) {
    out->push_back(byte(0xC0 | c >> 6));
    out->push_back(byte(0x80 | (c & 0x3F)));
  } else if (c < 0x10000) {
    out->push_back(byte(0xE0 | c >> 12));
    out->push_back(byte(0x80 | (c >> 6 & 0x3F)));
    out->push_back(byte(0x80 | (c & 0x3F)));
  } else {
    out->push_back(byte(0xF0 | c >> 18));
    out->push_back(byte(0x80 | (c >> 12 & 0x3F)));
    out->push_back(byte(0x80 | (c >> 6 & 0x3F)));
    out->push_back(byte(0x80 | (c & 0x3F)));
  }
}

std::string LossyUtf8(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  size_t pos = 0, bad;
  bool truncated;
  while (pos < bytes.size()) {
    const size_t length = ScanCharacter(bytes, pos, &bad, &truncated);
    if (length > 0) {
      out.append(bytes, pos, length);
      pos += length;
    } else {
      out.append("\xEF\xBF\xBD");
      pos += bad;
    }
  }
  return out;
}

size_t IncompleteUtf8Suffix(std::string_view bytes) {
  size_t bad;
  bool truncated;
  for (size_t back = std::min<size_t>(3, bytes.size()); back >= 1; --back) {
    const size_t pos = bytes.size() - back;
    if (ScanCharacter(bytes, pos, &bad, &truncated) == 0 && truncated && bad == back) return back;
  }
  return 0;
}

bool IsWhitespace(char32_t c) {
  if (c < 0x80) return c == ' ' || (c >= '\t' && c <= '\r');
  if (c == 0x85) return true;
  const auto category = Property(c).category;
  return category == UTF8PROC_CATEGORY_ZS || category == UTF8PROC_CATEGORY_ZL || category == UTF8PROC_CATEGORY_ZP;
}

bool IsNumeric(char32_t c) {
  const auto category = Property(c).category;
  return category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL || category == UTF8PROC_CATEGORY_NO;
}

bool IsPunctuation(char32_t c) {
  if (c < 0x80)
    return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') || (c >= '{' && c <= '~');
  const auto category = Property(c).category;
  return category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO;
}

bool IsNonspacingMark(char32_t c) { return Property(c).category == UTF8PROC_CATEGORY_MN; }

bool IsWordCharacter(char32_t c) {
  const auto category = Property(c).category;
  return (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_ND) || category == UTF8PROC_CATEGORY_NL ||
         category == UTF8PROC_CATEGORY_PC;
}

std::string Normalize(std::string_view text, NormalForm form) {
  const bool ascii = std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
  if (ascii) return std::string(text);
  const bool compat = form == NormalForm::kNfkc || form == NormalForm::kNfkd;
  const bool compose = form == NormalForm::kNfc || form == NormalForm::kNfkc;
  const auto decompose = static_cast<utf8proc_option_t>(UTF8PROC_DECOMPOSE | (compat ? UTF8PROC_COMPAT : 0));

  std::vector<utf8proc_int32_t> points;
  points.reserve(text.size());
  size_t run = 0;  // begin of the current run of non-starters in points
  const auto sort_run = [&] {
    if (points.size() - run > 1) {
      std::stable_sort(points.begin() + run, points.end(), [](utf8proc_int32_t a, utf8proc_int32_t b) {
        return utf8proc_get_property(a)->combining_class < utf8proc_get_property(b)->combining_class;
      });
    }
  };
  utf8proc_int32_t buffer[32];  // the longest decomposition of one character has 18
  for (size_t pos = 0; pos < text.size();) {
    const char32_t c = NextCodePoint(text, &pos);
    int boundary = 0;
    const utf8proc_ssize_t n =
        utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c), buffer, 32, decompose, &boundary);
    CHECK(n >= 0 && n <= 32);
    for (utf8proc_ssize_t i = 0; i < n; ++i) {
      if (utf8proc_get_property(buffer[i])->combining_class == 0) {
        sort_run();
        points.push_back(buffer[i]);
        run = points.size();
      } else {
        points.push_back(buffer[i]);
      }
    }
  }
  sort_run();
  if (compose) {
    const utf8proc_ssize_t n =
        utf8proc_normalize_utf32(points.data(), static_cast<utf8proc_ssize_t>(points.size()),
                                 static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
    CHECK_GE(n, 0);
    points.resize(static_cast<size_t>(n));
  }
  std::string out;
  out.reserve(text.size());
  for (utf8proc_int32_t c : points) AppendCodePoint(static_cast<char32_t>(c), &out);
  return out;
}

std::string ToLower(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    const char32_t c = NextCodePoint(text, &pos);
    if (c == 0x130) {  // İ: the one character whose unconditional lower case has two code points
      out.append("i\xCC\x87");
    } else {
      AppendCodePoint(static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))), &out);
    }
  }
  return out;
}

}  // namespace quire

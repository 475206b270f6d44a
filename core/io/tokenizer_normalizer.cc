// See tokenizer_normalizer.h.
#include "core/io/tokenizer_normalizer.h"

#include <algorithm>
#include <utility>

#include "core/io/tokenizer_byte_level.h"

namespace quire {
namespace {

std::string Strip(std::string_view text, const NormalizeStrip& strip) {
  size_t begin = 0;
  if (strip.left) {
    for (size_t pos = 0; pos < text.size();) {
      if (!IsWhitespace(NextCodePoint(text, &pos))) break;
      begin = pos;
    }
  }
  size_t end = text.size();
  while (strip.right && end > begin) {
    size_t start = end - 1;
    while ((static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
    size_t pos = start;
    if (!IsWhitespace(NextCodePoint(text, &pos))) break;
    end = start;
  }
  return std::string(text.substr(begin, end - begin));
}

std::string StripAccents(std::string_view text) {
  std::string out;
  for (size_t pos = 0; pos < text.size();) {
    const char32_t c = NextCodePoint(text, &pos);
    if (!IsNonspacingMark(c)) AppendCodePoint(c, &out);
  }
  return out;
}

Result<std::string> Replace(std::string_view text, const NormalizeReplace& step, size_t max_bytes) {
  std::vector<ByteRange> matches;
  if (step.regex.has_value()) {
    RETURN_IF_ERROR(step.regex->FindAll(text, &matches));
  } else if (!step.literal.empty()) {
    for (size_t at = 0; (at = text.find(step.literal, at)) != std::string_view::npos; at += step.literal.size()) {
      matches.push_back({at, at + step.literal.size()});
    }
  }
  if (matches.size() * step.content.size() > max_bytes) {
    return InvalidArgument("the tokenizer's normalizer makes the text grow to more than " + std::to_string(max_bytes) +
                           " bytes");
  }
  std::string out;
  out.reserve(text.size() + matches.size() * step.content.size());
  size_t last = 0;
  for (const ByteRange& match : matches) {
    out.append(text, last, match.begin - last);
    out.append(step.content);
    last = match.end;
  }
  out.append(text, last);
  return out;
}

}  // namespace

Result<std::string> ApplyNormalizer(const std::vector<NormalizerStep>& steps, std::string text) {
  const size_t max_bytes = (size_t{1} << 20) + 64 * text.size();
  for (const NormalizerStep& step : steps) {
    if (const auto* unicode = std::get_if<NormalizeUnicode>(&step)) {
      text = Normalize(text, unicode->form);
    } else if (std::holds_alternative<NormalizeLowercase>(step)) {
      text = ToLower(text);
    } else if (std::holds_alternative<NormalizeStripAccents>(step)) {
      text = StripAccents(text);
    } else if (const auto* strip = std::get_if<NormalizeStrip>(&step)) {
      text = Strip(text, *strip);
    } else if (const auto* prepend = std::get_if<NormalizePrepend>(&step)) {
      if (!text.empty()) text.insert(0, prepend->text);
    } else if (std::holds_alternative<NormalizeByteLevel>(step)) {
      text = ByteLevelEncode(text);
    } else {
      ASSIGN_OR_RETURN(text, Replace(text, std::get<NormalizeReplace>(step), max_bytes));
    }
    if (text.size() > max_bytes) {
      return InvalidArgument("the tokenizer's normalizer makes the text grow to more than " +
                             std::to_string(max_bytes) + " bytes");
    }
  }
  return text;
}

}  // namespace quire

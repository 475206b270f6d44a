// See tokenizer_added.h.
#include "core/io/tokenizer_added.h"

#include <algorithm>

#include "core/io/unicode.h"

namespace quire {
namespace {

size_t PreviousCharacter(std::string_view text, size_t pos) {
  do --pos;
  while (pos > 0 && (static_cast<unsigned char>(text[pos]) & 0xC0) == 0x80);
  return pos;
}

bool InsideWord(std::string_view text, ByteRange match) {
  if (match.begin > 0) {
    size_t pos = PreviousCharacter(text, match.begin);
    if (IsWordCharacter(NextCodePoint(text, &pos))) return true;
  }
  size_t pos = match.end;
  return pos < text.size() && IsWordCharacter(NextCodePoint(text, &pos));
}

}  // namespace

int32_t AddedTokenMatcher::Child(int32_t node, unsigned char byte) const {
  const auto& children = nodes_[node].children;
  const auto it = std::lower_bound(children.begin(), children.end(), byte,
                                   [](const auto& child, unsigned char b) { return child.first < b; });
  return it != children.end() && it->first == byte ? it->second : -1;
}

void AddedTokenMatcher::Add(const AddedToken& token, std::string_view text) {
  if (text.empty()) return;
  int32_t node = 0;
  for (char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    int32_t child = Child(node, byte);
    if (child < 0) {
      child = static_cast<int32_t>(nodes_.size());
      nodes_.emplace_back();
      auto& children = nodes_[node].children;
      const auto it = std::lower_bound(children.begin(), children.end(), byte,
                                       [](const auto& c, unsigned char b) { return c.first < b; });
      children.insert(it, {byte, child});
    }
    node = child;
  }
  if (nodes_[node].token >= 0) return;
  nodes_[node].token = static_cast<int32_t>(tokens_.size());
  tokens_.push_back(token);
}

void AddedTokenMatcher::Split(std::string_view text, bool match_special, std::vector<Part>* parts) const {
  size_t done = 0;  // end of the last part
  const auto push_plain = [&](size_t end) {
    if (done < end) parts->push_back({{done, end}, -1});
  };
  for (size_t pos = 0; pos < text.size() && !empty();) {
    int32_t node = 0;
    int32_t found = -1;
    size_t end = pos;
    for (size_t i = pos; i < text.size(); ++i) {
      node = Child(node, static_cast<unsigned char>(text[i]));
      if (node < 0) break;
      if (nodes_[node].token >= 0) {
        found = nodes_[node].token;
        end = i + 1;
      }
    }
    if (found < 0) {
      ++pos;
      continue;
    }
    ByteRange match{pos, end};
    pos = end;
    const AddedToken& token = tokens_[found];
    // An rstrip token before may have taken whitespace that this one begins with.
    if (match.begin < done || (token.special && !match_special)) continue;
    if (token.single_word && InsideWord(text, match)) continue;
    if (token.lstrip) {
      while (match.begin > done) {
        const size_t before = PreviousCharacter(text, match.begin);
        size_t after = before;
        if (!IsWhitespace(NextCodePoint(text, &after))) break;
        match.begin = before;
      }
    }
    if (token.rstrip) {
      while (match.end < text.size()) {
        size_t after = match.end;
        if (!IsWhitespace(NextCodePoint(text, &after))) break;
        match.end = after;
      }
    }
    push_plain(match.begin);
    parts->push_back({match, token.id});
    done = match.end;
  }
  push_plain(text.size());
}

}  // namespace quire

// See tokenizer_table.h.
#include "core/io/tokenizer_table.h"

#include "core/io/unicode.h"

namespace quire {
namespace {
constexpr size_t kMaxTextBytes = 256 << 20;  // keeps every position of a normalized, byte-level text in 31 bits
}  // namespace

TokenTable::TokenTable(std::vector<TokenEntry> entries, bool strip_leading_space)
    : entries_(std::move(entries)), strip_leading_space_(strip_leading_space) {
  ids_.reserve(entries_.size());
  for (size_t id = 0; id < entries_.size(); ++id) {
    if (!entries_[id].text.empty()) ids_.emplace(entries_[id].text, static_cast<int32_t>(id));
  }
}

std::string TokenTable::TokenBytes(int32_t id, bool skip_special) const {
  if (!Has(id) || (skip_special && entries_[id].special)) return "";
  return entries_[id].bytes;
}

std::string TokenTable::Decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string bytes;
  for (int32_t id : ids) {
    if (Has(id) && !(skip_special && entries_[id].special)) bytes += entries_[id].bytes;
  }
  if (strip_leading_space_ && !bytes.empty() && bytes.front() == ' ') bytes.erase(0, 1);
  return LossyUtf8(bytes);
}

std::optional<int32_t> TokenTable::TokenToId(std::string_view token) const {
  const auto it = ids_.find(token);
  if (it == ids_.end()) return std::nullopt;
  return it->second;
}

std::string TokenTable::IdToToken(int32_t id) const { return Has(id) ? entries_[id].text : ""; }

bool TokenTable::IsSpecial(int32_t id) const { return Has(id) && entries_[id].special; }

Status CheckEncodable(std::string_view text) {
  if (text.size() > kMaxTextBytes) {
    return InvalidArgument("the text has " + std::to_string(text.size()) + " bytes; at most " +
                           std::to_string(kMaxTextBytes) + " can be encoded at once");
  }
  const size_t bad = FindInvalidUtf8(text);
  if (bad != std::string_view::npos) {
    return InvalidArgument("the text is not valid UTF-8: byte " + std::to_string(bad) + " (counted from 0) begins no " +
                           "character; convert the text to UTF-8");
  }
  return OkStatus();
}

}  // namespace quire

// The half of a Tokenizer that is a table: id ↔ text, the bytes of an id, which ids are special, decoding.
// Encoding is left to what derives from it.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/io/bpe.h"
#include "core/io/tokenizer.h"

namespace quire {

// One id of a vocabulary.
struct TokenEntry {
  std::string text;   // as the vocabulary has it
  std::string bytes;  // what it stands for in running text
  bool special = false;
};

// What a model's side files say about its vocabulary.
struct TokenizerSettings {
  std::optional<int32_t> bos_id;
  std::vector<int32_t> eos_ids;
  std::string chat_template;
};

class TokenTable : public Tokenizer {
 public:
  std::string TokenBytes(int32_t id, bool skip_special) const override;
  std::string Decode(std::span<const int32_t> ids, bool skip_special) const override;
  int vocab_size() const override { return static_cast<int>(entries_.size()); }
  std::optional<int32_t> TokenToId(std::string_view token) const override;
  std::string IdToToken(int32_t id) const override;
  bool IsSpecial(int32_t id) const override;
  std::optional<int32_t> bos_id() const override { return settings_.bos_id; }
  std::vector<int32_t> eos_ids() const override { return settings_.eos_ids; }
  const std::string& chat_template() const override { return settings_.chat_template; }

  // While loading only: a loaded tokenizer never changes.
  TokenizerSettings& settings() { return settings_; }

 protected:
  // `entries` by id (an entry with empty text is a gap). With strip_leading_space, Decode leaves out one space
  // at the begin of a text.
  TokenTable(std::vector<TokenEntry> entries, bool strip_leading_space);

 private:
  bool Has(int32_t id) const { return id >= 0 && id < vocab_size(); }

  std::vector<TokenEntry> entries_;
  VocabMap ids_;
  bool strip_leading_space_;
  TokenizerSettings settings_;
};

// INVALID_ARGUMENT when `text` is no UTF-8 (the message has the offset) or is longer than can be encoded.
Status CheckEncodable(std::string_view text);

}  // namespace quire

// Tokenizer: text ↔ token ids, whatever file the vocabulary came from (tokenizer.json, GGUF metadata,
// SentencePiece .model). Immutable after loading and thread safe.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/status.h"

namespace quire {

struct EncodeOptions {
  bool add_special_tokens = true;   // what the model's post-processor adds (BOS, …)
  bool parse_special_tokens = true;  // "<|im_end|>" in the text becomes its one id; false: plain text
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Ids of `text`. INVALID_ARGUMENT when the text is not valid UTF-8 (the message gives the byte offset).
  virtual Result<std::vector<int32_t>> Encode(std::string_view text, const EncodeOptions& options) const = 0;

  // The bytes that one id stands for in running text, before any clean-up at the beginning of a text
  // (a byte-level or byte-fallback id may be part of a character). Special ids give "" when skip_special.
  // Ids outside [0, vocab_size()) give "".
  virtual std::string TokenBytes(int32_t id, bool skip_special) const = 0;

  // Whole text of ids, with the decoder's clean-up (a llama decoder strips one leading space). Bytes that
  // are no UTF-8 become U+FFFD.
  virtual std::string Decode(std::span<const int32_t> ids, bool skip_special) const = 0;

  virtual int vocab_size() const = 0;  // largest id + 1, added tokens included
  virtual std::optional<int32_t> TokenToId(std::string_view token) const = 0;
  // The raw vocabulary entry ("Ġhello", "▁the", "<0x0A>"); "" when there is none.
  virtual std::string IdToToken(int32_t id) const = 0;
  virtual bool IsSpecial(int32_t id) const = 0;
  virtual std::optional<int32_t> bos_id() const = 0;
  virtual std::vector<int32_t> eos_ids() const = 0;
  // The model's Jinja chat template, "" when it has none.
  virtual const std::string& chat_template() const = 0;
};

// Streaming decode of one sequence: Push gives the text that has become certain, never half of a UTF-8
// character; Finish gives the rest (an unfinished character becomes U+FFFD). The concatenation of all
// pieces equals Decode of all ids.
class StreamDecoder {
 public:
  StreamDecoder(const Tokenizer* tokenizer, bool skip_special) : tokenizer_(tokenizer), skip_special_(skip_special) {}
  std::string Push(int32_t id);
  std::string Finish();

 private:
  const Tokenizer* tokenizer_;  // not owned
  bool skip_special_;
  std::string pending_;  // bytes of a character that is not complete yet
  bool at_start_ = true;
};

// Loads the tokenizer of a model: a Hugging Face folder (tokenizer.json, else tokenizer.model; settings from
// tokenizer_config.json, chat_template.jinja, generation_config.json), a .gguf file, a tokenizer.json, or a SentencePiece .model.
// NOT_FOUND when there is none; INVALID_ARGUMENT with what is wrong or not supported, by name.
Result<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& path);

}  // namespace quire

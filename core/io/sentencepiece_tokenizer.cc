// See sentencepiece_tokenizer.h.
#include "core/io/sentencepiece_tokenizer.h"

#include <sentencepiece_processor.h>

#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "core/io/tokenizer_added.h"
#include "core/io/unicode.h"

namespace quire {
namespace {

constexpr std::string_view kMetaspace = "\xE2\x96\x81";

std::string PieceBytes(const std::string& piece) {
  std::string out;
  for (size_t pos = 0; pos < piece.size();) {
    if (std::string_view(piece).substr(pos, kMetaspace.size()) == kMetaspace) {
      out += ' ';
      pos += kMetaspace.size();
    } else {
      out += piece[pos++];
    }
  }
  return out;
}

class SentencePieceTokenizer final : public TokenTable {
 public:
  SentencePieceTokenizer(std::unique_ptr<sentencepiece::SentencePieceProcessor> processor,
                         std::vector<TokenEntry> entries, bool adds_prefix, const SentencePieceOptions& options)
      : TokenTable(std::move(entries), adds_prefix),
        processor_(std::move(processor)),
        adds_prefix_(adds_prefix),
        options_(options) {
    for (int id = 0; id < vocab_size(); ++id) {
      if (!processor_->IsControl(id)) continue;
      AddedToken token;
      token.id = id;
      token.content = processor_->IdToPiece(id);
      token.special = true;
      matcher_.Add(token, token.content);
    }
  }

  Result<std::vector<int32_t>> Encode(std::string_view text, const EncodeOptions& options) const override {
    RETURN_IF_ERROR(CheckEncodable(text));
    std::vector<int32_t> ids;
    if (options.add_special_tokens && options_.add_bos && processor_->bos_id() >= 0)
      ids.push_back(processor_->bos_id());
    std::vector<AddedTokenMatcher::Part> parts;
    matcher_.Split(text, options.parse_special_tokens, &parts);
    for (const auto& part : parts) {
      if (part.id >= 0) {
        ids.push_back(part.id);
        continue;
      }
      std::string_view plain = text.substr(part.range.begin, part.range.end - part.range.begin);
      // The library puts a space before each text it is given; behind a special token, a space that the text
      // already has there is that one ("<s> [INST] hi" and "<s>[INST] hi" are the same to Mistral's models).
      if (adds_prefix_ && part.range.begin > 0 && plain.front() == ' ') plain.remove_prefix(1);
      if (plain.empty()) continue;
      std::vector<int> encoded;
      try {
        const auto status = processor_->Encode(std::string(plain), &encoded);
        if (!status.ok()) return Internal("sentencepiece could not encode the text: " + status.ToString());
      } catch (const std::exception& error) {
        return Internal(std::string("sentencepiece could not encode the text: ") + error.what());
      }
      ids.insert(ids.end(), encoded.begin(), encoded.end());
    }
    if (options.add_special_tokens && options_.add_eos && processor_->eos_id() >= 0)
      ids.push_back(processor_->eos_id());
    return ids;
  }

 private:
  std::unique_ptr<sentencepiece::SentencePieceProcessor> processor_;
  bool adds_prefix_;  // the library puts a space before a text
  SentencePieceOptions options_;
  AddedTokenMatcher matcher_;
};

}  // namespace

Result<std::unique_ptr<TokenTable>> MakeSentencePieceTokenizer(std::string_view model,
                                                               const SentencePieceOptions& options) {
  try {
    auto processor = std::make_unique<sentencepiece::SentencePieceProcessor>();
    const auto status = processor->LoadFromSerializedProto(std::string(model));
    if (!status.ok()) return InvalidArgument("it is no SentencePiece model: " + status.ToString());
    std::vector<TokenEntry> entries(static_cast<size_t>(processor->GetPieceSize()));
    for (int id = 0; id < processor->GetPieceSize(); ++id) {
      TokenEntry& entry = entries[id];
      entry.text = processor->IdToPiece(id);
      if (FindInvalidUtf8(entry.text) != std::string_view::npos) {
        return InvalidArgument("piece " + std::to_string(id) + " of the SentencePiece model is not valid UTF-8");
      }
      entry.special = processor->IsControl(id) || processor->IsUnknown(id);
      if (processor->IsByte(id)) {
        if (entry.text.size() != 6) return InvalidArgument("the byte piece \"" + entry.text + "\" is not like <0x0A>");
        entry.bytes = std::string(1, static_cast<char>(std::stoi(entry.text.substr(3, 2), nullptr, 16)));
      } else {
        entry.bytes = entry.special ? entry.text : PieceBytes(entry.text);
      }
    }
    std::vector<std::string> pieces;
    if (!processor->Encode("a", &pieces).ok()) return InvalidArgument("the SentencePiece model can't encode \"a\"");
    const bool adds_prefix = !pieces.empty() && std::string_view(pieces[0]).starts_with(kMetaspace);
    TokenizerSettings settings;
    if (processor->bos_id() >= 0) settings.bos_id = processor->bos_id();
    if (processor->eos_id() >= 0) settings.eos_ids.push_back(processor->eos_id());
    auto tokenizer =
        std::make_unique<SentencePieceTokenizer>(std::move(processor), std::move(entries), adds_prefix, options);
    tokenizer->settings() = std::move(settings);
    return std::unique_ptr<TokenTable>(std::move(tokenizer));
  } catch (const std::exception& error) {
    return InvalidArgument(std::string("it is no SentencePiece model: ") + error.what());
  }
}

}  // namespace quire

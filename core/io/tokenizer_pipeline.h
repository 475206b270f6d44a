// The tokenizer that tokenizer.json describes: added tokens, normalizer, pre-tokenizer, BPE, post-processor,
// decoder. GGUF vocabularies and vocab.json + merges.txt are expressed in the same parts.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/base/status.h"
#include "core/io/bpe.h"
#include "core/io/pretokenizer.h"
#include "core/io/tokenizer_added.h"
#include "core/io/tokenizer_normalizer.h"
#include "core/io/tokenizer_table.h"

namespace quire {

// Decoder steps, each on one token alone; Fuse needs no step.
struct DecoderStep {
  enum class Kind { kByteLevel, kByteFallback, kReplace };
  Kind kind;
  std::string from = {}, to = {};  // kReplace: every `from` in the token becomes `to`; `from` is not empty
};

struct PipelineSpec {
  std::vector<AddedToken> added;
  std::vector<NormalizerStep> normalizer;
  std::vector<PreTokenizerStep> pre_tokenizer;
  BpeModel model;
  std::vector<int32_t> prefix_ids, suffix_ids;  // what add_special_tokens puts around a text
  std::vector<DecoderStep> decoder;
  bool strip_leading_space = false;  // one, at the begin of a decoded text
};

class PipelineTokenizer final : public TokenTable {
 public:
  // INVALID_ARGUMENT for ids that are negative or leave huge gaps, and for tokens that the decoder blows up.
  static Result<std::unique_ptr<PipelineTokenizer>> Create(PipelineSpec spec);

  Result<std::vector<int32_t>> Encode(std::string_view text, const EncodeOptions& options) const override;

 private:
  PipelineTokenizer(PipelineSpec spec, std::vector<TokenEntry> entries);
  Status EncodePlain(std::string text, bool at_text_start, BpeModel::Scratch* scratch, std::vector<int32_t>* ids) const;

  PipelineSpec spec_;
  AddedTokenMatcher raw_matcher_;         // looks at the text as it is
  AddedTokenMatcher normalized_matcher_;  // looks at the normalized text
};

}  // namespace quire

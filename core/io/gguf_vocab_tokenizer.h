// Tokenizers from a GGUF file's metadata: the vocabulary kinds "gpt2" (byte-level BPE with a merge list) and
// "llama" (SentencePiece BPE by score), and the table of tokenizer.ggml.pre names. Taking the metadata out of
// the file is gguf_vocab.h's.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/status.h"
#include "core/io/tokenizer.h"
#include "core/io/tokenizer_pipeline.h"

namespace quire {

// Values of tokenizer.ggml.token_type.
enum class GgufTokenType : int32_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

// The tokenizer.* keys of a GGUF file.
struct GgufVocab {
  std::string model;                // tokenizer.ggml.model
  std::string pre;                  // tokenizer.ggml.pre; "": absent
  std::vector<std::string> tokens;  // [vocabulary]
  std::vector<float> scores;        // [vocabulary], or empty
  std::vector<int32_t> types;       // [vocabulary], or empty: all normal
  std::vector<std::string> merges;  // "a b"
  std::optional<int64_t> bos_id, eos_id, unk_id, eot_id, eom_id;
  std::optional<bool> add_bos, add_eos, add_space_prefix;
  std::string chat_template;
};

// INVALID_ARGUMENT for an unknown model or pre name (with the name), and for tables that don't fit together.
Result<std::unique_ptr<Tokenizer>> MakeGgufTokenizer(GgufVocab vocab);

// What a pre name stands for beside its steps.
struct PreTraits {
  bool ignore_merges = false;
  bool add_bos = false;
};
// Sets the normalizer and the pre-tokenizer of `spec` to those of `pre` ("gpt-2", "llama-bpe", "qwen2", …).
// INVALID_ARGUMENT for a name that is not known.
Result<PreTraits> MakePreTokenizer(std::string_view pre, PipelineSpec* spec);

}  // namespace quire

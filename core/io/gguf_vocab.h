// Takes the vocabulary (the tokenizer.* keys) out of a GGUF file's metadata.
#pragma once

#include "core/base/status.h"
#include "core/io/gguf.h"
#include "core/io/gguf_vocab_tokenizer.h"

namespace quire {

// INVALID_ARGUMENT with the key when one has the wrong type, NOT_FOUND when there is no vocabulary.
Result<GgufVocab> ReadGgufVocab(const GgufFile& file);

}  // namespace quire

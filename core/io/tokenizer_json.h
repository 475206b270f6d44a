// Reads Hugging Face's tokenizer.json, and the older pair of vocab.json and merges.txt. Whatever the file asks
// for that is not supported is refused by its name.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "core/base/status.h"
#include "core/io/tokenizer.h"
#include "core/io/tokenizer_pipeline.h"

namespace quire {

// A tokenizer.json's text. Never crashes on untrusted bytes; INVALID_ARGUMENT says what is wrong.
Result<std::unique_ptr<PipelineTokenizer>> MakeJsonTokenizer(std::string_view json);
// The same as the plain interface, without side files: no bos, eos or chat template.
Result<std::unique_ptr<Tokenizer>> LoadTokenizerFromJson(std::string_view json);

// GPT-2's files: a JSON object of token → id, and a list of merges ("a b" a line, "#…" at the first). `pre` is a
// name that MakePreTokenizer (gguf_vocab_tokenizer.h) knows. Every "<|…|>" of the vocabulary is special.
Result<std::unique_ptr<PipelineTokenizer>> MakeVocabMergesTokenizer(std::string_view vocab_json,
                                                                    std::string_view merges_text, std::string_view pre);

}  // namespace quire

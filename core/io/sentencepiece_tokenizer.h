// SentencePiece .model files through libsentencepiece. Control pieces that stand in the text ("<s>", "[INST]")
// are found here, for the library itself never makes one from text.
#pragma once

#include <memory>
#include <string_view>

#include "core/base/status.h"
#include "core/io/tokenizer_table.h"

namespace quire {

struct SentencePieceOptions {
  bool add_bos = true;  // tokenizer_config.json's add_bos_token
  bool add_eos = false;
};

// `model` is the file's content. bos and eos are the model's own. INVALID_ARGUMENT when it is no such model.
Result<std::unique_ptr<TokenTable>> MakeSentencePieceTokenizer(std::string_view model,
                                                               const SentencePieceOptions& options);

}  // namespace quire

// The files that make a model's tokenizer, to be sent to another machine, and a tokenizer made of such files. Internal to
// rpc/.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/base/status.h"
#include "core/io/tokenizer.h"
#include "rpc/backend.h"

namespace quire::rpc {

// Of a Hugging Face folder: those of its files that LoadTokenizer reads. Of a .gguf file: one tokenizer.gguf with the
// vocabulary's metadata and no tensors. NOT_FOUND when there is none.
Result<std::vector<TokenizerFile>> ReadTokenizerFiles(const std::string& model);

// Written into a folder of their own, loaded, and removed again. INVALID_ARGUMENT for names with folders in them.
Result<std::unique_ptr<Tokenizer>> MakeTokenizer(const std::vector<TokenizerFile>& files);

}  // namespace quire::rpc

// Whether two groups run the same model: hashes of what decides their tokens. Hexadecimal, 32 digits.
#pragma once

#include <cstdint>
#include <string>

#include "core/base/status.h"
#include "core/io/tokenizer.h"

namespace quire::rpc {

// Every vocabulary entry with its special mark, the end tokens and the chat template.
std::string TokenizerHash(const Tokenizer& tokenizer);

// A model's folder or .gguf file: config.json and the index of shards whole; of every weight file its name, size,
// beginning (where the directory of tensors is) and 256 pieces spread over it. `extra` (load format, seed) is mixed in.
// NOT_FOUND when there is nothing at the path.
Result<std::string> ModelHash(const std::string& path, const std::string& extra);

}  // namespace quire::rpc

// The tensors of a GGUF file as a WeightSource. Decides which of ggml's types are read and where each tensor lies;
// dimensions are turned round, for GGUF names the fastest first.
#pragma once

#include <memory>

#include "core/base/status.h"
#include "core/io/gguf.h"
#include "core/io/weight_source.h"

namespace quire {

// Takes the file over. INVALID_ARGUMENT for a tensor that doesn't fit its file, overlaps another or has more than two
// dimensions, UNIMPLEMENTED for a type that is not read; the message names the tensor.
Result<std::unique_ptr<WeightSource>> MakeGgufWeights(GgufFile file);

}  // namespace quire

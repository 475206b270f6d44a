// Families table: one row per model family, saying which config keys it has, which options it takes and
// how its weights are called. An unknown architecture or an option no row understands is refused by name.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "core/base/status.h"
#include "core/io/weight_source.h"
#include "core/model/model_config.h"

namespace quire {

// Where a layer's parameter is found in the checkpoint.
enum class Param {
  kEmbedding,   // [vocab][hidden]
  kFinalNorm,   // [hidden]
  kHead,        // [vocab][hidden]; absent when tied
  kAttnNorm,    // [hidden]
  kQ,           // [q_heads * head_dim][hidden]
  kK, kV,       // [kv_heads * head_dim][hidden]
  kO,           // [hidden][q_heads * head_dim]
  kQBias, kKBias, kVBias, kOBias,
  kQNorm, kKNorm,  // [head_dim]
  kPostAttnNorm,  // [hidden]
  kMlpNorm,     // [hidden]
  kGate, kUp,   // [ffn][hidden]
  kDown,        // [hidden][ffn]
  kGateBias, kUpBias, kDownBias,
  kPostMlpNorm,  // [hidden]
};

// A checkpoint opened: its numbers, and its tensors behind the names its format uses.
struct Checkpoint {
  ModelConfig config;
  std::unique_ptr<WeightSource> weights;
  bool gguf = false;  // decides the names

  // The tensor's name, "" when the family has none of that kind. layer is ignored for the three global ones.
  std::string TensorName(Param param, int layer) const;
};

// Opens a Hugging Face folder or a .gguf file; reads the config, checks that every tensor the family needs is there
// with the shape the config says. load_format: "auto", or "dummy" (seeded random weights for any config.json, no
// weight file needed). Errors name the file, the key or tensor, and the value.
Result<Checkpoint> OpenCheckpoint(const std::string& path, std::string_view load_format = "auto", uint64_t dummy_seed = 0);

// From the text of a config.json (and, when not empty, of a generation_config.json). Untrusted input.
Result<ModelConfig> ParseModelConfig(std::string_view config_json, std::string_view generation_config_json);

}  // namespace quire

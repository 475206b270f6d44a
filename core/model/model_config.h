// ModelConfig: a model as numbers and enums, read from config.json or GGUF metadata by its family's row
// (families.h). The decoder reads these and nothing else; a family is data, never a class.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/base/dtype.h"
#include "core/base/status.h"

namespace quire {

enum class RopeScaling { kNone, kLinear, kDynamic, kYarn, kLlama3 };

struct RopeConfig {
  double theta = 10000.0;
  int rotary_dim = 0;        // channels rotated; head_dim unless the model rotates a part
  bool interleaved = false;  // pairs (2i, 2i+1), as GGUF's llama files are permuted to; false: pairs (i, i + dim/2)
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1.0;
  int64_t original_max_position = 0;  // dynamic, yarn, llama3
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  // llama3
  double beta_fast = 32.0, beta_slow = 1.0;               // yarn
  double attention_factor = 1.0;  // yarn: cos and sin are multiplied by it; already resolved (mscale and all)
  bool truncate = true;           // yarn: whether the correction range is rounded to whole channels
  std::vector<float> factors;     // GGUF's rope_freqs: [rotary_dim / 2] divisors of the inverse frequencies; empty: none
};

enum class Activation { kSilu, kGeluTanh, kGelu };

struct ModelConfig {
  std::string family;        // row of the families table: "llama", "qwen3", …
  std::string architecture;  // as the file says: "LlamaForCausalLM", "llama"
  std::string name;          // for people: folder or file name
  DType dtype = DType::kBF16;  // what --dtype auto means: the checkpoint's own type (quantised files: bf16)
  int layers = 0;
  int hidden = 0;
  int ffn = 0;
  int q_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int vocab = 0;
  int64_t max_position = 0;
  float norm_eps = 1e-5f;
  RopeConfig rope;
  std::optional<RopeConfig> window_rope;  // of layers with a window, where theirs is another one (Gemma-3)
  Activation activation = Activation::kSilu;
  bool tie_embeddings = false;
  bool qkv_bias = false;     // Qwen2, or attention_bias
  bool out_bias = false;     // bias of the attention's output projection (attention_bias of Llama)
  bool mlp_bias = false;
  bool qk_norm = false;      // Qwen3, Gemma-3: rms norm over head_dim on q and k before rope
  bool post_norms = false;   // Gemma: rms norms of attention's and the mlp's outputs before they join the residual
  float norm_offset = 0.0f;  // added to norm weights as they are loaded: 1 for Gemma's safetensors, which hold w − 1
  float embedding_scale = 1.0f;    // Gemma: √hidden
  float query_scalar = 0.0f;       // scores are divided by its root; 0: head_dim
  float attention_softcap = 0.0f;  // Gemma-2: cap · tanh(score / cap); 0: none
  float final_softcap = 0.0f;      // the same of the logits
  std::vector<int> window;   // [layers] sliding window in tokens, 0 = none (a token sees itself and window - 1 before)
  std::optional<int32_t> bos_id;
  std::vector<int32_t> eos_ids;
  // generation_config.json's recommendations, when given; used by --chat and generate only where no flag says otherwise.
  std::optional<float> default_temperature, default_top_p;
  std::optional<int> default_top_k;

  // 1/sqrt(head_dim), or of query_scalar.
  float attention_scale() const;
};

// Inverse frequencies of every rotated pair, [rotary_dim / 2], with the scaling applied for sequences whose total
// length is `length` (only dynamic scaling depends on it). Formulas: transformers' modeling_rope_utils, YaRN (arXiv 2309.00071).
std::vector<float> RopeInverseFrequencies(const RopeConfig& rope, int64_t length);

}  // namespace quire

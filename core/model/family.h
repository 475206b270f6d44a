// The families table's row, and the pieces that config.json and GGUF readers share. Internal to core/model.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/status.h"
#include "core/io/gguf.h"
#include "core/io/weight_source.h"
#include "core/model/families.h"
#include "core/model/model_config.h"

namespace quire {

// Which layers attend through a sliding window, and which keys say so.
enum class WindowRule {
  kNone,         // none; a sliding_window key is refused
  kEveryLayer,   // Mistral: sliding_window, null for none
  kUpperLayers,  // Qwen: use_sliding_window, then layer_types, else layers from max_window_layers on
  kAllButEveryNth,  // Gemma: sliding_window (null for none), then layer_types, else all but every window_period-th
};

// One model family. Defaults are those of transformers' configuration class, for keys that a config.json leaves out.
struct Family {
  std::string_view name;
  std::string_view hf_architecture;
  std::string_view model_type;         // of config.json
  std::string_view gguf_architecture;  // "" when GGUF files of it go by another family's name
  int64_t default_max_position;
  int default_kv_heads;  // 0: as many as query heads
  int default_head_dim;  // 0: hidden / query heads
  std::optional<int32_t> default_bos, default_eos;
  WindowRule window;
  bool qkv_bias;              // always there
  bool takes_attention_bias;  // the attention_bias key is obeyed: bias on q, k, v and o
  bool takes_mlp_bias;
  bool qk_norm;
  bool gguf_interleaved;  // GGUF's converter permutes q and k rows for rotation of neighbouring channels

  // What only some families have.
  int window_period = 0;             // kAllButEveryNth: a layer in so many attends to everything
  bool tied_by_default = false;      // tie_word_embeddings where it isn't given
  double default_theta = 10000.0;    // of rope
  double window_theta = 0;           // > 0: layers with a window have a rope of their own, by default of this base
  const char* activation_key = "hidden_act";
  const char* default_activation = "silu";
  bool scaled_embedding = false;     // embeddings times √hidden
  bool post_norms = false;
  bool norms_less_one = false;       // Hugging Face files hold norm weights − 1 (GGUF's converter adds it back)
  double default_query_scalar = 0;   // > 0: the query_pre_attn_scalar key is obeyed
  bool takes_attention_softcap = false;
  bool takes_final_softcap = false;
  double default_attention_softcap = 0, default_final_softcap = 0;
  int gguf_wide_layers = 0;  // GGUF has no query scalar: files of so many layers use hidden / heads, others head_dim
};

std::span<const Family> Families();
const Family* FindFamilyByArchitecture(std::string_view hf_architecture);
const Family* FindFamilyByModelType(std::string_view model_type);
const Family* FindFamilyByGguf(std::string_view gguf_architecture);
std::string KnownArchitectures();  // for messages

// The config of a config.json; dtype_given is false where the file doesn't say the checkpoint's type.
struct ParsedConfig {
  ModelConfig config;
  bool dtype_given = false;
};
// `where` and `generation_where` are the files' names for messages.
Result<ParsedConfig> ParseConfigJson(std::string_view text, std::string_view where, std::string_view generation_text,
                                     std::string_view generation_where);

// The config of GGUF metadata. Biases and an untied head are told from the tensors that are there; rope.factors and
// dtype are left to the caller, who has the tensors' values.
Result<ModelConfig> ConfigFromGguf(const GgufFile& file);

// Sizes within what any model has, heads that divide, an even head_dim, a rope that can be computed. `where` goes
// before the message.
Status CheckModelConfig(const ModelConfig& config, std::string_view where);

// YaRN's factor on cos and sin for a context stretched `scale` times (arXiv 2309.00071, section 3.4).
double YarnMscale(double scale, double weight);

}  // namespace quire

#include "core/model/model_config.h"

#include <cmath>

#include "core/model/family.h"

namespace quire {

float ModelConfig::attention_scale() const {
  return 1.0f / std::sqrt(query_scalar > 0 ? query_scalar : static_cast<float>(head_dim));
}

namespace {

Status CheckRange(std::string_view where, const char* key, int64_t value, int64_t low, int64_t high) {
  if (low <= value && value <= high) return OkStatus();
  return InvalidArgument(std::string(where) + ": " + key + " is " + std::to_string(value) + "; it must lie in [" +
                         std::to_string(low) + ", " + std::to_string(high) + "]");
}

Status CheckPositive(std::string_view where, const char* key, double value, double above = 0.0, double at_most = 1e12) {
  if (std::isfinite(value) && value > above && value <= at_most) return OkStatus();
  return InvalidArgument(std::string(where) + ": " + key + " is " + std::to_string(value) +
                         "; it must be a finite number above " + std::to_string(above));
}

Status CheckRope(const RopeConfig& rope, std::string_view where) {
  RETURN_IF_ERROR(CheckPositive(where, "rope_theta", rope.theta));
  const RopeScaling scaling = rope.scaling;
  if (scaling == RopeScaling::kNone) return OkStatus();
  RETURN_IF_ERROR(CheckPositive(where, "the rope scaling's factor", rope.factor, 0.0, 1e6));
  if (scaling == RopeScaling::kLinear) return OkStatus();
  RETURN_IF_ERROR(CheckRange(where, "the rope scaling's original_max_position_embeddings", rope.original_max_position,
                             1, int64_t{1} << 40));
  if (scaling == RopeScaling::kDynamic) {
    if (rope.factor < 1.0)
      return InvalidArgument(std::string(where) + ": dynamic rope scaling needs a factor of 1 or more");
    return CheckRange(where, "head_dim (with dynamic rope scaling)", rope.rotary_dim, 4, 1 << 16);
  }
  if (scaling == RopeScaling::kLlama3) {
    RETURN_IF_ERROR(CheckPositive(where, "low_freq_factor", rope.low_freq_factor, 0.0, 1e6));
    RETURN_IF_ERROR(CheckPositive(where, "high_freq_factor", rope.high_freq_factor, 0.0, 1e6));
    if (rope.high_freq_factor <= rope.low_freq_factor) {
      return InvalidArgument(std::string(where) + ": high_freq_factor must be greater than low_freq_factor");
    }
    return OkStatus();
  }
  RETURN_IF_ERROR(CheckPositive(where, "rope_theta (with yarn)", rope.theta, 1.0));
  RETURN_IF_ERROR(CheckPositive(where, "beta_fast", rope.beta_fast, 0.0, 1e6));
  RETURN_IF_ERROR(CheckPositive(where, "beta_slow", rope.beta_slow, 0.0, 1e6));
  return CheckPositive(where, "attention_factor", rope.attention_factor, 0.0, 1e6);
}

}  // namespace

Status CheckModelConfig(const ModelConfig& config, std::string_view where) {
  RETURN_IF_ERROR(CheckRange(where, "the number of layers", config.layers, 1, 4096));
  RETURN_IF_ERROR(CheckRange(where, "the hidden size", config.hidden, 1, 1 << 18));
  RETURN_IF_ERROR(CheckRange(where, "the feed-forward size", config.ffn, 1, 1 << 20));
  RETURN_IF_ERROR(CheckRange(where, "the number of attention heads", config.q_heads, 1, 4096));
  RETURN_IF_ERROR(CheckRange(where, "the number of key-value heads", config.kv_heads, 1, 4096));
  RETURN_IF_ERROR(CheckRange(where, "head_dim", config.head_dim, 2, 4096));
  RETURN_IF_ERROR(CheckRange(where, "the vocabulary size", config.vocab, 1, 1 << 24));
  RETURN_IF_ERROR(CheckRange(where, "the context length", config.max_position, 1, int64_t{1} << 31));
  RETURN_IF_ERROR(CheckPositive(where, "the rms norm's epsilon", static_cast<double>(config.norm_eps), 0.0, 1.0));
  if (config.q_heads % config.kv_heads != 0) {
    return InvalidArgument(std::string(where) + ": " + std::to_string(config.q_heads) +
                           " attention heads can't be dealt out over " + std::to_string(config.kv_heads) +
                           " key-value heads");
  }
  if (config.head_dim % 2 != 0) {
    return InvalidArgument(std::string(where) + ": head_dim is " + std::to_string(config.head_dim) +
                           "; rotary embeddings need an even one");
  }
  if (config.query_scalar != 0) RETURN_IF_ERROR(CheckPositive(where, "query_pre_attn_scalar", config.query_scalar));
  for (const auto& [key, cap] : {std::pair{"attn_logit_softcapping", config.attention_softcap},
                                 std::pair{"final_logit_softcapping", config.final_softcap}}) {
    if (cap != 0) RETURN_IF_ERROR(CheckPositive(where, key, cap, 1e-3, 1e6));
  }
  if (config.window_rope) RETURN_IF_ERROR(CheckRope(*config.window_rope, where));
  return CheckRope(config.rope, where);
}

}  // namespace quire

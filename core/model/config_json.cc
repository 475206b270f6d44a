// config.json and generation_config.json to ModelConfig. Reads old and new key names, fills in what transformers'
// configuration classes fill in, and refuses by name whatever it doesn't know how to run.
#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string>

#include "core/io/json.h"
#include "core/model/family.h"

namespace quire {

namespace {

using Json = nlohmann::json;

// Typed reads of one object's keys. A key that is null counts as absent, as in transformers.
class Reader {
 public:
  Reader(const Json& object, std::string where) : object_(object), where_(std::move(where)) {}

  const std::string& where() const { return where_; }

  const Json* Find(const char* key) const {
    const auto it = object_.find(key);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }
  bool Present(const char* key) const { return object_.contains(key); }  // null counts

  Status Error(const char* key, const std::string& must) const {
    const Json* value = Find(key);
    std::string text = value == nullptr ? "missing" : value->dump(-1, ' ', false, Json::error_handler_t::replace);
    if (text.size() > 80) text = text.substr(0, 80) + "…";
    return InvalidArgument(where_ + ": '" + key + "' is " + text + "; it must be " + must);
  }

  Result<int64_t> Int(const char* key, int64_t fallback) const {
    const Json* value = Find(key);
    if (value == nullptr) return fallback;
    if (!value->is_number_integer() ||
        (value->is_number_unsigned() &&
         value->get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))) {
      return Error(key, "an integer");
    }
    return value->get<int64_t>();
  }

  // An integer that must be there, positive and small enough for an int.
  Result<int> Size(const char* key) const {
    if (Find(key) == nullptr) return Error(key, "a positive integer");
    return Size(key, 0);
  }
  Result<int> Size(const char* key, int64_t fallback) const {
    ASSIGN_OR_RETURN(const int64_t value, Int(key, fallback));
    const bool given = Find(key) != nullptr;
    if ((given && value < 1) || value > std::numeric_limits<int>::max()) return Error(key, "a positive integer");
    return static_cast<int>(value);
  }

  Result<double> Double(const char* key, double fallback) const {
    const Json* value = Find(key);
    if (value == nullptr) return fallback;
    if (!value->is_number() || !std::isfinite(value->get<double>())) return Error(key, "a number");
    return value->get<double>();
  }

  Result<bool> Bool(const char* key, bool fallback) const {
    const Json* value = Find(key);
    if (value == nullptr) return fallback;
    if (!value->is_boolean()) return Error(key, "true or false");
    return value->get<bool>();
  }

  Result<std::string> String(const char* key, const char* fallback) const {
    const Json* value = Find(key);
    if (value == nullptr) return std::string(fallback);
    if (!value->is_string()) return Error(key, "a string");
    return value->get<std::string>();
  }

  // A token id, or nothing. -1 means nothing in some files.
  Result<std::optional<int32_t>> TokenId(const char* key) const {
    const Json* value = Find(key);
    if (value == nullptr || (value->is_number_integer() && value->get<int64_t>() == -1))
      return std::optional<int32_t>();
    if (!IsTokenId(*value)) return Error(key, "a token id");
    return std::optional<int32_t>(value->get<int32_t>());
  }

  // A number or a list of numbers.
  Result<std::vector<int32_t>> TokenIds(const char* key) const {
    std::vector<int32_t> ids;
    const Json* value = Find(key);
    if (value == nullptr) return ids;
    if (!value->is_array()) {
      ASSIGN_OR_RETURN(const auto id, TokenId(key));
      if (id) ids.push_back(*id);
      return ids;
    }
    for (const Json& id : *value) {
      if (!IsTokenId(id)) return Error(key, "a token id or a list of token ids");
      ids.push_back(id.get<int32_t>());
    }
    return ids;
  }

 private:
  static bool IsTokenId(const Json& value) {
    return value.is_number_unsigned() &&
           value.get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<int32_t>::max());
  }

  const Json& object_;
  std::string where_;
};

// Keys that change what a model computes and that no family here knows, with the one value that changes nothing.
struct Refused {
  const char* key;
  double neutral;  // also null, false, {} and []
};
constexpr Refused kRefused[] = {{"quantization_config", 0},
                                {"num_experts", 0},
                                {"num_local_experts", 0},
                                {"n_routed_experts", 0},
                                {"num_experts_per_tok", 0},
                                {"attn_logit_softcapping", 0},
                                {"final_logit_softcapping", 0},
                                {"logit_scale", 1},
                                {"logits_scaling", 1},
                                {"embedding_multiplier", 1},
                                {"residual_multiplier", 1},
                                {"attention_multiplier", 0},
                                {"query_pre_attn_scalar", 0},
                                {"use_qk_norm", 0},
                                {"qk_layernorm", 0},
                                {"clip_qkv", 0},
                                {"alibi", 0},
                                {"use_bidirectional_attention", 0},
                                {"no_rope_layers", 0},
                                {"attention_chunk_size", 0},
                                {"q_lora_rank", 0},
                                {"kv_lora_rank", 0},
                                {"is_encoder_decoder", 0},
                                {"num_nextn_predict_layers", 0},
                                {"rope_interleaved", 0},
                                {"add_cross_attention", 0},
                                {"attention_sinks", 0},
                                {"parallel_attn", 0},
                                {"use_parallel_residual", 0},
                                {"rotary_percent", 1},
                                {"rotary_pct", 1}};

Status RefuseUnknownOptions(const Reader& config, const Family& family) {
  const auto taken = [&](std::string_view key) {
    return (key == "attn_logit_softcapping" && family.takes_attention_softcap) ||
           (key == "final_logit_softcapping" && family.takes_final_softcap) ||
           (key == "query_pre_attn_scalar" && family.default_query_scalar > 0);
  };
  for (const Refused& refused : kRefused) {
    const Json* value = config.Find(refused.key);
    if (value == nullptr || taken(refused.key)) continue;
    const bool neutral = (value->is_boolean() && !value->get<bool>()) ||
                         (value->is_number() && value->get<double>() == refused.neutral) ||
                         (value->is_structured() && value->empty());
    if (neutral) continue;
    std::string text = value->dump(-1, ' ', false, Json::error_handler_t::replace);
    if (text.size() > 80) text = text.substr(0, 80) + "…";
    return Unimplemented(config.where() + ": the option '" + refused.key + "' (" + text + ") is not supported");
  }
  return OkStatus();
}

Result<const Family*> ParseFamily(const Reader& config, ModelConfig* out) {
  ASSIGN_OR_RETURN(const std::string model_type, config.String("model_type", ""));
  const Json* architectures = config.Find("architectures");
  const Family* family = nullptr;
  if (architectures != nullptr) {
    if (!architectures->is_array() || architectures->size() != 1 || !(*architectures)[0].is_string()) {
      return config.Error("architectures", "a list of one name");
    }
    out->architecture = (*architectures)[0].get<std::string>();
    family = FindFamilyByArchitecture(out->architecture);
    if (family == nullptr) {
      return Unimplemented(config.where() + ": the architecture '" + out->architecture + "' is not supported; " +
                           KnownArchitectures() + " are");
    }
    if (!model_type.empty() && model_type != family->model_type) {
      return InvalidArgument(config.where() + ": the model_type '" + model_type + "' contradicts the architecture '" +
                             out->architecture + "'");
    }
  } else {
    if (model_type.empty()) return config.Error("architectures", "a list of one name");
    family = FindFamilyByModelType(model_type);
    if (family == nullptr) {
      return Unimplemented(config.where() + ": the model_type '" + model_type + "' is not supported; " +
                           KnownArchitectures() + " are");
    }
    out->architecture = family->hf_architecture;
  }
  out->family = family->name;
  return family;
}

Result<RopeScaling> ParseRopeType(const Reader& rope) {
  ASSIGN_OR_RETURN(const std::string type, rope.String(rope.Find("rope_type") ? "rope_type" : "type", "default"));
  if (type == "default") return RopeScaling::kNone;
  if (type == "linear") return RopeScaling::kLinear;
  if (type == "dynamic") return RopeScaling::kDynamic;
  if (type == "yarn") return RopeScaling::kYarn;
  if (type == "llama3") return RopeScaling::kLlama3;
  return Unimplemented(rope.where() + ": the rope type '" + type +
                       "' is not supported; default, linear, dynamic, yarn and llama3 are");
}

Status ParseYarn(const Reader& rope, double max_position, RopeConfig* out) {
  if (rope.Find("factor") == nullptr) out->factor = max_position / static_cast<double>(out->original_max_position);
  ASSIGN_OR_RETURN(const double mscale, rope.Double("mscale", 0));
  ASSIGN_OR_RETURN(const double mscale_all, rope.Double("mscale_all_dim", 0));
  const double inferred = mscale != 0 && mscale_all != 0
                              ? YarnMscale(out->factor, mscale) / YarnMscale(out->factor, mscale_all)
                              : YarnMscale(out->factor, 1.0);
  ASSIGN_OR_RETURN(out->attention_factor, rope.Double("attention_factor", inferred));
  // 0 means the default, as in transformers.
  ASSIGN_OR_RETURN(const double fast, rope.Double("beta_fast", 0));
  ASSIGN_OR_RETURN(const double slow, rope.Double("beta_slow", 0));
  if (fast != 0) out->beta_fast = fast;
  if (slow != 0) out->beta_slow = slow;
  ASSIGN_OR_RETURN(out->truncate, rope.Bool("truncate", true));
  return OkStatus();
}

Status ParseRope(const Reader& config, const ModelConfig& model, double default_theta, RopeConfig* out) {
  const Json* parameters = config.Find("rope_parameters");
  const Json* scaling = config.Find("rope_scaling");
  if (parameters != nullptr && scaling != nullptr && *parameters != *scaling) {
    return InvalidArgument(config.where() +
                           ": 'rope_parameters' and 'rope_scaling' are both there and differ; keep one");
  }
  const char* key = parameters != nullptr ? "rope_parameters" : "rope_scaling";
  static const Json kNothing = Json::object();
  const Json& object = parameters != nullptr ? *parameters : scaling != nullptr ? *scaling : kNothing;
  if (!object.is_object()) return config.Error(key, "an object");
  const Reader rope(object, config.where() + ": '" + key + "'");

  constexpr std::string_view kKnown[] = {"rope_type",
                                         "type",
                                         "rope_theta",
                                         "factor",
                                         "original_max_position_embeddings",
                                         "attention_factor",
                                         "beta_fast",
                                         "beta_slow",
                                         "mscale",
                                         "mscale_all_dim",
                                         "truncate",
                                         "low_freq_factor",
                                         "high_freq_factor",
                                         "partial_rotary_factor",
                                         "finetuned"};
  for (const auto& [name, value] : object.items()) {
    if (std::find(std::begin(kKnown), std::end(kKnown), name) == std::end(kKnown)) {
      return Unimplemented(rope.where() + ": the option '" + name + "' is not supported");
    }
  }
  if (rope.Find("rope_type") && rope.Find("type") && *rope.Find("rope_type") != *rope.Find("type")) {
    return InvalidArgument(rope.where() + ": 'rope_type' and 'type' contradict each other");
  }
  for (const Reader* reader : {&config, &rope}) {
    ASSIGN_OR_RETURN(const double partial, reader->Double("partial_rotary_factor", 1.0));
    if (partial != 1.0) {
      return Unimplemented(reader->where() + ": the option 'partial_rotary_factor' (" + std::to_string(partial) +
                           ") is not supported; these families rotate whole heads");
    }
  }
  ASSIGN_OR_RETURN(const double theta, config.Double("rope_theta", default_theta));
  ASSIGN_OR_RETURN(out->theta, rope.Double("rope_theta", theta));
  out->rotary_dim = model.head_dim;
  ASSIGN_OR_RETURN(out->scaling, ParseRopeType(rope));
  if (out->scaling == RopeScaling::kNone) return OkStatus();
  const bool yarn = out->scaling == RopeScaling::kYarn;
  if (!yarn && rope.Find("factor") == nullptr) return rope.Error("factor", "a number");
  ASSIGN_OR_RETURN(out->factor, rope.Double("factor", 1.0));
  if (out->scaling == RopeScaling::kLinear) return OkStatus();
  // Dynamic scaling starts at max_position_embeddings whatever else is said; for the others an
  // original_max_position_embeddings beside the rope's object goes before one inside it (transformers 5).
  out->original_max_position = model.max_position;
  if (out->scaling == RopeScaling::kDynamic) return OkStatus();
  ASSIGN_OR_RETURN(out->original_max_position,
                   rope.Int("original_max_position_embeddings", out->original_max_position));
  ASSIGN_OR_RETURN(out->original_max_position,
                   config.Int("original_max_position_embeddings", out->original_max_position));
  if (out->original_max_position < 1) return rope.Error("original_max_position_embeddings", "a positive integer");
  if (yarn) return ParseYarn(rope, static_cast<double>(model.max_position), out);
  for (const char* name : {"low_freq_factor", "high_freq_factor"}) {
    if (rope.Find(name) == nullptr) return rope.Error(name, "a number");
  }
  ASSIGN_OR_RETURN(out->low_freq_factor, rope.Double("low_freq_factor", 1.0));
  ASSIGN_OR_RETURN(out->high_freq_factor, rope.Double("high_freq_factor", 4.0));
  return OkStatus();
}

// Where layers with a window have a rope of their own: rope_parameters has an object for each kind of layer, or the
// older keys give all but the base of the others alone.
Status ParseRopes(const Json& json, const Reader& config, const Family& family, ModelConfig* out) {
  if (family.window_theta == 0) return ParseRope(config, *out, family.default_theta, &out->rope);
  Json full = json, window = json;
  const Json* parameters = config.Find("rope_parameters");
  const bool nested = parameters != nullptr && parameters->is_object() &&
                      (parameters->contains("full_attention") || parameters->contains("sliding_attention"));
  if (nested) {
    for (const auto& [name, value] : parameters->items()) {
      if (name != "full_attention" && name != "sliding_attention") {
        return Unimplemented(config.where() + ": 'rope_parameters' for layers of the type '" + name.substr(0, 80) +
                             "' are not supported");
      }
    }
    full["rope_parameters"] = parameters->value("full_attention", Json());
    window["rope_parameters"] = parameters->value("sliding_attention", Json());
  } else {
    window.erase("rope_parameters");
  }
  window.erase("rope_scaling");
  window["rope_theta"] = json.value("rope_local_base_freq", Json());
  RETURN_IF_ERROR(ParseRope(Reader(full, config.where()), *out, family.default_theta, &out->rope));
  out->window_rope.emplace();
  return ParseRope(Reader(window, config.where()), *out, family.window_theta, &*out->window_rope);
}

Status ParseWindows(const Reader& config, const Family& family, ModelConfig* out) {
  out->window.assign(static_cast<size_t>(out->layers), 0);
  int window = 0;
  int first = 0;
  if (family.window == WindowRule::kNone) {
    if (config.Find("sliding_window") != nullptr) {
      return Unimplemented(config.where() + ": the option 'sliding_window' is not supported by " +
                           std::string(family.name));
    }
  } else if (family.window == WindowRule::kEveryLayer || family.window == WindowRule::kAllButEveryNth) {
    // Absent is transformers' default of 4096; null is none.
    ASSIGN_OR_RETURN(window, config.Size("sliding_window", config.Present("sliding_window") ? 0 : 4096));
  } else {
    ASSIGN_OR_RETURN(const bool use, config.Bool("use_sliding_window", false));
    if (use) {
      ASSIGN_OR_RETURN(window, config.Size("sliding_window", config.Present("sliding_window") ? 0 : 4096));
      ASSIGN_OR_RETURN(const int64_t from, config.Int("max_window_layers", 28));
      if (from < 0) return config.Error("max_window_layers", "0 or more");
      first = static_cast<int>(std::min<int64_t>(from, out->layers));
    }
  }
  if (family.window_theta > 0 && window == 0) return config.Error("sliding_window", "a positive integer");
  int period = family.window_period;  // 0: none of the layers attends to everything
  if (family.window == WindowRule::kAllButEveryNth) {
    ASSIGN_OR_RETURN(period, config.Size("sliding_window_pattern", period));
  }
  const Json* types = config.Find("layer_types");
  if (types != nullptr && (!types->is_array() || types->size() != out->window.size())) {
    return config.Error("layer_types", "a list of as many names as there are layers");
  }
  for (int i = 0; i < out->layers; ++i) {
    bool sliding = window > 0 && i >= first && (period == 0 || (i + 1) % period != 0);
    if (types != nullptr) {
      const Json& type = (*types)[static_cast<size_t>(i)];
      const bool says_sliding = type == "sliding_attention";
      if (!says_sliding && type != "full_attention") {
        return Unimplemented(config.where() + ": the layer type " +
                             type.dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, 80) +
                             " is not supported; full_attention and sliding_attention are");
      }
      if (says_sliding && window == 0) {
        return InvalidArgument(config.where() + ": layer " + std::to_string(i) +
                               " has sliding attention, but no sliding window is set");
      }
      if (family.window == WindowRule::kEveryLayer && says_sliding != sliding) {
        return Unimplemented(config.where() + ": 'layer_types' that mix windows are not supported by " +
                             std::string(family.name));
      }
      sliding = says_sliding;
    }
    if (sliding) out->window[static_cast<size_t>(i)] = window;
  }
  return OkStatus();
}

Status ParseBiases(const Reader& config, const Family& family, ModelConfig* out) {
  ASSIGN_OR_RETURN(const bool attention, config.Bool("attention_bias", false));
  ASSIGN_OR_RETURN(const bool mlp, config.Bool("mlp_bias", false));
  if (attention && !family.takes_attention_bias) {
    return Unimplemented(config.where() + ": the option 'attention_bias' is not supported by " +
                         std::string(family.name));
  }
  if (mlp && !family.takes_mlp_bias) {
    return Unimplemented(config.where() + ": the option 'mlp_bias' is not supported by " + std::string(family.name));
  }
  out->qkv_bias = family.qkv_bias || attention;
  out->out_bias = attention;
  out->mlp_bias = mlp;
  out->qk_norm = family.qk_norm;
  return OkStatus();
}

Status ParseActivation(const Reader& config, const Family& family, Activation* out) {
  ASSIGN_OR_RETURN(const std::string name, config.String(family.activation_key, family.default_activation));
  if (name == "silu" || name == "swish") {
    *out = Activation::kSilu;
  } else if (name == "gelu_pytorch_tanh" || name == "gelu_new") {
    *out = Activation::kGeluTanh;
  } else if (name == "gelu") {
    *out = Activation::kGelu;
  } else {
    return Unimplemented(config.where() + ": the activation '" + family.activation_key + "' = '" + name +
                         "' is not supported; silu, gelu and gelu_pytorch_tanh are");
  }
  return OkStatus();
}

// What Gemma has beside the others: scales, soft caps, norms behind the layers' halves.
Status ParseScales(const Reader& config, const Family& family, ModelConfig* out) {
  out->post_norms = family.post_norms;
  out->norm_offset = family.norms_less_one ? 1.0f : 0.0f;
  if (family.scaled_embedding) out->embedding_scale = std::sqrt(static_cast<float>(out->hidden));
  if (family.default_query_scalar > 0) {
    ASSIGN_OR_RETURN(const double scalar, config.Double("query_pre_attn_scalar", family.default_query_scalar));
    if (scalar <= 0) return config.Error("query_pre_attn_scalar", "a positive number");
    out->query_scalar = static_cast<float>(scalar);
  }
  // A cap that is null is none.
  const auto cap = [&](const char* key, bool takes, double fallback, float* to) -> Status {
    if (!takes) return OkStatus();
    ASSIGN_OR_RETURN(const double value, config.Double(key, config.Present(key) ? 0 : fallback));
    if (config.Find(key) != nullptr && value <= 0) return config.Error(key, "a positive number or null");
    *to = static_cast<float>(value);
    return OkStatus();
  };
  RETURN_IF_ERROR(cap("attn_logit_softcapping", family.takes_attention_softcap, family.default_attention_softcap,
                      &out->attention_softcap));
  return cap("final_logit_softcapping", family.takes_final_softcap, family.default_final_softcap, &out->final_softcap);
}

Status ParseDType(const Reader& config, ParsedConfig* out) {
  for (const char* key : {"dtype", "torch_dtype"}) {
    ASSIGN_OR_RETURN(std::string name, config.String(key, ""));
    if (name.rfind("torch.", 0) == 0) name = name.substr(6);
    if (name.empty() || name == "auto") continue;
    auto dtype = ParseFloatDType(name);
    if (!dtype.ok()) return dtype.status().WithContext(config.where() + ": '" + key + "'");
    out->config.dtype = *dtype;
    out->dtype_given = true;
    return OkStatus();
  }
  return OkStatus();
}

// What generation_config.json recommends; its ids go before config.json's, as in transformers' generate.
Status ParseGeneration(const Reader& generation, ModelConfig* out) {
  ASSIGN_OR_RETURN(const auto bos, generation.TokenId("bos_token_id"));
  if (bos) out->bos_id = bos;
  ASSIGN_OR_RETURN(auto eos, generation.TokenIds("eos_token_id"));
  if (!eos.empty()) out->eos_ids = std::move(eos);
  ASSIGN_OR_RETURN(const bool sample, generation.Bool("do_sample", true));
  ASSIGN_OR_RETURN(const double temperature, generation.Double("temperature", -1.0));
  ASSIGN_OR_RETURN(const double top_p, generation.Double("top_p", -1.0));
  ASSIGN_OR_RETURN(const int64_t top_k, generation.Int("top_k", -1));
  if (generation.Find("temperature") && (temperature < 0 || temperature > 100)) {
    return generation.Error("temperature", "a number in [0, 100]");
  }
  if (generation.Find("top_p") && (top_p <= 0 || top_p > 1)) return generation.Error("top_p", "a number in (0, 1]");
  if (generation.Find("top_k") && (top_k < 0 || top_k > (1 << 24)))
    return generation.Error("top_k", "0 or a positive integer");
  if (!sample) return OkStatus();  // greedy: the sampling numbers are leftovers
  if (generation.Find("temperature")) out->default_temperature = static_cast<float>(temperature);
  if (generation.Find("top_p")) out->default_top_p = static_cast<float>(top_p);
  if (generation.Find("top_k")) out->default_top_k = static_cast<int>(top_k);
  return OkStatus();
}

Status ParseSizes(const Reader& config, const Family& family, ModelConfig* out) {
  ASSIGN_OR_RETURN(out->vocab, config.Size("vocab_size"));
  ASSIGN_OR_RETURN(out->hidden, config.Size("hidden_size"));
  ASSIGN_OR_RETURN(out->ffn, config.Size("intermediate_size"));
  ASSIGN_OR_RETURN(out->layers, config.Size("num_hidden_layers"));
  ASSIGN_OR_RETURN(out->q_heads, config.Size("num_attention_heads"));
  const bool kv_given = config.Present("num_key_value_heads");  // null: as many as query heads
  ASSIGN_OR_RETURN(out->kv_heads,
                   config.Size("num_key_value_heads",
                               kv_given || family.default_kv_heads == 0 ? out->q_heads : family.default_kv_heads));
  if (config.Find("head_dim") == nullptr && family.default_head_dim == 0 && out->hidden % out->q_heads != 0) {
    return InvalidArgument(config.where() + ": 'hidden_size' " + std::to_string(out->hidden) +
                           " can't be divided by 'num_attention_heads' " + std::to_string(out->q_heads) +
                           ", and no 'head_dim' is given");
  }
  ASSIGN_OR_RETURN(out->head_dim, config.Size("head_dim", family.default_head_dim != 0 && !config.Present("head_dim")
                                                              ? family.default_head_dim
                                                              : out->hidden / out->q_heads));
  ASSIGN_OR_RETURN(out->max_position, config.Int("max_position_embeddings", family.default_max_position));
  ASSIGN_OR_RETURN(const double eps, config.Double("rms_norm_eps", 1e-6));
  out->norm_eps = static_cast<float>(eps);
  // The rope and window lists below are sized by these.
  if (out->layers > 4096) return config.Error("num_hidden_layers", "at most 4096");
  if (out->max_position < 1) return config.Error("max_position_embeddings", "a positive integer");
  return OkStatus();
}

}  // namespace

Result<ParsedConfig> ParseConfigJson(std::string_view text, std::string_view where, std::string_view generation_text,
                                     std::string_view generation_where) {
  ParsedConfig parsed;
  ModelConfig& out = parsed.config;
  ASSIGN_OR_RETURN(const Json json, ParseJson(text, where));
  if (!json.is_object()) return InvalidArgument(std::string(where) + " is not a JSON object");
  const Reader config(json, std::string(where));
  ASSIGN_OR_RETURN(const Family* family, ParseFamily(config, &out));
  RETURN_IF_ERROR(RefuseUnknownOptions(config, *family));
  RETURN_IF_ERROR(ParseSizes(config, *family, &out));
  RETURN_IF_ERROR(ParseRopes(json, config, *family, &out));
  RETURN_IF_ERROR(ParseWindows(config, *family, &out));
  RETURN_IF_ERROR(ParseBiases(config, *family, &out));
  RETURN_IF_ERROR(ParseActivation(config, *family, &out.activation));
  RETURN_IF_ERROR(ParseScales(config, *family, &out));
  RETURN_IF_ERROR(ParseDType(config, &parsed));
  ASSIGN_OR_RETURN(out.tie_embeddings, config.Bool("tie_word_embeddings", family->tied_by_default));
  ASSIGN_OR_RETURN(out.bos_id, config.TokenId("bos_token_id"));
  ASSIGN_OR_RETURN(out.eos_ids, config.TokenIds("eos_token_id"));
  if (!config.Present("bos_token_id")) out.bos_id = family->default_bos;
  if (!config.Present("eos_token_id") && family->default_eos) out.eos_ids = {*family->default_eos};
  if (!generation_text.empty()) {
    ASSIGN_OR_RETURN(const Json generation, ParseJson(generation_text, generation_where));
    if (!generation.is_object()) return InvalidArgument(std::string(generation_where) + " is not a JSON object");
    RETURN_IF_ERROR(ParseGeneration(Reader(generation, std::string(generation_where)), &out));
  }
  RETURN_IF_ERROR(CheckModelConfig(out, where));
  return parsed;
}

Result<ModelConfig> ParseModelConfig(std::string_view config_json, std::string_view generation_config_json) {
  ASSIGN_OR_RETURN(ParsedConfig parsed,
                   ParseConfigJson(config_json, "config.json", generation_config_json, "generation_config.json"));
  return std::move(parsed.config);
}

}  // namespace quire

// GGUF metadata to ModelConfig. Key names are those of ggml's GGUF description; what they don't say (biases, an untied
// head, the vocabulary's size) is told from the tensors that are there.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "core/model/family.h"

namespace quire {

namespace {

// Reads "<architecture>.<key>".
class Reader {
 public:
  Reader(const GgufFile& file, std::string architecture) : file_(file), prefix_(std::move(architecture) + ".") {}

  std::string Key(const char* key) const { return prefix_ + key; }
  bool Has(const char* key) const { return file_.Find(Key(key)) != nullptr; }

  Result<int> Size(const char* key) const {
    ASSIGN_OR_RETURN(const int64_t value, file_.Int(Key(key)));
    if (value < 1 || value > std::numeric_limits<int>::max()) {
      return InvalidArgument(file_.name() + ": " + Key(key) + " is " + std::to_string(value) + "; it must be positive");
    }
    return static_cast<int>(value);
  }
  Result<int> Size(const char* key, int fallback) const { return Has(key) ? Size(key) : Result<int>(fallback); }
  Result<double> Double(const char* key, double fallback) const {
    return Has(key) ? file_.Double(Key(key)) : Result<double>(fallback);
  }

  // Some converters write one number for every layer; they must agree.
  Result<int> SizeOrEqualList(const char* key, int fallback) const {
    const GgufValue* value = file_.Find(Key(key));
    if (value == nullptr) return fallback;
    const auto* list = value->AsInts();
    if (list == nullptr) return Size(key);
    const bool same =
        !list->empty() && std::all_of(list->begin(), list->end(), [&](int64_t n) { return n == list->front(); });
    if (!same || list->front() < 1 || list->front() > std::numeric_limits<int>::max()) {
      return Unimplemented(file_.name() + ": " + Key(key) + " differs between layers, which is not supported");
    }
    return static_cast<int>(list->front());
  }

 private:
  const GgufFile& file_;
  std::string prefix_;
};

Status ParseRope(const GgufFile& file, const Reader& reader, const Family& family, const ModelConfig& model,
                 RopeConfig* out) {
  ASSIGN_OR_RETURN(out->theta, reader.Double("rope.freq_base", family.default_theta));
  out->interleaved = family.gguf_interleaved;
  ASSIGN_OR_RETURN(out->rotary_dim, reader.Size("rope.dimension_count", model.head_dim));
  if (out->rotary_dim != model.head_dim) {
    return Unimplemented(file.name() + ": " + reader.Key("rope.dimension_count") + " is " +
                         std::to_string(out->rotary_dim) + ", but heads have " + std::to_string(model.head_dim) +
                         " channels; rotating a part of them is not supported");
  }
  std::string type = "none";
  if (reader.Has("rope.scaling.type")) {
    ASSIGN_OR_RETURN(type, file.String(reader.Key("rope.scaling.type")));
  } else if (reader.Has("rope.scale_linear") || reader.Has("rope.scaling.factor")) {
    type = "linear";  // files from before the type had a key
  }
  if (type == "none") return OkStatus();
  ASSIGN_OR_RETURN(const double old_factor, reader.Double("rope.scale_linear", 0.0));
  ASSIGN_OR_RETURN(out->factor, reader.Double("rope.scaling.factor", old_factor));
  if (out->factor == 0.0) out->factor = 1.0;  // "not set" in ggml
  if (type == "linear") {
    out->scaling = RopeScaling::kLinear;
    return OkStatus();
  }
  if (type != "yarn") {
    return Unimplemented(file.name() + ": " + reader.Key("rope.scaling.type") + " '" + type +
                         "' is not supported; none, linear and yarn are");
  }
  out->scaling = RopeScaling::kYarn;
  out->original_max_position = model.max_position;
  if (reader.Has("rope.scaling.original_context_length")) {
    ASSIGN_OR_RETURN(out->original_max_position, file.Int(reader.Key("rope.scaling.original_context_length")));
  }
  ASSIGN_OR_RETURN(out->beta_fast, reader.Double("rope.scaling.yarn_beta_fast", 32.0));
  ASSIGN_OR_RETURN(out->beta_slow, reader.Double("rope.scaling.yarn_beta_slow", 1.0));
  ASSIGN_OR_RETURN(const double attention, reader.Double("rope.scaling.attn_factor", 1.0));
  for (const char* key :
       {"rope.scaling.yarn_log_multiplier", "rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor"}) {
    if (reader.Has(key)) return Unimplemented(file.name() + ": the option '" + reader.Key(key) + "' is not supported");
  }
  out->attention_factor = attention * YarnMscale(out->factor, 1.0);
  return OkStatus();
}

bool HasTensor(const GgufFile& file, std::string_view name) {
  return std::any_of(file.tensors().begin(), file.tensors().end(), [&](const GgufTensor& t) { return t.name == name; });
}

// Takes the window from the layers that have none: by a list or a period in the file, else by the family's.
Status SetGlobalLayers(const GgufFile& file, const Reader& reader, const Family& family, ModelConfig* out) {
  constexpr const char* kPattern = "attention.sliding_window_pattern";
  const GgufValue* value = file.Find(reader.Key(kPattern));
  std::vector<bool> windowed;
  if (value != nullptr && value->AsInts() != nullptr) {
    for (const int64_t x : *value->AsInts()) windowed.push_back(x != 0);
  } else if (value != nullptr && value->AsBools() != nullptr) {
    for (const uint8_t x : *value->AsBools()) windowed.push_back(x != 0);
  } else {
    ASSIGN_OR_RETURN(const int period, reader.Size(kPattern, family.window_period));
    for (int i = 0; i < out->layers; ++i) windowed.push_back((i + 1) % period != 0);
  }
  if (windowed.size() != out->window.size()) {
    return InvalidArgument(file.name() + ": " + reader.Key(kPattern) + " has " + std::to_string(windowed.size()) +
                           " entries for " + std::to_string(out->layers) + " layers");
  }
  for (size_t i = 0; i < windowed.size(); ++i) {
    if (!windowed[i]) out->window[i] = 0;
  }
  if (family.window_theta > 0) {
    out->window_rope.emplace();
    out->window_rope->rotary_dim = out->rope.rotary_dim;
    out->window_rope->interleaved = out->rope.interleaved;
    ASSIGN_OR_RETURN(out->window_rope->theta, reader.Double("rope.freq_base_swa", family.window_theta));
  }
  return OkStatus();
}

// What a family's rows in GGUF files have beside the others'. Norm weights are whole there.
Status ParseScales(const Reader& reader, const Family& family, ModelConfig* out) {
  out->post_norms = family.post_norms;
  if (std::string_view(family.default_activation) == "gelu_pytorch_tanh") out->activation = Activation::kGeluTanh;
  if (family.scaled_embedding) out->embedding_scale = std::sqrt(static_cast<float>(out->hidden));
  if (out->layers == family.gguf_wide_layers) {
    out->query_scalar = static_cast<float>(out->hidden) / static_cast<float>(out->q_heads);
  }
  // Absent: transformers' defaults, which llama.cpp has as well.
  if (family.takes_attention_softcap) {
    ASSIGN_OR_RETURN(const double cap, reader.Double("attn_logit_softcapping", family.default_attention_softcap));
    out->attention_softcap = static_cast<float>(cap);
  }
  if (family.takes_final_softcap) {
    ASSIGN_OR_RETURN(const double cap, reader.Double("final_logit_softcapping", family.default_final_softcap));
    out->final_softcap = static_cast<float>(cap);
  }
  return OkStatus();
}

// A token id key; absent and -1 mean none.
Result<std::optional<int32_t>> TokenId(const GgufFile& file, const char* key) {
  if (file.Find(key) == nullptr) return std::optional<int32_t>();
  ASSIGN_OR_RETURN(const int64_t id, file.Int(key));
  if (id == -1 || id == std::numeric_limits<uint32_t>::max()) return std::optional<int32_t>();
  if (id < 0 || id > std::numeric_limits<int32_t>::max()) {
    return InvalidArgument(file.name() + ": " + key + " is " + std::to_string(id) + ", which is no token id");
  }
  return std::optional<int32_t>(static_cast<int32_t>(id));
}

}  // namespace

Result<ModelConfig> ConfigFromGguf(const GgufFile& file) {
  ModelConfig out;
  ASSIGN_OR_RETURN(out.architecture, file.String("general.architecture"));
  const Family* family = FindFamilyByGguf(out.architecture);
  if (family == nullptr) {
    return Unimplemented(file.name() + ": the architecture '" + out.architecture +
                         "' is not supported; llama, qwen2, qwen3, gemma2 and gemma3 are");
  }
  out.family = family->name;
  const Reader reader(file, out.architecture);
  for (const char* key :
       {"expert_count", "attention.key_length_mla", "attn_logit_softcapping", "final_logit_softcapping", "logit_scale",
        "embedding_scale", "residual_scale", "attention.scale", "attention.clamp_kqv"}) {
    if (std::string_view(key) == "attn_logit_softcapping" && family->takes_attention_softcap) continue;
    if (std::string_view(key) == "final_logit_softcapping" && family->takes_final_softcap) continue;
    ASSIGN_OR_RETURN(const double value, reader.Double(key, 0.0));
    if (value != 0.0) {
      return Unimplemented(file.name() + ": the option '" + reader.Key(key) + "' (" + std::to_string(value) +
                           ") is not supported");
    }
  }
  ASSIGN_OR_RETURN(out.layers, reader.Size("block_count"));
  ASSIGN_OR_RETURN(out.hidden, reader.Size("embedding_length"));
  ASSIGN_OR_RETURN(out.ffn, reader.SizeOrEqualList("feed_forward_length", 0));
  ASSIGN_OR_RETURN(out.q_heads, reader.SizeOrEqualList("attention.head_count", 0));
  ASSIGN_OR_RETURN(out.kv_heads, reader.SizeOrEqualList("attention.head_count_kv", out.q_heads));
  ASSIGN_OR_RETURN(const int max_position, reader.Size("context_length"));
  out.max_position = max_position;
  if (out.layers > 4096 || out.q_heads < 1) {
    return InvalidArgument(file.name() + ": " + std::to_string(out.layers) + " layers and " +
                           std::to_string(out.q_heads) + " attention heads make no model");
  }
  if (!reader.Has("attention.key_length") && out.hidden % out.q_heads != 0) {
    return InvalidArgument(file.name() + ": the embedding length " + std::to_string(out.hidden) +
                           " can't be divided by " + std::to_string(out.q_heads) +
                           " heads, and no key length is given");
  }
  ASSIGN_OR_RETURN(out.head_dim, reader.Size("attention.key_length", out.hidden / out.q_heads));
  ASSIGN_OR_RETURN(const int value_dim, reader.Size("attention.value_length", out.head_dim));
  if (value_dim != out.head_dim) {
    return Unimplemented(file.name() + ": keys of " + std::to_string(out.head_dim) + " and values of " +
                         std::to_string(value_dim) + " channels differ, which is not supported");
  }
  ASSIGN_OR_RETURN(const double eps, file.Double(reader.Key("attention.layer_norm_rms_epsilon")));
  out.norm_eps = static_cast<float>(eps);
  for (const GgufTensor& tensor : file.tensors()) {
    if (tensor.name == "token_embd.weight" && tensor.dims.size() == 2) {
      out.vocab = static_cast<int>(std::min<int64_t>(tensor.dims[1], std::numeric_limits<int>::max()));
    }
  }
  if (out.vocab == 0)
    return NotFound(file.name() + ": there is no tensor 'token_embd.weight': a file of a vocabulary only?");

  RETURN_IF_ERROR(ParseRope(file, reader, *family, out, &out.rope));
  int window = 0;
  if (reader.Has("attention.sliding_window")) {
    ASSIGN_OR_RETURN(const int64_t given, file.Int(reader.Key("attention.sliding_window")));
    if (given < 0) return InvalidArgument(file.name() + ": a sliding window of " + std::to_string(given) + " tokens");
    // A window as long as the context hides nothing, but may have a rope of its own.
    const bool counts = given < out.max_position || family->window_theta > 0;
    if (given > 0 && counts) window = static_cast<int>(std::min<int64_t>(given, std::numeric_limits<int>::max()));
    if (window > 0 && family->window == WindowRule::kUpperLayers) {
      return Unimplemented(file.name() + ": the option '" + reader.Key("attention.sliding_window") +
                           "' is not supported by " + std::string(family->name) +
                           ": the file doesn't say which layers it is for");
    }
  }
  out.window.assign(static_cast<size_t>(out.layers), window);
  if (family->window == WindowRule::kAllButEveryNth) RETURN_IF_ERROR(SetGlobalLayers(file, reader, *family, &out));
  RETURN_IF_ERROR(ParseScales(reader, *family, &out));
  out.tie_embeddings = !HasTensor(file, "output.weight");
  out.qkv_bias = family->qkv_bias || HasTensor(file, "blk.0.attn_q.bias");
  out.out_bias = HasTensor(file, "blk.0.attn_output.bias");
  out.mlp_bias = HasTensor(file, "blk.0.ffn_gate.bias");
  out.qk_norm = family->qk_norm;
  ASSIGN_OR_RETURN(out.bos_id, TokenId(file, "tokenizer.ggml.bos_token_id"));
  for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"}) {
    ASSIGN_OR_RETURN(const auto id, TokenId(file, key));
    if (id && std::find(out.eos_ids.begin(), out.eos_ids.end(), *id) == out.eos_ids.end()) out.eos_ids.push_back(*id);
  }
  RETURN_IF_ERROR(CheckModelConfig(out, file.name()));
  return out;
}

}  // namespace quire

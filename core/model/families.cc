// The families table, the tensor names of both formats, and OpenCheckpoint, which brings config and weights together
// and checks one against the other.
#include "core/model/families.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "core/base/check.h"
#include "core/io/dummy_weights.h"
#include "core/io/file_mapping.h"
#include "core/io/gguf.h"
#include "core/io/gguf_weights.h"
#include "core/io/safetensors.h"
#include "core/model/family.h"

namespace quire {

namespace {

namespace fs = std::filesystem;

constexpr Family kFamilies[] = {
    {.name = "llama",
     .hf_architecture = "LlamaForCausalLM",
     .model_type = "llama",
     .gguf_architecture = "llama",
     .default_max_position = 2048,
     .default_kv_heads = 0,
     .default_head_dim = 0,
     .default_bos = 1,
     .default_eos = 2,
     .window = WindowRule::kNone,
     .qkv_bias = false,
     .takes_attention_bias = true,
     .takes_mlp_bias = true,
     .qk_norm = false,
     .gguf_interleaved = true},
    {.name = "mistral",
     .hf_architecture = "MistralForCausalLM",
     .model_type = "mistral",
     .gguf_architecture = "",
     .default_max_position = 131072,
     .default_kv_heads = 8,
     .default_head_dim = 0,
     .default_bos = 1,
     .default_eos = 2,
     .window = WindowRule::kEveryLayer,
     .qkv_bias = false,
     .takes_attention_bias = false,
     .takes_mlp_bias = false,
     .qk_norm = false,
     .gguf_interleaved = true},
    {.name = "qwen2",
     .hf_architecture = "Qwen2ForCausalLM",
     .model_type = "qwen2",
     .gguf_architecture = "qwen2",
     .default_max_position = 32768,
     .default_kv_heads = 32,
     .default_head_dim = 0,
     .default_bos = {},
     .default_eos = {},
     .window = WindowRule::kUpperLayers,
     .qkv_bias = true,
     .takes_attention_bias = false,
     .takes_mlp_bias = false,
     .qk_norm = false,
     .gguf_interleaved = false},
    {.name = "qwen3",
     .hf_architecture = "Qwen3ForCausalLM",
     .model_type = "qwen3",
     .gguf_architecture = "qwen3",
     .default_max_position = 32768,
     .default_kv_heads = 32,
     .default_head_dim = 128,
     .default_bos = {},
     .default_eos = {},
     .window = WindowRule::kUpperLayers,
     .qkv_bias = false,
     .takes_attention_bias = true,
     .takes_mlp_bias = false,
     .qk_norm = true,
     .gguf_interleaved = false},
    {.name = "gemma2",
     .hf_architecture = "Gemma2ForCausalLM",
     .model_type = "gemma2",
     .gguf_architecture = "gemma2",
     .default_max_position = 8192,
     .default_kv_heads = 4,
     .default_head_dim = 256,
     .default_bos = 2,
     .default_eos = 1,
     .window = WindowRule::kAllButEveryNth,
     .qkv_bias = false,
     .takes_attention_bias = true,
     .takes_mlp_bias = false,
     .qk_norm = false,
     .gguf_interleaved = false,
     .window_period = 2,
     .tied_by_default = true,
     .activation_key = "hidden_activation",
     .default_activation = "gelu_pytorch_tanh",
     .scaled_embedding = true,
     .post_norms = true,
     .norms_less_one = true,
     .default_query_scalar = 256,
     .takes_attention_softcap = true,
     .takes_final_softcap = true,
     .default_attention_softcap = 50,
     .default_final_softcap = 30,
     .gguf_wide_layers = 46},
    {.name = "gemma3",
     .hf_architecture = "Gemma3ForCausalLM",
     .model_type = "gemma3_text",
     .gguf_architecture = "gemma3",
     .default_max_position = 131072,
     .default_kv_heads = 4,
     .default_head_dim = 256,
     .default_bos = 2,
     .default_eos = 1,
     .window = WindowRule::kAllButEveryNth,
     .qkv_bias = false,
     .takes_attention_bias = true,
     .takes_mlp_bias = false,
     .qk_norm = true,
     .gguf_interleaved = false,
     .window_period = 6,
     .tied_by_default = true,
     .default_theta = 1e6,
     .window_theta = 10000.0,
     .activation_key = "hidden_activation",
     .default_activation = "gelu_pytorch_tanh",
     .scaled_embedding = true,
     .post_norms = true,
     .norms_less_one = true,
     .default_query_scalar = 256,
     .takes_final_softcap = true,
     .gguf_wide_layers = 62},
};

// Every parameter: its names (with the layer for '#'), its shape in terms of the config, and whether a model has it.
struct ParamRow {
  Param param;
  const char* hf;
  const char* gguf;
  bool per_layer;
  bool (*present)(const ModelConfig&);
  int64_t (*rows)(const ModelConfig&);  // nullptr: a vector
  int64_t (*cols)(const ModelConfig&);
};

using C = const ModelConfig&;
constexpr auto kAlways = [](C) { return true; };
constexpr auto kQkvBias = [](C c) { return c.qkv_bias; };
constexpr auto kMlpBias = [](C c) { return c.mlp_bias; };
constexpr auto kQkNorm = [](C c) { return c.qk_norm; };
constexpr auto kPostNorms = [](C c) { return c.post_norms; };
constexpr auto kHidden = [](C c) { return int64_t{c.hidden}; };
constexpr auto kFfn = [](C c) { return int64_t{c.ffn}; };
constexpr auto kVocab = [](C c) { return int64_t{c.vocab}; };
constexpr auto kHeadDim = [](C c) { return int64_t{c.head_dim}; };
constexpr auto kQWidth = [](C c) { return int64_t{c.q_heads} * c.head_dim; };
constexpr auto kKvWidth = [](C c) { return int64_t{c.kv_heads} * c.head_dim; };

const ParamRow kParams[] = {
    {Param::kEmbedding, "model.embed_tokens.weight", "token_embd.weight", false, kAlways, kVocab, kHidden},
    {Param::kFinalNorm, "model.norm.weight", "output_norm.weight", false, kAlways, nullptr, kHidden},
    {Param::kHead, "lm_head.weight", "output.weight", false, [](C c) { return !c.tie_embeddings; }, kVocab, kHidden},
    {Param::kAttnNorm, "model.layers.#.input_layernorm.weight", "blk.#.attn_norm.weight", true, kAlways, nullptr,
     kHidden},
    {Param::kQ, "model.layers.#.self_attn.q_proj.weight", "blk.#.attn_q.weight", true, kAlways, kQWidth, kHidden},
    {Param::kK, "model.layers.#.self_attn.k_proj.weight", "blk.#.attn_k.weight", true, kAlways, kKvWidth, kHidden},
    {Param::kV, "model.layers.#.self_attn.v_proj.weight", "blk.#.attn_v.weight", true, kAlways, kKvWidth, kHidden},
    {Param::kO, "model.layers.#.self_attn.o_proj.weight", "blk.#.attn_output.weight", true, kAlways, kHidden, kQWidth},
    {Param::kQBias, "model.layers.#.self_attn.q_proj.bias", "blk.#.attn_q.bias", true, kQkvBias, nullptr, kQWidth},
    {Param::kKBias, "model.layers.#.self_attn.k_proj.bias", "blk.#.attn_k.bias", true, kQkvBias, nullptr, kKvWidth},
    {Param::kVBias, "model.layers.#.self_attn.v_proj.bias", "blk.#.attn_v.bias", true, kQkvBias, nullptr, kKvWidth},
    {Param::kOBias, "model.layers.#.self_attn.o_proj.bias", "blk.#.attn_output.bias", true,
     [](C c) { return c.out_bias; }, nullptr, kHidden},
    {Param::kQNorm, "model.layers.#.self_attn.q_norm.weight", "blk.#.attn_q_norm.weight", true, kQkNorm, nullptr,
     kHeadDim},
    {Param::kKNorm, "model.layers.#.self_attn.k_norm.weight", "blk.#.attn_k_norm.weight", true, kQkNorm, nullptr,
     kHeadDim},
    {Param::kPostAttnNorm, "model.layers.#.post_attention_layernorm.weight", "blk.#.post_attention_norm.weight", true,
     kPostNorms, nullptr, kHidden},
    {Param::kMlpNorm, "model.layers.#.post_attention_layernorm.weight", "blk.#.ffn_norm.weight", true,
     [](C c) { return !c.post_norms; }, nullptr, kHidden},
    {Param::kMlpNorm, "model.layers.#.pre_feedforward_layernorm.weight", "blk.#.ffn_norm.weight", true, kPostNorms,
     nullptr, kHidden},
    {Param::kPostMlpNorm, "model.layers.#.post_feedforward_layernorm.weight", "blk.#.post_ffw_norm.weight", true,
     kPostNorms, nullptr, kHidden},
    {Param::kGate, "model.layers.#.mlp.gate_proj.weight", "blk.#.ffn_gate.weight", true, kAlways, kFfn, kHidden},
    {Param::kUp, "model.layers.#.mlp.up_proj.weight", "blk.#.ffn_up.weight", true, kAlways, kFfn, kHidden},
    {Param::kDown, "model.layers.#.mlp.down_proj.weight", "blk.#.ffn_down.weight", true, kAlways, kHidden, kFfn},
    {Param::kGateBias, "model.layers.#.mlp.gate_proj.bias", "blk.#.ffn_gate.bias", true, kMlpBias, nullptr, kFfn},
    {Param::kUpBias, "model.layers.#.mlp.up_proj.bias", "blk.#.ffn_up.bias", true, kMlpBias, nullptr, kFfn},
    {Param::kDownBias, "model.layers.#.mlp.down_proj.bias", "blk.#.ffn_down.bias", true, kMlpBias, nullptr, kHidden},
};

std::string WithLayer(std::string_view name, int layer) {
  std::string out;
  for (const char c : name) {
    if (c == '#') {
      out += std::to_string(layer);
    } else {
      out += c;
    }
  }
  return out;
}

// The tensors that a model of this config has, by the names of its format.
std::vector<TensorInfo> ExpectedTensors(const ModelConfig& config, bool gguf, StorageType type) {
  std::vector<TensorInfo> tensors;
  const auto add = [&](const ParamRow& row, int layer) {
    tensors.push_back({WithLayer(gguf ? row.gguf : row.hf, layer), type, row.rows == nullptr ? 1 : row.rows(config),
                       row.cols(config)});
  };
  for (const ParamRow& row : kParams) {
    if (!row.per_layer && row.present(config)) add(row, 0);
  }
  for (int layer = 0; layer < config.layers; ++layer) {
    for (const ParamRow& row : kParams) {
      if (row.per_layer && row.present(config)) add(row, layer);
    }
  }
  return tensors;
}

// Tensors that a file may have and no forward pass needs: rotary tables that the config implies, a copy of a tied head.
bool MayBeIgnored(std::string_view name, const ModelConfig& config) {
  return name.ends_with(".rotary_emb.inv_freq") || name.ends_with(".attn_rot_embd.weight") ||
         name == "rope_freqs.weight" || (config.tie_embeddings && name == "lm_head.weight");
}

std::string ShapeText(const TensorInfo& info) {
  const std::string cols = std::to_string(info.cols);
  return info.rows == 1 ? std::string("[").append(cols).append("]")
                        : std::string("[").append(std::to_string(info.rows)).append(", ").append(cols).append("]");
}

// Every tensor is there with its shape, and none that would change the results were it used.
Status CheckTensors(const ModelConfig& config, bool gguf, const WeightSource& weights, const std::string& path) {
  std::unordered_set<std::string> expected;
  for (TensorInfo& want : ExpectedTensors(config, gguf, StorageType::kF32)) {
    const TensorInfo* have = weights.Find(want.name);
    if (have == nullptr) {
      std::string hint;
      if (want.name == "lm_head.weight") hint = " (the config doesn't set tie_word_embeddings)";
      return NotFound(path + ": the tensor '" + want.name + "' of shape " + ShapeText(want) +
                      ", which the config asks for, is missing" + hint);
    }
    if (have->rows != want.rows || have->cols != want.cols) {
      return InvalidArgument(path + ": the tensor '" + want.name + "' has shape " + ShapeText(*have) +
                             ", but the config asks for " + ShapeText(want));
    }
    expected.insert(std::move(want.name));
  }
  for (const TensorInfo& have : weights.tensors()) {
    if (!expected.contains(have.name) && !MayBeIgnored(have.name, config)) {
      return InvalidArgument(path + ": the tensor '" + have.name + "' has no place in a model of family '" +
                             config.family + "' with this config; running without it would give wrong results");
    }
  }
  return OkStatus();
}

// The type of the layers' matrices decides what --dtype auto means where no key says so.
DType NaturalDType(const Checkpoint& checkpoint) {
  const TensorInfo* info = checkpoint.weights->Find(checkpoint.TensorName(Param::kQ, 0));
  if (info != nullptr && info->type == StorageType::kF32) return DType::kF32;
  if (info != nullptr && info->type == StorageType::kF16) return DType::kF16;
  return DType::kBF16;
}

StorageType DummyStorage(DType dtype) {
  return dtype == DType::kF32 ? StorageType::kF32 : dtype == DType::kF16 ? StorageType::kF16 : StorageType::kBF16;
}

// rope_freqs.weight: divisors of the inverse frequencies, as Llama 3.1's GGUF files carry their scaling.
Status ReadRopeFactors(const std::string& path, const WeightSource& weights, RopeConfig* rope) {
  constexpr std::string_view kName = "rope_freqs.weight";
  const TensorInfo* info = weights.Find(kName);
  if (info == nullptr) return OkStatus();
  if (info->rows != 1 || info->cols != rope->rotary_dim / 2) {
    return InvalidArgument(path + ": the tensor 'rope_freqs.weight' has shape " + ShapeText(*info) + ", but [" +
                           std::to_string(rope->rotary_dim / 2) + "] channel pairs are rotated");
  }
  rope->factors.resize(static_cast<size_t>(info->cols));
  RETURN_IF_ERROR(weights.Read(kName, {0, 1, 0, info->cols}, DType::kF32, rope->factors.data()));
  for (const float f : rope->factors) {
    if (!std::isfinite(f) || f <= 0) {
      return InvalidArgument(path + ": 'rope_freqs.weight' holds " + std::to_string(f) + "; divisors must be positive");
    }
  }
  return OkStatus();
}

Result<Checkpoint> OpenGguf(const std::string& path, bool dummy, uint64_t seed) {
  ASSIGN_OR_RETURN(GgufFile file, GgufFile::Open(path));
  Checkpoint checkpoint;
  checkpoint.gguf = true;
  ASSIGN_OR_RETURN(checkpoint.config, ConfigFromGguf(file));
  ASSIGN_OR_RETURN(checkpoint.weights, MakeGgufWeights(std::move(file)));
  RETURN_IF_ERROR(ReadRopeFactors(path, *checkpoint.weights, &checkpoint.config.rope));
  checkpoint.config.dtype = NaturalDType(checkpoint);
  if (dummy) {
    checkpoint.weights =
        MakeDummyWeights(ExpectedTensors(checkpoint.config, true, DummyStorage(checkpoint.config.dtype)), seed);
    return checkpoint;
  }
  RETURN_IF_ERROR(CheckTensors(checkpoint.config, true, *checkpoint.weights, path));
  return checkpoint;
}

Result<Checkpoint> OpenFolder(const fs::path& folder, bool dummy, uint64_t seed) {
  const std::string config_path = (folder / "config.json").string();
  const std::string generation_path = (folder / "generation_config.json").string();
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(config_path, size_t{16} << 20));
  std::string generation;
  std::error_code ignored;
  if (fs::exists(generation_path, ignored)) {
    ASSIGN_OR_RETURN(generation, ReadTextFile(generation_path, size_t{16} << 20));
  }
  ASSIGN_OR_RETURN(ParsedConfig parsed, ParseConfigJson(text, config_path, generation, generation_path));
  Checkpoint checkpoint;
  checkpoint.config = std::move(parsed.config);
  if (dummy) {
    checkpoint.weights =
        MakeDummyWeights(ExpectedTensors(checkpoint.config, false, DummyStorage(checkpoint.config.dtype)), seed);
    return checkpoint;
  }
  ASSIGN_OR_RETURN(checkpoint.weights, OpenSafetensors(folder.string()));
  RETURN_IF_ERROR(CheckTensors(checkpoint.config, false, *checkpoint.weights, folder.string()));
  if (!parsed.dtype_given) checkpoint.config.dtype = NaturalDType(checkpoint);
  return checkpoint;
}

}  // namespace

std::span<const Family> Families() { return kFamilies; }

namespace {
template <typename Field>
const Family* FindFamily(Field field, std::string_view name) {
  for (const Family& family : kFamilies) {
    if (!name.empty() && family.*field == name) return &family;
  }
  return nullptr;
}
}  // namespace

const Family* FindFamilyByArchitecture(std::string_view name) { return FindFamily(&Family::hf_architecture, name); }
const Family* FindFamilyByModelType(std::string_view name) { return FindFamily(&Family::model_type, name); }
const Family* FindFamilyByGguf(std::string_view name) { return FindFamily(&Family::gguf_architecture, name); }

std::string KnownArchitectures() {
  std::string text;
  for (const Family& family : kFamilies) {
    if (&family != kFamilies) text.append(&family == std::end(kFamilies) - 1 ? " and " : ", ");
    text.append(family.hf_architecture);
  }
  return text;
}

std::string Checkpoint::TensorName(Param param, int layer) const {
  for (const ParamRow& row : kParams) {
    if (row.param == param && row.present(config)) return WithLayer(gguf ? row.gguf : row.hf, layer);
  }
  return "";
}

Result<Checkpoint> OpenCheckpoint(const std::string& path, std::string_view load_format, uint64_t dummy_seed) {
  if (load_format != "auto" && load_format != "dummy") {
    return InvalidArgument("unknown load format '" + std::string(load_format) + "'; use auto or dummy");
  }
  const bool dummy = load_format == "dummy";
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) return NotFound("there is no model at " + path);
  fs::path clean = fs::path(path).lexically_normal();
  if (!clean.has_filename()) clean = clean.parent_path();  // a trailing slash
  Result<Checkpoint> checkpoint =
      fs::is_directory(status) ? OpenFolder(clean, dummy, dummy_seed)
      : clean.filename() == "config.json"
          ? OpenFolder(clean.has_parent_path() ? clean.parent_path() : ".", dummy, dummy_seed)
          : OpenGguf(path, dummy, dummy_seed);
  if (!checkpoint.ok()) return checkpoint;
  if (clean.filename() == "config.json" && clean.has_parent_path()) clean = clean.parent_path();
  checkpoint->config.name = clean.filename().string();
  return checkpoint;
}

}  // namespace quire

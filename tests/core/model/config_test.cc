// config.json and GGUF metadata to ModelConfig, rope frequencies against transformers' own, and OpenCheckpoint's
// checks.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "core/io/safetensors.h"
#include "core/model/families.h"
#include "core/model/model_config.h"
#include "tests/core/io/file_builders.h"

namespace quire {
namespace {

namespace fs = std::filesystem;

const std::string kData = std::string(QUIRE_SOURCE_DIR) + "/tests/data/";
const char* const kGoldens[] = {"llama",      "llama-bias",        "llama-linear", "llama-dynamic",
                                "llama-yarn", "llama-yarn-mscale", "llama-llama3", "mistral",
                                "qwen2",      "qwen2-window",      "qwen3",        "smollm2",
                                "gemma2",     "gemma3",            "gemma3-new"};

// A small valid config with `extra` ("\"key\": value, …") put in; a key of extra replaces the base's.
std::string Config(const std::string& extra = "", const std::string& architecture = "LlamaForCausalLM") {
  std::string text = "{\"architectures\": [\"" + architecture + "\"]";
  const std::pair<const char*, const char*> base[] = {{"hidden_size", "64"},
                                                      {"intermediate_size", "96"},
                                                      {"num_hidden_layers", "4"},
                                                      {"num_attention_heads", "4"},
                                                      {"num_key_value_heads", "2"},
                                                      {"vocab_size", "100"},
                                                      {"max_position_embeddings", "128"}};
  for (const auto& [key, value] : base) {
    const std::string quoted = std::string("\"").append(key).append("\"");
    if (extra.find(quoted) == std::string::npos) text.append(", ").append(quoted).append(": ").append(value);
  }
  if (!extra.empty()) text.append(", ").append(extra);
  return text.append("}");
}

ModelConfig Parse(const std::string& extra = "", const std::string& architecture = "LlamaForCausalLM",
                  const std::string& generation = "") {
  auto config = ParseModelConfig(Config(extra, architecture), generation);
  EXPECT_TRUE(config.ok()) << config.status().ToString();
  return config.ok() ? *config : ModelConfig{};
}

std::string ErrorOf(const std::string& text, const std::string& generation = "") {
  auto config = ParseModelConfig(text, generation);
  EXPECT_FALSE(config.ok()) << text;
  return config.ok() ? "" : config.status().ToString();
}

TEST(ModelConfig, MissingKeysTakeTransformersDefaults) {
  const ModelConfig llama = Parse();
  EXPECT_EQ(llama.family, "llama");
  EXPECT_EQ(llama.head_dim, 16);
  EXPECT_FLOAT_EQ(llama.norm_eps, 1e-6f);
  EXPECT_EQ(llama.rope.theta, 10000.0);
  EXPECT_EQ(llama.rope.rotary_dim, 16);
  EXPECT_FALSE(llama.rope.interleaved);
  EXPECT_FALSE(llama.tie_embeddings);
  EXPECT_EQ(llama.bos_id, 1);
  EXPECT_EQ(llama.eos_ids, std::vector<int32_t>{2});
  EXPECT_EQ(llama.window, std::vector<int>(4, 0));
  EXPECT_FLOAT_EQ(llama.attention_scale(), 0.25f);
  EXPECT_EQ(Parse("\"num_key_value_heads\": null").kv_heads, 4);
  EXPECT_EQ(Parse("", "MistralForCausalLM").window, std::vector<int>(4, 4096));
  const ModelConfig qwen2 = Parse("", "Qwen2ForCausalLM");
  EXPECT_TRUE(qwen2.qkv_bias);
  EXPECT_FALSE(qwen2.out_bias);
  EXPECT_FALSE(qwen2.bos_id.has_value());
  EXPECT_TRUE(qwen2.eos_ids.empty());
  const ModelConfig qwen3 = Parse("", "Qwen3ForCausalLM");
  EXPECT_EQ(qwen3.head_dim, 128);
  EXPECT_TRUE(qwen3.qk_norm);
  EXPECT_FALSE(qwen3.qkv_bias);
}

TEST(ModelConfig, BiasesAreThoseOfTheFamily) {
  const ModelConfig llama = Parse("\"attention_bias\": true, \"mlp_bias\": true");
  EXPECT_TRUE(llama.qkv_bias && llama.out_bias && llama.mlp_bias);
  EXPECT_TRUE(Parse("\"attention_bias\": true", "Qwen3ForCausalLM").out_bias);
  EXPECT_HAS(ErrorOf(Config("\"attention_bias\": true", "MistralForCausalLM")), "attention_bias");
  EXPECT_HAS(ErrorOf(Config("\"mlp_bias\": true", "Qwen2ForCausalLM")), "mlp_bias");
}

TEST(ModelConfig, WindowsFollowTheFamilysRule) {
  EXPECT_EQ(Parse("\"sliding_window\": 16", "MistralForCausalLM").window, std::vector<int>(4, 16));
  EXPECT_EQ(Parse("\"sliding_window\": null", "MistralForCausalLM").window, std::vector<int>(4, 0));
  EXPECT_EQ(Parse("\"sliding_window\": 16", "Qwen2ForCausalLM").window, std::vector<int>(4, 0));
  const std::string on = "\"use_sliding_window\": true, \"sliding_window\": 16";
  EXPECT_EQ(Parse(on + ", \"max_window_layers\": 3", "Qwen2ForCausalLM").window, (std::vector<int>{0, 0, 0, 16}));
  EXPECT_EQ(Parse(on, "Qwen3ForCausalLM").window, std::vector<int>(4, 0));  // max_window_layers is 28
  const std::string types =
      ", \"layer_types\": [\"sliding_attention\", \"full_attention\", \"full_attention\", \"sliding_attention\"]";
  EXPECT_EQ(Parse(on + types, "Qwen3ForCausalLM").window, (std::vector<int>{16, 0, 0, 16}));
  EXPECT_HAS(ErrorOf(Config(types.substr(2), "Qwen3ForCausalLM")), "no sliding window");
  EXPECT_HAS(ErrorOf(Config("\"layer_types\": [\"full_attention\"]", "Qwen3ForCausalLM")), "layer_types");
  EXPECT_HAS(
      ErrorOf(Config("\"layer_types\": [\"full_attention\",\"full_attention\",\"full_attention\",\"linear_attention\"]",
                     "Qwen3ForCausalLM")),
      "linear_attention");
  EXPECT_HAS(ErrorOf(Config("\"sliding_window\": 16")), "sliding_window");
}

TEST(ModelConfig, GemmasScalesCapsAndPatternsComeFromTheirKeysOrTheFamily) {
  const ModelConfig two = Parse("", "Gemma2ForCausalLM");
  EXPECT_EQ(two.family, "gemma2");
  EXPECT_EQ(two.head_dim, 256);
  EXPECT_EQ(two.window, (std::vector<int>{4096, 0, 4096, 0}));
  EXPECT_EQ(two.activation, Activation::kGeluTanh);
  EXPECT_TRUE(two.tie_embeddings && two.post_norms && !two.qk_norm && !two.window_rope);
  EXPECT_EQ(two.norm_offset, 1.0f);
  EXPECT_EQ(two.embedding_scale, 8.0f);
  EXPECT_EQ(two.attention_softcap, 50.0f);
  EXPECT_EQ(two.final_softcap, 30.0f);
  EXPECT_EQ(two.attention_scale(), 1.0f / 16);
  EXPECT_EQ(two.bos_id, 2);
  EXPECT_EQ(two.eos_ids, std::vector<int32_t>{1});
  const ModelConfig other = Parse(
      "\"query_pre_attn_scalar\": 144, \"attn_logit_softcapping\": null, \"final_logit_softcapping\": 5.5, "
      "\"sliding_window\": null, \"tie_word_embeddings\": false, \"hidden_activation\": \"silu\"",
      "Gemma2ForCausalLM");
  EXPECT_EQ(other.attention_scale(), 1.0f / 12);
  EXPECT_EQ(other.attention_softcap, 0.0f);
  EXPECT_EQ(other.final_softcap, 5.5f);
  EXPECT_EQ(other.window, std::vector<int>(4, 0));
  EXPECT_EQ(other.activation, Activation::kSilu);
  EXPECT_FALSE(other.tie_embeddings);

  const ModelConfig three = Parse("\"num_hidden_layers\": 7", "Gemma3ForCausalLM");
  EXPECT_EQ(three.window, (std::vector<int>{4096, 4096, 4096, 4096, 4096, 0, 4096}));
  EXPECT_TRUE(three.qk_norm && three.window_rope);
  EXPECT_EQ(three.rope.theta, 1e6);
  EXPECT_EQ(three.window_rope->theta, 1e4);
  EXPECT_EQ(three.attention_softcap, 0.0f);
  EXPECT_EQ(three.final_softcap, 0.0f);
  const ModelConfig scaled = Parse(
      "\"rope_scaling\": {\"rope_type\": \"linear\", \"factor\": 8.0}, \"rope_local_base_freq\": 5000, "
      "\"sliding_window_pattern\": 2, \"sliding_window\": 12",
      "Gemma3ForCausalLM");
  EXPECT_EQ(scaled.rope.scaling, RopeScaling::kLinear);
  EXPECT_EQ(scaled.window_rope->scaling, RopeScaling::kNone);
  EXPECT_EQ(scaled.window_rope->theta, 5000);
  EXPECT_EQ(scaled.window, (std::vector<int>{12, 0, 12, 0}));

  const auto error = [](const std::string& extra, const char* architecture) { return ErrorOf(Config(extra, architecture)); };
  EXPECT_HAS(error("\"attn_logit_softcapping\": 50.0", "Gemma3ForCausalLM"), "attn_logit_softcapping");
  EXPECT_HAS(error("\"final_logit_softcapping\": -1", "Gemma2ForCausalLM"), "final_logit_softcapping");
  EXPECT_HAS(error("\"final_logit_softcapping\": 1e9", "Gemma2ForCausalLM"), "final_logit_softcapping");
  EXPECT_HAS(error("\"query_pre_attn_scalar\": 0", "Gemma2ForCausalLM"), "query_pre_attn_scalar");
  EXPECT_HAS(error("\"use_bidirectional_attention\": true", "Gemma3ForCausalLM"), "use_bidirectional_attention");
  EXPECT_HAS(error("\"sliding_window\": null", "Gemma3ForCausalLM"), "sliding_window");
  EXPECT_HAS(error("\"sliding_window_pattern\": 0", "Gemma3ForCausalLM"), "sliding_window_pattern");
  EXPECT_HAS(error("\"rope_parameters\": {\"full_attention\": {}, \"other_attention\": {}}", "Gemma3ForCausalLM"),
             "other_attention");
}

TEST(ModelConfig, OldAndNewKeyNamesMeanTheSame) {
  const ModelConfig old_names = Parse(
      "\"rope_theta\": 500000.0, \"torch_dtype\": \"float16\", \"rope_scaling\": {\"type\": \"linear\", \"factor\": "
      "2}");
  const ModelConfig new_names = Parse(
      "\"dtype\": \"float16\", \"rope_parameters\": {\"rope_type\": \"linear\", \"rope_theta\": 500000.0, \"factor\": "
      "2.0}");
  for (const ModelConfig& config : {old_names, new_names}) {
    EXPECT_EQ(config.rope.theta, 500000.0);
    EXPECT_EQ(config.rope.scaling, RopeScaling::kLinear);
    EXPECT_EQ(config.rope.factor, 2.0);
    EXPECT_EQ(config.dtype, DType::kF16);
  }
  EXPECT_HAS(ErrorOf(Config("\"rope_parameters\": {\"rope_type\": \"default\"}, "
                            "\"rope_scaling\": {\"type\": \"linear\", \"factor\": 2}")),
             "differ");
}

TEST(ModelConfig, EndOfSequenceIsANumberOrAListAndGenerationConfigWins) {
  EXPECT_EQ(Parse("\"eos_token_id\": 7").eos_ids, std::vector<int32_t>{7});
  EXPECT_EQ(Parse("\"eos_token_id\": [7, 9]").eos_ids, (std::vector<int32_t>{7, 9}));
  EXPECT_TRUE(Parse("\"eos_token_id\": null").eos_ids.empty());
  EXPECT_FALSE(Parse("\"bos_token_id\": null").bos_id.has_value());
  const ModelConfig config =
      Parse("\"eos_token_id\": 7", "LlamaForCausalLM",
            "{\"eos_token_id\": [3, 4], \"temperature\": 0.6, \"top_p\": 0.9, \"top_k\": 20, \"do_sample\": true}");
  EXPECT_EQ(config.eos_ids, (std::vector<int32_t>{3, 4}));
  EXPECT_FLOAT_EQ(config.default_temperature.value(), 0.6f);
  EXPECT_FLOAT_EQ(config.default_top_p.value(), 0.9f);
  EXPECT_EQ(config.default_top_k.value(), 20);
  EXPECT_FALSE(
      Parse("", "LlamaForCausalLM", "{\"temperature\": 0.6, \"do_sample\": false}").default_temperature.has_value());
  EXPECT_HAS(ErrorOf(Config("\"eos_token_id\": [7, \"x\"]")), "eos_token_id");
  EXPECT_HAS(ErrorOf(Config("\"eos_token_id\": -5")), "eos_token_id");
  EXPECT_HAS(ErrorOf(Config(), "{\"top_p\": 3}"), "top_p");
  EXPECT_HAS(ErrorOf(Config(), "[1"), "generation_config.json");
}

TEST(ModelConfig, WhatIsNotKnownIsRefusedByName) {
  EXPECT_HAS(ErrorOf(Config("", "GemmaForCausalLM")), "GemmaForCausalLM");
  EXPECT_HAS(ErrorOf("{\"model_type\": \"phi3\"}"), "phi3");
  EXPECT_HAS(ErrorOf("{}"), "architectures");
  EXPECT_HAS(ErrorOf(Config("\"model_type\": \"qwen2\"")), "contradicts");
  EXPECT_HAS(ErrorOf(Config("\"quantization_config\": {\"bits\": 4}")), "quantization_config");
  EXPECT_HAS(ErrorOf(Config("\"num_local_experts\": 8")), "num_local_experts");
  EXPECT_HAS(ErrorOf(Config("\"partial_rotary_factor\": 0.5")), "partial_rotary_factor");
  EXPECT_HAS(ErrorOf(Config("\"final_logit_softcapping\": 30.0")), "final_logit_softcapping");
  EXPECT_HAS(ErrorOf(Config("\"hidden_act\": \"relu\"")), "relu");
  EXPECT_HAS(ErrorOf(Config("\"torch_dtype\": \"int4\"")), "int4");
  EXPECT_HAS(ErrorOf(Config("\"rope_scaling\": {\"rope_type\": \"longrope\", \"factor\": 2}")), "longrope");
  EXPECT_HAS(ErrorOf(Config("\"rope_scaling\": {\"rope_type\": \"default\", \"mrope_section\": [1, 2]}")),
             "mrope_section");
  EXPECT_HAS(ErrorOf(Config("\"rope_parameters\": {\"full_attention\": {\"rope_type\": \"default\"}}")),
             "full_attention");
  EXPECT_EQ(Parse("\"quantization_config\": null, \"num_experts\": 0, \"partial_rotary_factor\": 1.0, "
                  "\"rope_interleaved\": false")
                .layers,
            4);
}

TEST(ModelConfig, RopeScalingsNeedTheirNumbers) {
  EXPECT_HAS(ErrorOf(Config("\"rope_scaling\": {\"type\": \"linear\"}")), "factor");
  EXPECT_HAS(ErrorOf(Config("\"rope_scaling\": {\"type\": \"linear\", \"factor\": 0}")), "factor");
  EXPECT_HAS(ErrorOf(Config("\"rope_scaling\": {\"type\": \"linear\", \"factor\": \"2\"}")), "factor");
  EXPECT_HAS(ErrorOf(Config("\"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 0.5}")), "factor");
  EXPECT_HAS(ErrorOf(Config("\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1}")),
             "high_freq_factor");
  EXPECT_HAS(ErrorOf(Config("\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 4, "
                            "\"high_freq_factor\": 4}")),
             "high_freq_factor");
  EXPECT_HAS(
      ErrorOf(Config(
          "\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4, \"original_max_position_embeddings\": 0}")),
      "original_max_position_embeddings");
  EXPECT_HAS(ErrorOf(Config("\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4, \"attention_factor\": -1}")),
             "attention_factor");
  EXPECT_HAS(ErrorOf(Config("\"rope_theta\": 0")), "rope_theta");
  EXPECT_HAS(ErrorOf(Config("\"rope_theta\": 1e999")), "JSON");
  const RopeConfig yarn =
      Parse("\"rope_scaling\": {\"rope_type\": \"yarn\", \"original_max_position_embeddings\": 32}").rope;
  EXPECT_EQ(yarn.factor, 4.0);  // 128 / 32
  EXPECT_NEAR(yarn.attention_factor, 0.1 * std::log(4.0) + 1.0, 1e-12);
}

TEST(ModelConfig, AbsurdNumbersAreRefused) {
  for (const char* key : {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                          "num_key_value_heads", "vocab_size", "max_position_embeddings"}) {
    for (const char* value :
         {"0", "-1", "1.5", "\"64\"", "99999999999", "18446744073709551615", "1e30", "[]", "true"}) {
      ErrorOf(Config(std::string("\"").append(key).append("\": ").append(value)));
    }
  }
  for (const char* key :
       {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"}) {
    EXPECT_HAS(ErrorOf(Config(std::string("\"").append(key).append("\": null"))), key);
  }
  EXPECT_HAS(ErrorOf(Config("\"num_key_value_heads\": 3")), "dealt out");
  EXPECT_HAS(ErrorOf(Config("\"hidden_size\": 66")), "head_dim");
  EXPECT_HAS(ErrorOf(Config("\"head_dim\": 15")), "even");
  EXPECT_HAS(ErrorOf(Config("\"rms_norm_eps\": -1")), "epsilon");
  EXPECT_HAS(ErrorOf(Config("\"head_dim\": 16, \"head_dim\": 32")), "twice");
  EXPECT_HAS(ErrorOf("[]"), "object");
  EXPECT_HAS(ErrorOf("{\"architectures\""), "JSON");
  EXPECT_HAS(ErrorOf(std::string(100, '[') + std::string(100, ']')), "nested");
  EXPECT_HAS(ErrorOf("{\"model_type\": \"\xff\"}"), "JSON");
}

// Inverse frequencies and attention scaling that transformers used, beside every golden checkpoint.
TEST(RopeFrequencies, EqualThoseOfTransformers) {
  for (const char* name : kGoldens) {
    SCOPED_TRACE(name);
    auto checkpoint = OpenCheckpoint(kData + "golden/" + name);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().ToString();
    auto golden = OpenSafetensors(kData + "golden/" + name + std::string("/golden.safetensors"));
    ASSERT_TRUE(golden.ok()) << golden.status().ToString();
    const TensorInfo* info = (*golden)->Find("inv_freq");
    ASSERT_NE(info, nullptr);
    std::vector<float> expected(static_cast<size_t>(info->cols));
    ASSERT_TRUE((*golden)->Read("inv_freq", {0, 1, 0, info->cols}, DType::kF32, expected.data()).ok());
    float scaling = 0;
    ASSERT_TRUE((*golden)->Read("attention_scaling", {0, 1, 0, 1}, DType::kF32, &scaling).ok());
    const int64_t length = (*golden)->Find("input_ids")->cols;
    const RopeConfig& rope = checkpoint->config.rope;
    const std::vector<float> got = RopeInverseFrequencies(rope, length);
    ASSERT_EQ(got.size(), expected.size());
    for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], 1e-6f * expected[i]) << i;
    EXPECT_NEAR(rope.attention_factor, scaling, 1e-6);
  }
}

TEST(RopeFrequencies, DynamicScalingBeginsBehindTheTrainedLength) {
  RopeConfig rope;
  rope.rotary_dim = 16;
  const std::vector<float> plain = RopeInverseFrequencies(rope, 1);
  rope.scaling = RopeScaling::kDynamic;
  rope.factor = 4;
  rope.original_max_position = 32;
  EXPECT_EQ(RopeInverseFrequencies(rope, 32), plain);
  const std::vector<float> longer = RopeInverseFrequencies(rope, 33), longest = RopeInverseFrequencies(rope, 128);
  EXPECT_LT(longer.back(), plain.back());
  EXPECT_LT(longest.back(), longer.back());
  EXPECT_EQ(longest.front(), 1.0f);
}

TEST(RopeFrequencies, FactorsDivide) {
  RopeConfig rope;
  rope.rotary_dim = 4;
  const std::vector<float> plain = RopeInverseFrequencies(rope, 1);
  rope.factors = {1.0f, 8.0f};
  EXPECT_EQ(RopeInverseFrequencies(rope, 1), (std::vector<float>{plain[0], plain[1] / 8.0f}));
}

TEST(OpenCheckpoint, OpensEveryGoldenAndCommittedModel) {
  for (const char* name : kGoldens) {
    auto checkpoint = OpenCheckpoint(kData + "golden/" + name);
    ASSERT_TRUE(checkpoint.ok()) << name << ": " << checkpoint.status().ToString();
    EXPECT_EQ(checkpoint->config.name, name);
    EXPECT_EQ(checkpoint->config.vocab, 160);
  }
  auto stories = OpenCheckpoint(kData + "stories260K/");
  ASSERT_TRUE(stories.ok()) << stories.status().ToString();
  EXPECT_EQ(stories->config.name, "stories260K");
  EXPECT_EQ(stories->config.dtype, DType::kF32);
  EXPECT_EQ(stories->TensorName(Param::kHead, 0), "");
  EXPECT_EQ(stories->TensorName(Param::kQ, 3), "model.layers.3.self_attn.q_proj.weight");
  EXPECT_EQ(stories->TensorName(Param::kQBias, 3), "");
  auto retriever = OpenCheckpoint(kData + "retriever-2m");
  ASSERT_TRUE(retriever.ok()) << retriever.status().ToString();
  EXPECT_EQ(retriever->config.dtype, DType::kBF16);
  EXPECT_EQ(retriever->config.eos_ids, std::vector<int32_t>{257});
}

TEST(OpenCheckpoint, NamesTheTensorThatDoesNotFit) {
  TestFolder folder;
  const fs::path golden = kData + "golden/llama";
  const std::string config = ReadAll(golden / "config.json");
  fs::copy_file(golden / "model.safetensors", folder.path() / "model.safetensors");
  const auto error_with = [&](const std::string& from, const std::string& to) {
    std::string text = config;
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    WriteAll(folder.path() / "config.json", text.replace(at, from.size(), to));
    auto checkpoint = OpenCheckpoint(folder.path().string());
    EXPECT_FALSE(checkpoint.ok()) << to;
    return checkpoint.ok() ? "" : checkpoint.status().ToString();
  };
  EXPECT_HAS(error_with("\"vocab_size\": 160", "\"vocab_size\": 161"),
             "'model.embed_tokens.weight' has shape [160, 48]");
  EXPECT_HAS(error_with("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4"),
             "model.layers.3.input_layernorm.weight");
  // A layer too few, a bias or a norm that nobody would use is as wrong as one that is missing.
  EXPECT_HAS(error_with("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 2"), "has no place");
  EXPECT_HAS(error_with("\"vocab_size\": 160", "\"vocab_size\": 160, \"attention_bias\": true"),
             "q_proj.bias' of shape [48]");
  EXPECT_HAS(error_with("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 4"), "k_proj.weight");
  WriteAll(folder.path() / "config.json", config);
  EXPECT_TRUE(OpenCheckpoint(folder.path().string()).ok());
  fs::copy_file(kData + "golden/llama-bias/model.safetensors", folder.path() / "model.safetensors",
                fs::copy_options::overwrite_existing);
  EXPECT_FALSE(OpenCheckpoint(folder.path().string()).ok());
}

TEST(OpenCheckpoint, MissingFilesAndUnknownFormatsAreStatuses) {
  TestFolder folder;
  EXPECT_EQ(OpenCheckpoint(folder.path().string() + "/nothing").status().code(), StatusCode::kNotFound);
  EXPECT_HAS(OpenCheckpoint(folder.path().string()).status().ToString(), "config.json");
  WriteAll(folder.path() / "config.json", Config());
  EXPECT_HAS(OpenCheckpoint(folder.path().string()).status().ToString(), "model.safetensors");
  WriteAll(folder.path() / "model.gguf", "no GGUF file at all");
  EXPECT_HAS(OpenCheckpoint(folder.path().string() + "/model.gguf").status().ToString(), "GGUF");
  EXPECT_HAS(OpenCheckpoint(folder.path().string(), "npz").status().ToString(), "npz");
}

TEST(OpenCheckpoint, DummyNeedsOnlyAConfig) {
  TestFolder folder;
  WriteAll(folder.path() / "config.json", Config("\"attention_bias\": true, \"torch_dtype\": \"bfloat16\""));
  auto a = OpenCheckpoint(folder.path().string(), "dummy", 1);
  auto b = OpenCheckpoint((folder.path() / "config.json").string(), "dummy", 1);
  auto c = OpenCheckpoint(folder.path().string(), "dummy", 2);
  ASSERT_TRUE(a.ok() && b.ok() && c.ok()) << a.status().ToString() << b.status().ToString();
  std::vector<float> va(64 * 64), vb(64 * 64), vc(64 * 64), norm(64);
  const std::string q = a->TensorName(Param::kQ, 1);
  ASSERT_TRUE(a->weights->Read(q, {0, 64, 0, 64}, DType::kF32, va.data()).ok());
  ASSERT_TRUE(b->weights->Read(q, {0, 64, 0, 64}, DType::kF32, vb.data()).ok());
  ASSERT_TRUE(c->weights->Read(q, {0, 64, 0, 64}, DType::kF32, vc.data()).ok());
  EXPECT_EQ(va, vb);
  EXPECT_NE(va, vc);
  ASSERT_TRUE(a->weights->Read(a->TensorName(Param::kAttnNorm, 1), {0, 1, 0, 64}, DType::kF32, norm.data()).ok());
  EXPECT_EQ(norm, std::vector<float>(64, 1.0f));
  EXPECT_NE(a->weights->Find(a->TensorName(Param::kOBias, 3)), nullptr);
}

// GGUF files that the Python package wrote from golden checkpoints say the same as their config.json.
TEST(OpenCheckpoint, GgufSaysTheSameAsConfigJson) {
  for (const char* name : {"llama-llama3", "qwen2"}) {
    SCOPED_TRACE(name);
    auto hf = OpenCheckpoint(kData + "golden/" + name);
    auto gguf = OpenCheckpoint(kData + "gguf/" + name + std::string(".gguf"));
    ASSERT_TRUE(hf.ok()) << hf.status().ToString();
    ASSERT_TRUE(gguf.ok()) << gguf.status().ToString();
    const ModelConfig &a = hf->config, &b = gguf->config;
    EXPECT_TRUE(gguf->gguf);
    EXPECT_EQ(a.family, b.family);
    EXPECT_EQ(b.name, std::string(name) + ".gguf");
    EXPECT_EQ(a.dtype, b.dtype);
    EXPECT_EQ(std::vector<int>({a.layers, a.hidden, a.ffn, a.q_heads, a.kv_heads, a.head_dim, a.vocab}),
              std::vector<int>({b.layers, b.hidden, b.ffn, b.q_heads, b.kv_heads, b.head_dim, b.vocab}));
    EXPECT_EQ(a.max_position, b.max_position);
    EXPECT_EQ(a.norm_eps, b.norm_eps);
    EXPECT_EQ(a.window, b.window);
    EXPECT_EQ(a.tie_embeddings, b.tie_embeddings);
    EXPECT_EQ(a.qkv_bias, b.qkv_bias);
    EXPECT_EQ(a.out_bias, b.out_bias);
    EXPECT_EQ(a.bos_id, b.bos_id);
    EXPECT_EQ(b.eos_ids, std::vector<int32_t>{2});
    EXPECT_EQ(b.rope.interleaved, std::string(name) == "llama-llama3");
    const std::vector<float> fa = RopeInverseFrequencies(a.rope, 1), fb = RopeInverseFrequencies(b.rope, 1);
    ASSERT_EQ(fa.size(), fb.size());
    for (size_t i = 0; i < fa.size(); ++i) EXPECT_NEAR(fa[i], fb[i], 1e-6f * fa[i]);
    // q of the file in GGUF: row (pair, half) of each head where Hugging Face has (half, pair); v as it is.
    for (const Param param : {Param::kQ, Param::kV}) {
      const TensorInfo* info = hf->weights->Find(hf->TensorName(param, 1));
      std::vector<float> wa(static_cast<size_t>(info->rows * info->cols)), wb(wa.size());
      ASSERT_TRUE(hf->weights->Read(info->name, {0, info->rows, 0, info->cols}, DType::kF32, wa.data()).ok());
      ASSERT_TRUE(
          gguf->weights->Read(gguf->TensorName(param, 1), {0, info->rows, 0, info->cols}, DType::kF32, wb.data()).ok());
      const bool permuted = b.rope.interleaved && param == Param::kQ;
      for (int64_t r = 0; r < info->rows; ++r) {
        const int64_t d = a.head_dim, head = r / d, half = r % d / (d / 2), pair = r % (d / 2);
        const int64_t there = permuted ? head * d + pair * 2 + half : r;
        for (int64_t c = 0; c < info->cols; ++c) {
          ASSERT_EQ(wa[static_cast<size_t>(r * info->cols + c)], wb[static_cast<size_t>(there * info->cols + c)]);
        }
      }
    }
  }
}

std::string GgufError(const GgufBuilder& builder) {
  TestFolder folder;
  WriteAll(folder.path() / "m.gguf", builder.Bytes(1024));
  auto checkpoint = OpenCheckpoint((folder.path() / "m.gguf").string());
  EXPECT_FALSE(checkpoint.ok());
  return checkpoint.ok() ? "" : checkpoint.status().ToString();
}

GgufBuilder SmallGguf() {
  GgufBuilder b;
  b.String("general.architecture", "llama").U32("llama.block_count", 1).U32("llama.embedding_length", 8);
  b.U32("llama.feed_forward_length", 8)
      .U32("llama.context_length", 32)
      .F32("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  return b;
}

TEST(OpenCheckpoint, GgufMetadataThatCannotRunAreRefusedByName) {
  EXPECT_HAS(GgufError(GgufBuilder()), "general.architecture");
  EXPECT_HAS(GgufError(GgufBuilder().String("general.architecture", "gemma")), "'gemma' is not");
  EXPECT_HAS(GgufError(GgufBuilder().U32("general.architecture", 3)), "must be a string");
  EXPECT_HAS(GgufError(GgufBuilder().String("general.architecture", "qwen3")), "qwen3.block_count");
  EXPECT_HAS(GgufError(SmallGguf()), "heads make no model");
  EXPECT_HAS(GgufError(SmallGguf().U32("llama.attention.head_count", 2)), "token_embd.weight");
  EXPECT_HAS(GgufError(SmallGguf().U32("llama.attention.head_count", 3)), "divided");
  EXPECT_HAS(GgufError(SmallGguf().U32("llama.expert_count", 8)), "llama.expert_count");
  GgufBuilder whole = SmallGguf().U32("llama.attention.head_count", 2).Tensor("token_embd.weight", {8, 16}, 0, 0);
  EXPECT_HAS(GgufError(whole), "output_norm.weight");
  EXPECT_HAS(GgufError(GgufBuilder(whole).U32("llama.rope.dimension_count", 2)), "rope.dimension_count");
  EXPECT_HAS(GgufError(GgufBuilder(whole).String("llama.rope.scaling.type", "longrope")), "longrope");
  EXPECT_HAS(GgufError(GgufBuilder(whole).U32("llama.attention.value_length", 2)), "differ");
  EXPECT_HAS(GgufError(GgufBuilder(whole).F32("llama.rope.freq_base", -1.0f)), "rope_theta");
  EXPECT_HAS(GgufError(GgufBuilder(whole).Tensor("rope_freqs.weight", {3}, 0, 512)), "rope_freqs.weight");
  EXPECT_HAS(GgufError(GgufBuilder(whole).Tensor("rope_freqs.weight", {2}, 0, 512)), "must be positive");
}

TEST(SmolLM2Checkpoint, SmolLm2GgufIsUnderstood) {
  const char* cache = std::getenv("QUIRE_CACHE");
  const char* home = std::getenv("HOME");
  const std::string folder =
      cache != nullptr ? cache : std::string(home == nullptr ? "." : home).append("/.cache/quire");
  const std::string path = folder + "/models/SmolLM2-135M-Instruct.gguf";
  if (!fs::exists(path)) GTEST_SKIP() << "SmolLM2-135M-Instruct.gguf is not in the cache";
  auto checkpoint = OpenCheckpoint(path);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().ToString();
  const ModelConfig& config = checkpoint->config;
  EXPECT_EQ(
      std::vector<int>({config.layers, config.hidden, config.q_heads, config.kv_heads, config.head_dim, config.vocab}),
      std::vector<int>({30, 576, 9, 3, 64, 49152}));
  EXPECT_EQ(config.max_position, 8192);
  EXPECT_TRUE(config.tie_embeddings);
  EXPECT_TRUE(config.rope.interleaved);
  EXPECT_EQ(config.rope.theta, 100000.0);
  EXPECT_EQ(config.dtype, DType::kBF16);
}

}  // namespace
}  // namespace quire

// The memory that a run takes, as the kernel counts it, against the prediction: in a process of its own, so that what
// other tests left in the heap doesn't hide anything.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "tests/core/engine/engine_fixture.h"
#include "tests/sanitizers/sanitized.h"

namespace quire {
namespace {

// Of the prediction; the code's own pages and the heap's small pieces have to fit in it.
constexpr double kBound = 0.05;

// Bytes behind a key of /proc/self/status.
double StatusBytes(const std::string& key) {
  std::ifstream file("/proc/self/status");
  for (std::string word; file >> word;) {
    double kib = 0;
    if (word == key && file >> kib) return kib * 1024;
  }
  return 0;
}

// 16 KiB of cache a token, so that 200 MB are filled within a second or two.
// 31 M parameters in matrices that are whole huge pages.
constexpr const char* kWholeHugePages = R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 1024,
  "intermediate_size": 3072, "num_hidden_layers": 2, "num_attention_heads": 16, "num_key_value_heads": 16,
  "vocab_size": 4096, "max_position_embeddings": 6400, "rms_norm_eps": 1e-05, "hidden_act": "silu", "bos_token_id": 1,
  "eos_token_id": 2, "tie_word_embeddings": true, "rope_theta": 10000.0, "torch_dtype": "bfloat16"})";

// 37 M parameters in many matrices of half a huge page to three.
constexpr const char* kSmallMatrices = R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576,
  "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 9, "num_key_value_heads": 9,
  "head_dim": 28, "vocab_size": 4096, "max_position_embeddings": 6400, "rms_norm_eps": 1e-05, "hidden_act": "silu",
  "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": true, "rope_theta": 10000.0, "torch_dtype": "bfloat16"})";

// Ends the process: 0 when the growth is as predicted.
[[noreturn]] void RunFullCache(const std::string& model, const std::string& dtype) {
  EngineOptions options;
  options.model = model;
  options.load_format = "dummy";
  options.load_tokenizer = false;
  options.dtype = dtype;
  options.kv_cache_dtype = "float32";
  options.threads = 2;
  options.max_num_seqs = 2;
  options.max_num_batched_tokens = 128;
  options.attention = {{}, {"quest", {{"token_budget", "256"}, {"dense_layers", "0"}}}};
  const double before = StatusBytes("VmRSS:");
  const auto predicted = PredictMemory(options);
  auto engine = Engine::Create(options);
  if (!predicted.ok() || !engine.ok()) {
    std::fprintf(stderr, "%s\n", engine.status().ToString().c_str());
    std::_Exit(2);
  }
  Status failed;
  const auto callback = [&](const TokenEvent& event) {
    if (!event.status.ok()) failed = event.status;
  };
  bool ok = (*engine)->Submit(Greedy(std::vector<int32_t>(128, 7), 2), callback).ok();
  ok = ok && (*engine)->Run().ok();
  for (int i = 0; i < 2; ++i) {
    ok = ok && (*engine)->SubmitRandomCache(6400 - 5, 5, 1 + i, options.attention[i], callback).ok();
  }
  ok = ok && (*engine)->Run().ok() && failed.ok();
  const double grown = StatusBytes("VmHWM:") - before;
  const double total = static_cast<double>(predicted->total());
  std::fprintf(stderr, "predicted %.1f MB (weights %.1f, cache %.1f, metadata %.1f, scratch %.1f), grown by %.1f MB\n",
               total / 1e6, predicted->weights / 1e6, predicted->kv_cache / 1e6, predicted->kv_metadata / 1e6,
               predicted->scratch / 1e6, grown / 1e6);
  if (!ok || predicted->kv_cache < 200e6) std::_Exit(3);
  std::_Exit(grown > total * (1 + kBound) || grown < total * (1 - kBound) ? 1 : 0);
}

void ExpectPrediction(const std::string& name, const char* config) {
#ifdef QUIRE_SANITIZED
  GTEST_SKIP() << "a sanitizer's own memory is not predicted";
#endif
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  // One name for both processes: the second starts this test anew.
  const std::string model = ::testing::TempDir() + "/quire_memory_test_" + name;
  std::filesystem::create_directories(model);
  std::ofstream(model + "/config.json") << config;
  EXPECT_EXIT(RunFullCache(model, "bfloat16"), ::testing::ExitedWithCode(0), "predicted");
}

TEST(EngineMemory, TheProcessGrowsByWhatWasPredicted) { ExpectPrediction("whole", kWholeHugePages); }
TEST(EngineMemory, OfManySmallMatricesToo) { ExpectPrediction("small", kSmallMatrices); }

}  // namespace
}  // namespace quire

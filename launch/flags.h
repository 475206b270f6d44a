// Flags that several subcommands share, named as vLLM names them, each with a QUIRE_… twin in the environment. Parsing
// is CLI11's; what values mean and which are refused is decided here, with a sentence.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "core/base/status.h"
#include "core/engine/engine.h"
#include "kernels/selection/policy.h"
#include "launch/group.h"

namespace quire::launch {

// INVALID_ARGUMENT with the list, unless `value` of `flag` is in it.
Status CheckOneOf(const std::string& flag, const std::string& value, const std::vector<std::string>& allowed);

// Adds `--name` with the environment twin QUIRE_NAME, its default shown in --help.
template <typename T>
CLI::Option* AddFlag(CLI::App& app, const std::string& names, T* value, const std::string& help) {
  CLI::Option* option = app.add_option(names, *value, help);
  std::string env = "QUIRE_";
  for (char c : option->get_lnames().front()) {
    env += c == '-' ? '_' : static_cast<char>(c >= 'a' && c <= 'z' ? c - 'a' + 'A' : c);
  }
  return option->envname(env)->capture_default_str();
}
// A flag without a value (QUIRE_NAME=1 sets it).
CLI::Option* AddSwitch(CLI::App& app, const std::string& name, bool* value, const std::string& help);
// A flag that takes a list: "1,8", or given several times. The value is the comma-separated text.
CLI::Option* AddListFlag(CLI::App& app, const std::string& names, std::string* value, const std::string& help);

void AddModelFlag(CLI::App& app, std::string* model);
void AddFormatFlag(CLI::App& app, std::string* format);  // text | json

// Everything that makes an Engine but its attention policies.
struct EngineFlags {
  std::string model;
  std::string load_format = "auto";
  std::string dtype = "auto";
  std::string kv_cache_dtype = "auto";
  std::string device = "auto";
  double gpu_memory_utilization = 0.9;
  bool share_gpu = false;
  bool enforce_eager = false;
  int threads = 0;
  int tensor_parallel_size = 1;
  std::string interface;
  int64_t max_model_len = 0;
  int max_num_seqs = 0;  // 0: what the subcommand needs
  int max_num_batched_tokens = 512;
  int page_size = 16;
  std::string kv_cache_memory;  // bytes, with an optional K, M or G; empty: automatic
  bool batch_invariant = false;
  bool missing_mass_bound = false;
  uint64_t seed = 0;
};
void AddEngineFlags(CLI::App& app, EngineFlags* flags);
// The ranks that these flags ask for, for RunGroup.
GroupOptions GroupOf(const EngineFlags& flags);

struct AttentionFlags {
  std::string attention = "dense";
  std::string token_budget, dense_layers, sink_tokens, recent_tokens;  // empty: the policy's own default
  bool evict = false;
};
// lists: several policies and budgets are crossed; otherwise one of each is taken.
void AddAttentionFlags(CLI::App& app, AttentionFlags* flags, bool lists);

// The policies meant: --attention's list, each sparse one that sets no budget of its own crossed with --token-budget's.
// Checked by making each once. Never empty.
Result<std::vector<AttentionSpec>> CrossAttention(const AttentionFlags& flags, int page_size);

// INVALID_ARGUMENT or UNIMPLEMENTED with a sentence for values that no engine takes. default_seqs: --max-num-seqs when
// the user gave none.
Result<EngineOptions> MakeEngineOptions(const EngineFlags& flags, std::vector<AttentionSpec> attention,
                                        int default_seqs);

// "1,8" → {1, 8}. INVALID_ARGUMENT names the flag when an entry is no integer or below `minimum`.
Result<std::vector<int64_t>> ParseIntList(const std::string& flag, const std::string& text, int64_t minimum);
std::vector<std::string> SplitCommas(const std::string& text);

}  // namespace quire::launch

// See flags.h.
#include "launch/flags.h"

#include <algorithm>
#include <charconv>

#include "core/base/dtype.h"
#include "core/base/log.h"

namespace quire::launch {

Status CheckOneOf(const std::string& flag, const std::string& value, const std::vector<std::string>& allowed) {
  if (std::find(allowed.begin(), allowed.end(), value) != allowed.end()) return OkStatus();
  std::string list;
  for (const std::string& name : allowed) list += (list.empty() ? "" : ", ") + name;
  return InvalidArgument(flag + " is \"" + value + "\"; it takes one of: " + list);
}

namespace {

Status CheckAtLeast(const std::string& flag, int64_t value, int64_t minimum) {
  if (value >= minimum) return OkStatus();
  return InvalidArgument(flag + " is " + std::to_string(value) + "; it must be at least " + std::to_string(minimum));
}

// "1500000", "512K", "24M", "2G" → bytes.
Result<int64_t> ParseBytes(const std::string& flag, const std::string& text) {
  int64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  const std::string unit(rest, end);
  int shift = 0;
  if (unit == "K" || unit == "KiB")
    shift = 10;
  else if (unit == "M" || unit == "MiB")
    shift = 20;
  else if (unit == "G" || unit == "GiB")
    shift = 30;
  else if (!unit.empty())
    shift = -1;
  if (error != std::errc() || shift < 0 || value < 1 || value > (INT64_MAX >> shift)) {
    return InvalidArgument(flag + " is \"" + text + "\"; it takes a number of bytes, as in 268435456, 256M or 2G");
  }
  return value << shift;
}

// CLI11 takes "-1" for an unsigned number as its two's complement.
CLI::Validator NotNegative() {
  return CLI::Validator(
      [](std::string& text) {
        return text.find('-') == std::string::npos ? std::string() : "it is " + text + "; it must be at least 0";
      },
      "");
}

// As a list for people.
std::string EvictingPolicies() {
  std::string names;
  for (const PolicyInfo& policy : PolicyTable()) {
    if (policy.evicts) names += (names.empty() ? "" : ", ") + std::string(policy.name);
  }
  return names;
}

}  // namespace

CLI::Option* AddSwitch(CLI::App& app, const std::string& name, bool* value, const std::string& help) {
  std::string env = "QUIRE_";
  for (char c : name.substr(name.find_first_not_of('-'))) {
    env += c == '-' ? '_' : static_cast<char>(c >= 'a' && c <= 'z' ? c - 'a' + 'A' : c);
  }
  return app.add_flag(name, *value, help)->envname(env);
}

CLI::Option* AddListFlag(CLI::App& app, const std::string& names, std::string* value, const std::string& help) {
  CLI::Option* option = AddFlag(app, names, value, help);
  option->join(',')->type_name("LIST");
  return option;
}

void AddModelFlag(CLI::App& app, std::string* model) {
  AddFlag(app, "--model,-m", model, "Hugging Face folder (config.json, *.safetensors, tokenizer) or a .gguf file")
      ->type_name("PATH")
      ->required();
}

void AddFormatFlag(CLI::App& app, std::string* format) {
  AddFlag(app, "--format", format, "text, or json: one object on stdout")->check(CLI::IsMember({"text", "json"}));
}

void AddEngineFlags(CLI::App& app, EngineFlags* flags) {
  const std::string group = "Engine";
  auto add = [&](CLI::Option* option) { option->group(group); };
  AddModelFlag(app, &flags->model);
  add(AddFlag(app, "--load-format", &flags->load_format, "auto; dummy makes seeded random weights of a config.json"));
  add(AddFlag(app, "--dtype", &flags->dtype, "of the weights: auto (the file's), float32, bfloat16, float16"));
  add(AddFlag(app, "--kv-cache-dtype", &flags->kv_cache_dtype, "auto (as --dtype), float32, bfloat16, float16"));
  add(AddFlag(app, "--device", &flags->device, "auto (a GPU where there is one for each rank), cpu, cuda"));
  add(AddFlag(app, "--gpu-memory-utilization", &flags->gpu_memory_utilization,
              "share of a GPU's memory that may be in use, above 0 and at most 1"));
  add(AddSwitch(app, "--share-gpu", &flags->share_gpu,
                "ranks of a host may share its GPUs; their sums then go through host memory (slow)"));
  add(AddSwitch(app, "--enforce-eager", &flags->enforce_eager,
                "on a GPU, run decode steps launch by launch, not as CUDA graphs"));
  add(AddFlag(app, "--threads,-t", &flags->threads, "of each process (with -tp: of all its ranks together); 0: the processors it may use"));
  add(AddFlag(app, "--tensor-parallel-size", &flags->tensor_parallel_size,
              "ranks, also as -tp N: threads of this process; under mpirun there are as many as it starts"));
  add(AddFlag(app, "--interface", &flags->interface,
              "network interface between the hosts of an mpirun job, as in eth0; empty: any that works"));
  add(AddFlag(app, "--max-model-len", &flags->max_model_len, "longest sequence in tokens; 0: the model's own limit"));
  add(AddFlag(app, "--max-num-seqs", &flags->max_num_seqs, "sequences in one step; 0: what the command needs"));
  add(AddFlag(app, "--max-num-batched-tokens", &flags->max_num_batched_tokens,
              "rows of one step: prompt chunks and decodes"));
  add(AddFlag(app, "--page-size", &flags->page_size, "tokens in a page of the KV cache"));
  add(AddFlag(app, "--kv-cache-memory-bytes", &flags->kv_cache_memory,
              "as in 256M or 2G; empty: what sequences × length need")
          ->type_name("BYTES"));
  add(AddSwitch(app, "--batch-invariant", &flags->batch_invariant,
                "a sequence's bits don't depend on what runs beside it, on chunks or on threads (slower)"));
  add(AddSwitch(app, "--missing-mass-bound", &flags->missing_mass_bound,
                "count how much attention selections may have left out, by page bounds (slower)"));
  add(AddFlag(app, "--seed", &flags->seed, "of sampling, of dummy weights and of what a command draws")
          ->check(NotNegative()));
}

GroupOptions GroupOf(const EngineFlags& flags) { return {flags.tensor_parallel_size, flags.interface}; }

void AddAttentionFlags(CLI::App& app, AttentionFlags* flags, bool lists) {
  const std::string group = "Attention";
  std::string names;
  for (const PolicyInfo& policy : PolicyTable()) names += (names.empty() ? "" : ", ") + std::string(policy.name);
  const std::string list = lists ? "; commas make a list" : "";
  AddListFlag(
      app, "--attention", &flags->attention,
      "policy (" + names + ") with its options after colons, as in quest:token_budget=512:dense_layers=0" + list)
      ->type_name(lists ? "SPEC,…" : "SPEC")
      ->group(group);
  AddListFlag(app, "--token-budget", &flags->token_budget,
              "tokens whose pages a sparse step reads, for policies that set none themselves" + list)
      ->type_name(lists ? "N,…" : "N")
      ->group(group);
  AddFlag(app, "--dense-layers", &flags->dense_layers, "first layers that stay dense, for sparse policies")
      ->type_name("N")
      ->group(group);
  AddFlag(app, "--sink-tokens", &flags->sink_tokens, "first tokens always read, for sparse policies")
      ->type_name("N")
      ->group(group);
  AddFlag(app, "--recent-tokens", &flags->recent_tokens, "latest tokens always read, for sparse policies")
      ->type_name("N")
      ->group(group);
  AddSwitch(app, "--evict", &flags->evict,
            "a sequence keeps --token-budget tokens for good and writes over the others, so its memory is fixed (" +
                EvictingPolicies() + "; as their option evict=true)")
      ->group(group);
}

std::vector<std::string> SplitCommas(const std::string& text) {
  std::vector<std::string> parts;
  size_t begin = 0;
  while (begin <= text.size()) {
    const size_t end = std::min(text.find(',', begin), text.size());
    std::string part = text.substr(begin, end - begin);
    part.erase(0, part.find_first_not_of(" \t"));
    part.erase(part.find_last_not_of(" \t") + 1);
    parts.push_back(std::move(part));
    begin = end + 1;
  }
  return parts;
}

Result<std::vector<int64_t>> ParseIntList(const std::string& flag, const std::string& text, int64_t minimum) {
  std::vector<int64_t> values;
  for (const std::string& part : SplitCommas(text)) {
    int64_t value = 0;
    const char* end = part.data() + part.size();
    const auto [rest, error] = std::from_chars(part.data(), end, value);
    if (error != std::errc() || rest != end) {
      return InvalidArgument(flag + " has the entry \"" + part + "\"; it takes whole numbers separated by commas");
    }
    RETURN_IF_ERROR(CheckAtLeast(flag, value, minimum));
    values.push_back(value);
  }
  return values;
}

Result<std::vector<AttentionSpec>> CrossAttention(const AttentionFlags& flags, int page_size) {
  RETURN_IF_ERROR(CheckAtLeast("--page-size", page_size, 1));
  std::vector<int64_t> budgets;
  if (!flags.token_budget.empty()) {
    ASSIGN_OR_RETURN(budgets, ParseIntList("--token-budget", flags.token_budget, 1));
  }
  const std::pair<const char*, const std::string*> shared[] = {{"dense_layers", &flags.dense_layers},
                                                               {"sink_tokens", &flags.sink_tokens},
                                                               {"recent_tokens", &flags.recent_tokens}};
  std::vector<AttentionSpec> specs;
  bool budget_used = budgets.empty(), any_sparse = false, any_evicts = false;
  for (const std::string& part : SplitCommas(flags.attention)) {
    ASSIGN_OR_RETURN(AttentionSpec spec, AttentionSpec::Parse(part));
    std::vector<AttentionSpec> crossed;
    if (spec.name == "dense") {
      crossed.push_back(spec);
    } else {
      any_sparse = true;
      for (const auto& [option, value] : shared) {
        if (!value->empty()) spec.options.try_emplace(option, *value);
      }
      const auto& table = PolicyTable();
      const bool evicts = std::any_of(table.begin(), table.end(), [&](const PolicyInfo& policy) {
        return policy.name == spec.name && policy.evicts;
      });
      if (flags.evict && evicts) spec.options.try_emplace("evict", "true");
      any_evicts |= evicts;
      if (budgets.empty() || spec.options.count("token_budget")) {
        crossed.push_back(spec);
      } else {
        budget_used = true;
        for (int64_t budget : budgets) {
          crossed.push_back(spec);
          crossed.back().options["token_budget"] = std::to_string(budget);
        }
      }
    }
    for (AttentionSpec& one : crossed) {
      ASSIGN_OR_RETURN(const auto policy, MakePolicy(one, page_size));
      if (std::find(specs.begin(), specs.end(), one) == specs.end()) specs.push_back(std::move(one));
    }
  }
  if (flags.evict && !any_evicts) {
    return InvalidArgument("--evict is given, and attention '" + flags.attention + "' can't evict; " +
                           EvictingPolicies() + " can");
  }
  if (!budget_used) {
    Log(LogLevel::kWarning, any_sparse ? "--token-budget is not used: every sparse policy sets its own"
                                       : "--token-budget is not used: dense attention reads every page");
  }
  return specs;
}

Result<EngineOptions> MakeEngineOptions(const EngineFlags& flags, std::vector<AttentionSpec> attention,
                                        int default_seqs) {
  RETURN_IF_ERROR(CheckOneOf("--device", flags.device, {"auto", "cpu", "cuda"}));
  RETURN_IF_ERROR(CheckAtLeast("--tensor-parallel-size", flags.tensor_parallel_size, 1));
  RETURN_IF_ERROR(CheckOneOf("--load-format", flags.load_format, {"auto", "dummy"}));
  for (const auto& [flag, value] :
       {std::pair<const char*, std::string>{"--dtype", flags.dtype}, {"--kv-cache-dtype", flags.kv_cache_dtype}}) {
    if (value == "auto") continue;
    if (const auto dtype = ParseFloatDType(value); !dtype.ok()) return dtype.status().WithContext(flag);
  }
  if (!(flags.gpu_memory_utilization > 0 && flags.gpu_memory_utilization <= 1)) {
    return InvalidArgument("--gpu-memory-utilization is " + std::to_string(flags.gpu_memory_utilization) +
                           "; it must be above 0 and at most 1");
  }
  RETURN_IF_ERROR(CheckAtLeast("--threads", flags.threads, 0));
  RETURN_IF_ERROR(CheckAtLeast("--max-model-len", flags.max_model_len, 0));
  RETURN_IF_ERROR(CheckAtLeast("--max-num-seqs", flags.max_num_seqs, 0));
  RETURN_IF_ERROR(CheckAtLeast("--page-size", flags.page_size, 1));
  RETURN_IF_ERROR(CheckAtLeast("--max-num-batched-tokens", flags.max_num_batched_tokens, 1));

  EngineOptions options;
  options.model = flags.model;
  options.load_format = flags.load_format;
  options.dtype = flags.dtype;
  options.kv_cache_dtype = flags.kv_cache_dtype;
  options.device = flags.device;
  options.gpu_memory_utilization = flags.gpu_memory_utilization;
  options.share_gpu = flags.share_gpu;
  options.enforce_eager = flags.enforce_eager;
  options.threads = flags.threads;
  options.max_model_len = flags.max_model_len;
  options.max_num_seqs = flags.max_num_seqs > 0 ? flags.max_num_seqs : default_seqs;
  options.max_num_batched_tokens = std::max(flags.max_num_batched_tokens, options.max_num_seqs);
  options.page_size = flags.page_size;
  if (!flags.kv_cache_memory.empty()) {
    ASSIGN_OR_RETURN(options.kv_cache_bytes, ParseBytes("--kv-cache-memory-bytes", flags.kv_cache_memory));
  }
  options.attention = std::move(attention);
  options.batch_invariant = flags.batch_invariant;
  options.missing_mass_bound = flags.missing_mass_bound;
  options.seed = flags.seed;
  return options;
}

}  // namespace quire::launch

// quire info: a model's numbers, what each rank would hold of it, and the memory that an engine with these flags takes.
#include <cmath>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "core/model/families.h"
#include "core/model/weight_slices.h"
#include "launch/command.h"
#include "launch/flags.h"
#include "launch/group.h"
#include "launch/output.h"
#include "launch/session.h"
#include "parallel/shard_plan.h"

namespace quire::launch {
namespace {

struct InfoFlags {
  EngineFlags engine;
  AttentionFlags attention;
  std::string format = "text";
  bool load = false, policies = false;
};

void WritePolicies(const std::string& format) {
  if (format == "json") {
    Json policies = Json::array();
    for (const PolicyInfo& policy : PolicyTable()) {
      policies.push_back({{"name", policy.name}, {"paper", policy.paper}, {"reads", policy.reads}, {"options", policy.options}});
    }
    return WriteJson({{"policies", std::move(policies)}});
  }
  for (const PolicyInfo& policy : PolicyTable()) {
    WriteOut(std::string(policy.name) + ": " + std::string(policy.paper) + "\n  reads a step and KV head: " +
             std::string(policy.reads) + "\n  options: " + std::string(policy.options) + "\n");
  }
}

Json RangeJson(const Range& range) { return Json::array({range.begin, range.end}); }

Json ConfigJson(const ModelConfig& c) {
  static const char* const kScalings[] = {"none", "linear", "dynamic", "yarn", "llama3"};
  Json json;
  json["family"] = c.family;
  json["architecture"] = c.architecture;
  json["dtype"] = std::string(DTypeName(c.dtype));
  json["layers"] = c.layers;
  json["hidden"] = c.hidden;
  json["ffn"] = c.ffn;
  json["q_heads"] = c.q_heads;
  json["kv_heads"] = c.kv_heads;
  json["head_dim"] = c.head_dim;
  json["vocab"] = c.vocab;
  json["max_position"] = c.max_position;
  json["rope_theta"] = c.rope.theta;
  json["rope_scaling"] = kScalings[static_cast<int>(c.rope.scaling)];
  json["tie_embeddings"] = c.tie_embeddings;
  json["qkv_bias"] = c.qkv_bias;
  json["qk_norm"] = c.qk_norm;
  json["window"] = c.window;
  if (c.window_rope) json["window_rope_theta"] = c.window_rope->theta;
  if (c.attention_softcap > 0) json["attention_softcap"] = c.attention_softcap;
  if (c.final_softcap > 0) json["final_softcap"] = c.final_softcap;
  json["bos_id"] = c.bos_id ? Json(*c.bos_id) : Json(nullptr);
  json["eos_ids"] = c.eos_ids;
  // What generation_config.json recommends; generate is greedy unless flags say otherwise.
  json["recommended"] = {{"temperature", c.default_temperature ? Json(*c.default_temperature) : Json(nullptr)},
                         {"top_p", c.default_top_p ? Json(*c.default_top_p) : Json(nullptr)},
                         {"top_k", c.default_top_k ? Json(*c.default_top_k) : Json(nullptr)}};
  return json;
}

Json MemoryJson(const MemoryBytes& m) {
  return {{"weights", m.weights},
          {"kv_cache", m.kv_cache},
          {"kv_metadata", m.kv_metadata},
          {"history", m.history},
          {"scratch", m.scratch},
          {"total", m.total()}};
}

// Every rank's slices, what of the checkpoint it reads for them and the memory it takes: arithmetic, nothing is loaded.
Result<Json> ShardJson(const Checkpoint& checkpoint, const EngineOptions& options, int tp) {
  Json ranks = Json::array();
  for (int rank = 0; rank < tp; ++rank) {
    ASSIGN_OR_RETURN(const ShardPlan plan, ShardPlan::Create(NumbersOf(checkpoint.config), tp, rank));
    ASSIGN_OR_RETURN(const MemoryBytes memory, PredictMemory(options, tp, rank));
    ranks.push_back({{"rank", rank},
                     {"q_heads", RangeJson(plan.q_heads)},
                     {"kv_heads", RangeJson(plan.kv_heads)},
                     {"ffn", RangeJson(plan.ffn)},
                     {"vocab", RangeJson(plan.vocab)},
                     {"replicas", plan.replicas},
                     {"bytes_read", BytesToRead(checkpoint, plan)},
                     {"memory", MemoryJson(memory)}});
  }
  return ranks;
}

// The policies, and up to which length each attends densely: by its budget, or by auto's cost model, of tp ranks.
Result<Json> AttentionJson(const EngineOptions& options, const ModelConfig& config, int tp) {
  Json policies = Json::array();
  ASSIGN_OR_RETURN(const PolicyShape shape, ShapeOf(options, config, tp));
  const int64_t longest = options.max_model_len > 0 ? options.max_model_len : config.max_position;
  for (const AttentionSpec& spec : options.attention) {
    ASSIGN_OR_RETURN(const auto policy, MakePolicy(spec, shape));
    Json row;
    RETURN_IF_ERROR(AddAttentionFields(spec, options.page_size, &row));
    const int64_t dense = DenseUpTo(*policy, longest, options.page_size);
    row["dense_up_to"] = dense == longest ? Json(nullptr) : Json(dense);
    policies.push_back(std::move(row));
  }
  return policies;
}

void WriteText(const Json& json) {
  std::vector<std::vector<std::string>> table;
  for (const auto& [key, value] : json["config"].items()) {
    if (key == "window") {
      int windows = 0;
      int64_t tokens = 0;
      for (const Json& w : value) windows += w.get<int64_t>() > 0, tokens = std::max(tokens, w.get<int64_t>());
      table.push_back(
          {key, windows == 0 ? "none" : std::to_string(tokens) + " tokens in " + std::to_string(windows) + " layers"});
    } else {
      table.push_back({key, value.is_string() ? value.get<std::string>() : value.dump()});
    }
  }
  WriteOut(json["model"].get<std::string>() + "\n");
  WriteTable(table);
  WriteOut("\nattention\n");
  std::vector<std::vector<std::string>> policies = {{"policy", "dense up to"}};
  for (const Json& row : json["attention"]) {
    policies.push_back({row["spec"].get<std::string>(),
                        row["dense_up_to"].is_null() ? "any length" : row["dense_up_to"].dump() + " tokens"});
  }
  WriteTable(policies);
  const bool loaded = !json["memory"]["loaded"].is_null();
  WriteOut("\nshards, half-open ranges\n");
  table = {{"rank", "q_heads", "kv_heads", "ffn", "vocab", "reads", "memory"}};
  if (loaded) table[0].insert(table[0].end(), {"host", "threads", "has read"});
  for (const Json& r : json["shards"]) {
    table.push_back({r["rank"].dump(), r["q_heads"].dump(), r["kv_heads"].dump(), r["ffn"].dump(), r["vocab"].dump(),
                     HumanBytes(r["bytes_read"].get<double>()), HumanBytes(r["memory"]["total"].get<double>())});
    if (!loaded) continue;
    const Json& has = r["loaded"];
    table.back().insert(table.back().end(), {has["host"].get<std::string>(), has["threads"].dump(),
                                             HumanBytes(has["bytes_read"].get<double>())});
  }
  WriteTable(table);
  WriteOut(table.size() > 2 ? "\nmemory of rank 0\n" : "\nmemory\n");
  table = {{"part", "predicted"}};
  if (loaded) table[0].insert(table[0].end(), {"loaded", "difference"});
  for (const auto& [key, value] : json["memory"]["predicted"].items()) {
    const double predicted = value.get<double>();
    table.push_back({key, HumanBytes(predicted)});
    if (!loaded) continue;
    const double actual = json["memory"]["loaded"][key].get<double>();
    table.back().push_back(HumanBytes(actual));
    table.back().push_back(predicted > 0 ? Fixed(100 * (actual - predicted) / predicted, 1) + " %" : "-");
  }
  WriteTable(table);
}

Status RunInfo(const InfoFlags& flags, const Seat& seat) {
  ASSIGN_OR_RETURN(auto specs, CrossAttention(flags.attention, flags.engine.page_size));
  const int tp = seat.ranks() > 1 ? seat.ranks() : flags.engine.tensor_parallel_size;
  ASSIGN_OR_RETURN(EngineOptions options, MakeEngineOptions(flags.engine, std::move(specs), 1));
  ASSIGN_OR_RETURN(const Checkpoint checkpoint, OpenCheckpoint(options.model, options.load_format, options.seed));
  Json json;
  json["model"] = options.model;
  json["config"] = ConfigJson(checkpoint.config);
  ASSIGN_OR_RETURN(json["attention"], AttentionJson(options, checkpoint.config, tp));
  ASSIGN_OR_RETURN(json["shards"], ShardJson(checkpoint, options, tp));
  json["memory"]["predicted"] = json["shards"][0]["memory"];
  json["memory"]["loaded"] = nullptr;
  if (flags.load) {
    ASSIGN_OR_RETURN(const auto engine, OpenEngineForTokenIds(seat, options));
    json["memory"]["loaded"] = MemoryJson(engine->Memory());
    json["memory"]["load_s"] = engine->load_seconds();
    for (const RankInfo& rank : engine->Ranks()) {
      json["shards"][static_cast<size_t>(rank.rank)]["loaded"] = {{"host", rank.host},
                                                                 {"threads", rank.threads},
                                                                 {"bytes_read", rank.weight_bytes_read},
                                                                 {"memory", MemoryJson(rank.memory)}};
    }
  }
  if (flags.format == "json")
    WriteJson(json);
  else
    WriteText(json);
  return OkStatus();
}

}  // namespace

Command AddInfo(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand("info", "A model's numbers, its slices per rank, and the memory it takes");
  auto flags = std::make_shared<InfoFlags>();
  app->footer(
      "\nExamples\n  quire info --model DIR --tensor-parallel-size 2\n  quire info --policies\n  quire info --model DIR --attention quest "
      "--load     the table beside what a run takes");
  app->add_flag("--policies", flags->policies, "the attention policies: what each reads, its options, their ranges and defaults");
  app->add_flag("--load", flags->load, "load the model and show the memory taken beside the prediction");
  AddFormatFlag(*app, &flags->format);
  AddAttentionFlags(*app, &flags->attention, /*lists=*/true);
  AddEngineFlags(*app, &flags->engine);
  app->get_option("--model")->required(false);
  app->final_callback([flags] {
    if (flags->engine.model.empty() && !flags->policies) throw CLI::RequiredError("--model or --policies");
  });
  return {app, [flags] {
            if (flags->policies) {
              return RunGroup({}, [&](const Seat&) {
                WritePolicies(flags->format);
                return OutputStatus();
              });
            }
            // Without --load the plan is arithmetic, for any number of ranks.
            GroupOptions group = GroupOf(flags->engine);
            if (!flags->load) group.tensor_parallel_size = 1;
            return RunGroup(group, [&](const Seat& seat) { return RunInfo(*flags, seat); });
          }};
}

}  // namespace quire::launch

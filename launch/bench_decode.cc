// quire bench decode: time of a decode step at depths × batches × policies, the cache filled with seeded random K and V
// (no prefill). Rows are measured in turns, so that a change of the machine's pace meets all of them, and the median of
// all steps is printed beside the bytes that a step must read.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/base/clock.h"
#include "core/base/dtype.h"
#include "core/model/families.h"
#include "kernels/selection/evicting.h"
#include "launch/bench.h"
#include "launch/command.h"
#include "launch/flags.h"
#include "launch/group.h"
#include "launch/output.h"
#include "launch/progress.h"
#include "launch/session.h"

namespace quire::launch {
namespace {

struct DecodeFlags {
  EngineFlags engine;
  AttentionFlags attention;
  std::string format = "text", depth = "0,4096", batch = "1";
  int steps = 8, repeats = 3;
  double machine_seconds = kMachineSeconds;
};

// One row: what is measured, and every step seen so far.
struct Row {
  AttentionSpec spec;
  int64_t depth = 0, batch = 1;
  int64_t cached = 0;  // tokens in the cache at first: depth, or what leaves room for the steps in the model's context
  std::vector<double> seconds, selection, attention;
  std::vector<double> collectives, broadcast;  // of several ranks: in sums and gathers, and in telling them the step
  int64_t pages_read = 0, pages_total = 0;  // of the last step
  AttentionReads bound;                     // of all timed steps, for missing_mass_bound
};

// Tokens that the measured steps see at least, the current one included: one step warms up.
int64_t MeasuredLength(const Row& row) { return row.cached + 2; }

// Inside the collectives of the forward pass and of sampling; the waiting for slower ranks is part of it.
double CollectiveSeconds(const EngineStats& stats) {
  return stats.collectives.all_reduce_seconds + stats.collectives.all_gather_seconds;
}

// One run of a row: fills the cache, lets one step warm up, and times the rest.
Status RunRow(Engine& engine, int steps, uint64_t seed, Row& row) {
  Status failure;
  int64_t tokens = 0;
  std::vector<std::string> ids;
  for (int64_t i = 0; i < row.batch; ++i) {
    ASSIGN_OR_RETURN(ids.emplace_back(),
                     engine.SubmitRandomCache(row.cached, steps + 1, seed + i, row.spec, [&](const TokenEvent& e) {
                       if (!e.status.ok()) failure = e.status;
                       tokens += static_cast<int64_t>(e.token_ids.size());
                     }));
  }
  EngineStats before = engine.Stats();
  double step_start = NowSeconds();
  int64_t tokens_before = 0;
  bool warm = false;
  RETURN_IF_ERROR(RunToEnd(engine, ids, [&] {
    const double now = NowSeconds();
    const EngineStats after = engine.Stats();
    // Only steps in which every sequence decoded count: admission may take a step of its own.
    if (tokens - tokens_before == row.batch && warm) {
      row.seconds.push_back(now - step_start);
      row.selection.push_back(after.attention.selection_seconds - before.attention.selection_seconds);
      row.attention.push_back(after.attention.attention_seconds - before.attention.attention_seconds);
      row.collectives.push_back(CollectiveSeconds(after) - CollectiveSeconds(before));
      row.broadcast.push_back(after.step_broadcast_seconds - before.step_broadcast_seconds);
      row.pages_read = after.attention.pages_read - before.attention.pages_read;
      row.pages_total = after.attention.pages_total - before.attention.pages_total;
      row.bound += after.attention - before.attention;
    }
    warm = warm || tokens - tokens_before == row.batch;
    tokens_before = tokens;
    before = after;
    step_start = NowSeconds();
  }));
  return failure;
}

// Bytes that a step reads: the matrices once, the pages read, and the metadata that selection scores; by policies that
// evict by weight, their maps and K once more.
Result<double> BytesOfStep(const Engine& engine, const Row& row) {
  const ModelConfig& config = engine.config();
  const EngineOptions& options = engine.options();
  ASSIGN_OR_RETURN(const DType dtype, ParseFloatDType(options.dtype));
  ASSIGN_OR_RETURN(const DType cache, ParseFloatDType(options.kv_cache_dtype));
  double bytes = static_cast<double>(LayerMatrixParameters(config) + HeadParameters(config)) * ElementSize(dtype);
  bytes += static_cast<double>(row.pages_read) * options.page_size * 2 * config.head_dim * ElementSize(cache);
  ASSIGN_OR_RETURN(const PolicyShape shape, ShapeOf(options, config));
  ASSIGN_OR_RETURN(const auto policy, MakePolicy(row.spec, shape));
  ASSIGN_OR_RETURN(const PageFormat format, PageFormat::Create(cache, options.page_size, config.kv_heads,
                                                               config.head_dim, config.head_dim));
  const std::vector<int32_t> lengths(static_cast<size_t>(row.batch), static_cast<int32_t>(MeasuredLength(row)));
  SelectParams select;
  select.rows = static_cast<int>(row.batch);
  select.q_heads = config.q_heads;
  select.row_len = lengths.data();
  select.table.format = format;
  for (int layer = 0; layer < config.layers; ++layer) {
    if (policy->IsDense(MeasuredLength(row), layer, options.page_size)) continue;
    bytes += static_cast<double>(policy->SelectBytes(select));
  }
  if (policy->Declare().slot_map) {
    const auto slots = static_cast<double>(std::min<int64_t>(MeasuredLength(row), policy->capacity()));
    const double slot_bytes = config.head_dim * ElementSize(cache) + static_cast<double>(kSlotMapEntryBytes);
    bytes += slots * slot_bytes * static_cast<double>(row.batch * config.layers * config.kv_heads);
  }
  return bytes;
}

Status RunBenchDecode(const DecodeFlags& flags, const Seat& seat) {
  ASSIGN_OR_RETURN(const std::vector<int64_t> depths, ParseIntList("--depth", flags.depth, 0));
  ASSIGN_OR_RETURN(const std::vector<int64_t> batches, ParseIntList("--batch", flags.batch, 1));
  if (flags.steps < 1 || flags.repeats < 1) return InvalidArgument("--steps and --repeats must be at least 1");
  RETURN_IF_ERROR(CheckMachineSeconds(flags.machine_seconds));
  ASSIGN_OR_RETURN(auto specs, CrossAttention(flags.attention, flags.engine.page_size));
  const int64_t widest = *std::max_element(batches.begin(), batches.end());
  const int64_t deepest = *std::max_element(depths.begin(), depths.end());
  if (widest > 4096)
    return InvalidArgument("--batch asks for " + std::to_string(widest) + " sequences; 4096 are the most");
  ASSIGN_OR_RETURN(EngineOptions options, MakeEngineOptions(flags.engine, specs, static_cast<int>(widest)));
  options.load_tokenizer = false;
  if (options.max_model_len == 0) {
    options.max_model_len = deepest + flags.steps + 1;
    // A depth of the model's whole context leaves no room for steps: the cache is then a few tokens shorter.
    ASSIGN_OR_RETURN(const Checkpoint checkpoint, OpenCheckpoint(options.model, options.load_format, options.seed));
    const int64_t limit = checkpoint.config.max_position;
    if (deepest <= limit) options.max_model_len = std::min(options.max_model_len, limit);
  }
  const int64_t most_cached = options.max_model_len - flags.steps - 1;
  if (most_cached < 0) return InvalidArgument("--steps is more than the context has room for");
  ASSIGN_OR_RETURN(auto engine, OpenEngine(seat, std::move(options)));
  // The machine's rates are measured by this process, with the threads of all ranks in it.
  const int threads = engine->options().threads * (seat.threads() ? seat.ranks() : 1);
  ASSIGN_OR_RETURN(MachineRates rates, MeasureRates(*engine, threads, flags.machine_seconds));
  ThreadPool probe_pool(threads);
  Context probe_context;
  probe_context.pool = &probe_pool;
  ASSIGN_OR_RETURN(ReadProbe probe, ReadProbe::Create(probe_context));

  std::vector<Row> rows;
  for (int64_t depth : depths) {
    for (int64_t batch : batches) {
      for (const AttentionSpec& spec : specs) {
        Row& row = rows.emplace_back();
        row.spec = spec;
        row.depth = depth;
        row.cached = std::min(depth, most_cached);
        row.batch = batch;
      }
    }
  }
  Progress progress("bench decode");
  for (int repeat = 0; repeat < flags.repeats; ++repeat) {
    for (size_t i = 0; i < rows.size(); ++i) {
      const double done = static_cast<double>(repeat * rows.size() + i) / (flags.repeats * rows.size());
      progress.Update(done, rows[i].spec.ToString() + " at depth " + std::to_string(rows[i].depth) + ", batch " +
                                std::to_string(rows[i].batch));
      for (int pass = 0; !OnGpu(*engine) && pass < 3; ++pass) probe.Run(probe_context);
      RETURN_IF_ERROR(RunRow(*engine, flags.steps, flags.engine.seed, rows[i]));
    }
  }
  progress.Finish();
  if (!OnGpu(*engine)) rates.read_gb_s = probe.MedianGbS();

  Json results = Json::array();
  for (const Row& row : rows) {
    if (row.seconds.empty()) {
      return ResourceExhausted("the cache never held all " + std::to_string(row.batch) + " sequences of " +
                               std::to_string(row.cached) +
                               " tokens at once; give more by --kv-cache-memory-bytes and --max-num-seqs");
    }
    Json json;
    json["name"] = "decode";
    RETURN_IF_ERROR(AddAttentionFields(row.spec, engine->options().page_size, &json));
    const double seconds = Median(row.seconds);
    json["depth"] = row.depth;
    json["cached"] = row.cached;
    json["batch"] = row.batch;
    json["threads"] = threads;
    json["seconds"] = seconds;
    json["tok_s"] = row.batch / seconds;
    ASSIGN_OR_RETURN(const double bytes, BytesOfStep(*engine, row));
    AddBytes(bytes, seconds, rates, &json);
    json["selection_seconds"] = Median(row.selection);
    json["attention_seconds"] = Median(row.attention);
    json["tensor_parallel_size"] = seat.ranks();
    json["collective_seconds"] = Median(row.collectives);
    json["broadcast_seconds"] = Median(row.broadcast);
    json["collective_share"] = Median(row.collectives) / seconds;
    json["broadcast_share"] = Median(row.broadcast) / seconds;
    json["pages_read"] = row.pages_read;
    json["pages_total"] = row.pages_total;
    if (engine->options().missing_mass_bound) {
      json["missing_mass_bound"] = row.bound.bounds > 0 ? Json(row.bound.missing_mass_bound()) : Json(nullptr);
    }
    json["steps"] = row.seconds.size();
    results.push_back(std::move(json));
  }
  std::vector<std::string> columns = {"attention", "token_budget", "depth", "batch", "seconds", "tok_s", "gb_s",
                                      "share_of_read_bandwidth", "share_of_copy_bandwidth", "selection_seconds",
                                      "attention_seconds"};
  if (seat.ranks() > 1) {
    columns.insert(columns.end(), {"collective_seconds", "collective_share", "broadcast_seconds", "broadcast_share"});
  }
  WriteBench(flags.format, results, rates, threads, columns);
  return OkStatus();
}

}  // namespace

Command AddBenchDecode(CLI::App& parent) {
  CLI::App* app =
      parent.add_subcommand("decode", "Decode steps at depths × batches × policies, over a cache of random K and V");
  auto flags = std::make_shared<DecodeFlags>();
  app->footer(R"(
Example
  quire bench decode --model DIR --load-format dummy --depth 0,4096,32768 --attention dense,quest \
    --token-budget 2048 --batch 1,8 --threads 2)");
  AddListFlag(*app, "--depth", &flags->depth, "tokens in the cache before the first step");
  AddListFlag(*app, "--batch", &flags->batch, "sequences that decode together");
  app->add_option("--steps", flags->steps, "timed steps of each run")->capture_default_str();
  app->add_option("--repeats", flags->repeats, "runs of each row, in turns")->capture_default_str();
  AddMachineFlag(*app, &flags->machine_seconds);
  AddFormatFlag(*app, &flags->format);
  AddAttentionFlags(*app, &flags->attention, /*lists=*/true);
  AddEngineFlags(*app, &flags->engine);
  return {app, [flags] {
            return RunGroup(GroupOf(flags->engine),
                            [&](const Seat& seat) { return RunBenchDecode(*flags, seat); });
          }};
}

}  // namespace quire::launch

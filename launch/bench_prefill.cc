// quire bench prefill: time until a prompt of seeded random ids has been taken in, as a rate and as a share of the
// machine's matrix products (the causal attention's operations counted).
#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "core/base/clock.h"
#include "core/model/families.h"
#include "launch/bench.h"
#include "launch/command.h"
#include "launch/flags.h"
#include "launch/group.h"
#include "launch/output.h"
#include "launch/progress.h"
#include "launch/session.h"

namespace quire::launch {
namespace {

struct PrefillFlags {
  EngineFlags engine;
  std::string format = "text", lengths = "512,2048";
  int repeats = 3;
  double machine_seconds = kMachineSeconds;
};

Result<double> TimePrefill(Engine& engine, int64_t length, uint64_t seed) {
  std::mt19937_64 random(seed);
  GenerationRequest request;
  for (int64_t i = 0; i < length; ++i) request.prompt.push_back(static_cast<int32_t>(random() % engine.config().vocab));
  request.sampling.temperature = 0;
  request.stopping.max_tokens = 1;
  request.stopping.ignore_eos = true;
  Status failure;
  const double start = NowSeconds();
  double first = 0;
  ASSIGN_OR_RETURN(const std::string id, engine.Submit(std::move(request), [&](const TokenEvent& event) {
    if (!event.status.ok()) failure = event.status;
    if (first == 0) first = NowSeconds();
  }));
  RETURN_IF_ERROR(RunToEnd(engine, {id}));
  RETURN_IF_ERROR(failure);
  return first - start;
}

// 2 per parameter and row in the layers, the head for one row, and for each row i of n the products with i + 1 keys and
// values: 4 · q_heads · head_dim · (i + 1) per layer.
double PrefillFlops(const ModelConfig& config, int64_t n) {
  const double rows = static_cast<double>(n);
  const double attention = 4.0 * config.q_heads * config.head_dim * config.layers * rows * (rows + 1) / 2;
  return 2.0 * LayerMatrixParameters(config) * rows + 2.0 * HeadParameters(config) + attention;
}

Status RunBenchPrefill(const PrefillFlags& flags, const Seat& seat) {
  ASSIGN_OR_RETURN(const std::vector<int64_t> lengths, ParseIntList("--lengths", flags.lengths, 1));
  if (flags.repeats < 1) return InvalidArgument("--repeats must be at least 1");
  RETURN_IF_ERROR(CheckMachineSeconds(flags.machine_seconds));
  const int64_t longest = *std::max_element(lengths.begin(), lengths.end());
  ASSIGN_OR_RETURN(EngineOptions options, MakeEngineOptions(flags.engine, {AttentionSpec{}}, 1));
  options.load_tokenizer = false;
  if (options.max_model_len == 0) {
    options.max_model_len = longest + 1;
    // A prompt of the model's whole context leaves no room for its one token: it is then a token shorter.
    ASSIGN_OR_RETURN(const Checkpoint checkpoint, OpenCheckpoint(options.model, options.load_format, options.seed));
    if (longest <= checkpoint.config.max_position) {
      options.max_model_len = std::min(options.max_model_len, checkpoint.config.max_position);
    }
  }
  ASSIGN_OR_RETURN(auto engine, OpenEngine(seat, std::move(options)));
  const int threads = engine->options().threads * (seat.threads() ? seat.ranks() : 1);
  const auto prompt_of = [&](int64_t length) { return std::min(length, engine->options().max_model_len - 1); };
  ASSIGN_OR_RETURN(const MachineRates rates, MeasureRates(*engine, threads, flags.machine_seconds));

  Progress progress("bench prefill");
  RETURN_IF_ERROR(TimePrefill(*engine, prompt_of(std::min<int64_t>(lengths.front(), 64)), 1).status());  // warms up
  std::vector<std::vector<double>> seconds(lengths.size());
  for (int repeat = 0; repeat < flags.repeats; ++repeat) {
    for (size_t i = 0; i < lengths.size(); ++i) {
      progress.Update(static_cast<double>(repeat * lengths.size() + i) / (flags.repeats * lengths.size()),
                      std::to_string(lengths[i]) + " tokens");
      ASSIGN_OR_RETURN(const double one, TimePrefill(*engine, prompt_of(lengths[i]), flags.engine.seed + repeat));
      seconds[i].push_back(one);
    }
  }
  progress.Finish();
  Json results = Json::array();
  for (size_t i = 0; i < lengths.size(); ++i) {
    const double median = Median(seconds[i]);
    const int64_t tokens = prompt_of(lengths[i]);
    Json row = {{"name", "prefill"},    {"attention", "dense"},
                {"length", lengths[i]}, {"prompt_tokens", tokens},
                {"threads", threads},   {"tensor_parallel_size", seat.ranks()},
                {"chunk", engine->options().max_num_batched_tokens},
                {"seconds", median},    {"tok_s", tokens / median}};
    AddFlops(PrefillFlops(engine->config(), tokens), median, rates, &row);
    results.push_back(std::move(row));
  }
  WriteBench(flags.format, results, rates, threads,
             {"name", "length", "chunk", "seconds", "tok_s", "gflop_s", "share_of_matmul_rate"});
  return OkStatus();
}

}  // namespace

Command AddBenchPrefill(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand("prefill", "Prompts of several lengths, beside the matrix products' rate");
  auto flags = std::make_shared<PrefillFlags>();
  app->footer("\nExample\n  quire bench prefill --model DIR --load-format dummy --lengths 512,2048 --threads 2");
  AddListFlag(*app, "--lengths", &flags->lengths, "prompt lengths in tokens");
  app->add_option("--repeats", flags->repeats, "runs of each length, in turns")->capture_default_str();
  AddMachineFlag(*app, &flags->machine_seconds);
  AddFormatFlag(*app, &flags->format);
  AddEngineFlags(*app, &flags->engine);
  return {app, [flags] {
            return RunGroup(GroupOf(flags->engine),
                            [&](const Seat& seat) { return RunBenchPrefill(*flags, seat); });
          }};
}

}  // namespace quire::launch

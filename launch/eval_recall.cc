// quire eval recall: of what dense attention would have looked at, how much a policy's pages hold, per layer and KV head;
// over the windows of eval_windows.h, each step selecting with the queries of the policy's own run.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "launch/command.h"
#include "launch/eval_windows.h"
#include "launch/flags.h"
#include "launch/group.h"
#include "launch/output.h"
#include "launch/progress.h"
#include "launch/recall.h"
#include "launch/session.h"

namespace quire::launch {
namespace {

struct RecallFlags {
  EngineFlags engine;
  AttentionFlags attention;
  WindowFlags windows;
  std::string format = "text";
};

// [{"layer", "recall": [KV head], "random": [KV head], "recent": [KV head], "missing_mass": [KV head]}]
Json ByLayer(const RecallRecorder& recorder) {
  Json layers = Json::array();
  for (const auto& [where, sums] : recorder.sums()) {
    if (layers.empty() || layers.back()["layer"] != where.first) {
      layers.push_back({{"layer", where.first},
                        {"recall", Json::array()},
                        {"random", Json::array()},
                        {"recent", Json::array()},
                        {"missing_mass", Json::array()}});
    }
    const double steps = static_cast<double>(sums.steps);
    layers.back()["recall"].push_back(sums.recall / steps);
    layers.back()["random"].push_back(sums.random_recall / steps);
    layers.back()["recent"].push_back(sums.recent_recall / steps);
    layers.back()["missing_mass"].push_back(sums.missing / steps);
  }
  return layers;
}

// Why there is nothing to measure of a policy; "" where there is.
Result<std::string> NothingToChoose(const Engine& engine, const AttentionSpec& spec, int64_t context) {
  ASSIGN_OR_RETURN(const auto policy, MakePolicy(spec, engine.options().page_size));
  if (policy->capacity() > 0) {
    return spec.ToString() +
           " evicts, and so has no pages left to choose from; recall is of policies that keep all of them. Leave out evict, "
           "or measure it by quire eval perplexity or passkey";
  }
  ASSIGN_OR_RETURN(const bool selects, Selects(engine, spec, context));
  if (selects) return std::string();
  return spec.ToString() + " selects nothing in windows of " + std::to_string(context) +
         " tokens; name a sparse policy with a budget below half of that, and fewer dense layers than the model's " +
         std::to_string(engine.config().layers);
}

Status RunRecall(const RecallFlags& flags, const Seat& seat) {
  RETURN_IF_ERROR(CheckWindowFlags(flags.windows));
  if (seat.ranks() > 1) {
    return InvalidArgument("eval recall looks into the cache of every KV head, and each of these " +
                           std::to_string(seat.ranks()) + " ranks has its own; run it on one rank");
  }
  ASSIGN_OR_RETURN(auto specs, CrossAttention(flags.attention, flags.engine.page_size));
  ASSIGN_OR_RETURN(const std::string text, ReadText(flags.windows.text_file));
  ASSIGN_OR_RETURN(EngineOptions options, MakeEngineOptions(flags.engine, specs, 4));
  if (options.device == "cuda") return InvalidArgument("eval recall looks into the cache on the CPU; use --device cpu");
  options.device = "cpu";
  if (options.max_model_len == 0) options.max_model_len = flags.windows.context;
  ASSIGN_OR_RETURN(auto engine, OpenEngine(seat, std::move(options)));
  ASSIGN_OR_RETURN(const std::vector<Window> windows, ReadWindows(*engine, flags.windows, text));
  std::vector<std::string> nothing(specs.size());
  for (size_t i = 0; i < specs.size(); ++i) {
    ASSIGN_OR_RETURN(nothing[i], NothingToChoose(*engine, specs[i], flags.windows.context));
  }
  if (std::all_of(nothing.begin(), nothing.end(), [](const std::string& why) { return !why.empty(); })) {
    return InvalidArgument(nothing.front());
  }

  const ModelConfig& config = engine->config();
  RecallRecorder recorder(config.attention_scale(), config.attention_softcap, engine->options().threads,
                          engine->options().seed);
  engine->set_selection_observer(&recorder);
  Json results = Json::array();
  std::vector<std::vector<std::string>> table = {{"attention", "context", "selections", "recall", "random", "recent",
                                                  "mass left out", "its bound", "pages read", "of"}};
  Progress progress("recall");
  for (size_t i = 0; i < specs.size(); ++i) {
    const AttentionSpec& spec = specs[i];
    if (!nothing[i].empty()) {
      Json row;
      RETURN_IF_ERROR(AddAttentionFields(spec, engine->options().page_size, &row));
      row["context"] = flags.windows.context;
      row["recall"] = nullptr;
      row["reason"] = nothing[i];
      std::vector<std::string> cells(table.front().size(), "-");
      cells[0] = spec.ToString();
      cells[1] = std::to_string(flags.windows.context);
      table.push_back(std::move(cells));
      results.push_back(std::move(row));
      continue;
    }
    progress.SetWhat("recall, " + spec.ToString() + ":");
    recorder.Clear();
    // One by one, for the recorder sees selections and not whose they are.
    ASSIGN_OR_RETURN(const std::vector<WindowSums> sums, RunWindows(*engine, {spec}, windows, progress));
    const WindowSums& windows_sums = sums.front();
    RETURN_IF_ERROR(recorder.status());
    const SelectionSums total = recorder.Total();
    if (total.broken_bounds > 0) {
      return Internal(spec.ToString() + " left out more than quest's bound allows in " +
                      std::to_string(total.broken_bounds) + " of " + std::to_string(total.bounds) + " cases");
    }
    const double steps = static_cast<double>(total.steps);
    Json row;
    RETURN_IF_ERROR(AddAttentionFields(spec, engine->options().page_size, &row));
    row["context"] = flags.windows.context;
    row["tokens"] = windows_sums.tokens;
    row["selections"] = total.steps;
    row["recall"] = total.recall / steps;
    row["random"] = total.random_recall / steps;
    row["recent"] = total.recent_recall / steps;
    row["missing_mass"] = total.missing / steps;
    row["missing_mass_bound"] = total.bounds > 0 ? Json(total.bound / steps) : Json(nullptr);
    AddReads(windows_sums.reads, &row);
    row["by_layer"] = ByLayer(recorder);
    table.push_back({spec.ToString(), std::to_string(flags.windows.context), std::to_string(total.steps),
                     Fixed(total.recall / steps, 4), Fixed(total.random_recall / steps, 4),
                     Fixed(total.recent_recall / steps, 4), Fixed(total.missing / steps, 5),
                     total.bounds > 0 ? Fixed(total.bound / steps, 5) : "-", std::to_string(windows_sums.reads.pages_read),
                     std::to_string(windows_sums.reads.pages_total)});
    results.push_back(std::move(row));
  }
  engine->set_selection_observer(nullptr);
  progress.Finish();
  WriteResults(flags.format, std::move(results), table);
  return OkStatus();
}

}  // namespace

Command AddEvalRecall(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand(
      "recall", "Attention mass of the pages that policies choose, against the best pages, random and latest ones");
  auto flags = std::make_shared<RecallFlags>();
  app->footer(R"(
Example
  quire eval recall --model M.gguf --text-file book.txt --context 8192 --max-tokens 16384 \
    --attention quest,hierarchical --token-budget 256,512,1024 --dense-layers 0
Windows of --context tokens: the first half is prefilled densely, the second (or the first --tokens of it) taken
token by token. Layers that the policy leaves dense don't count; --format json has every layer and KV head. Where a policy
leaves nothing to choose (dense, one that evicts, a budget of all tokens) its row is empty, with the reason in json.)");
  AddWindowFlags(*app, &flags->windows);
  AddScoredFlag(*app, &flags->windows);
  AddFormatFlag(*app, &flags->format);
  AddAttentionFlags(*app, &flags->attention, /*lists=*/true);
  AddEngineFlags(*app, &flags->engine);
  return {app, [flags] {
            return RunGroup(GroupOf(flags->engine), [&](const Seat& seat) { return RunRecall(*flags, seat); });
          }};
}

}  // namespace quire::launch

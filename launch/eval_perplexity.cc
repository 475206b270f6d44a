// quire eval perplexity: how much a policy's selection costs in likelihood, over the windows of eval_windows.h.
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "launch/command.h"
#include "launch/eval_windows.h"
#include "launch/flags.h"
#include "launch/group.h"
#include "launch/output.h"
#include "launch/policy_groups.h"
#include "launch/progress.h"
#include "launch/session.h"

namespace quire::launch {
namespace {

struct PerplexityFlags {
  EngineFlags engine;
  AttentionFlags attention;
  WindowFlags windows;
  std::string format = "text";
};

Status RunPerplexity(const PerplexityFlags& flags, const Seat& seat) {
  RETURN_IF_ERROR(CheckWindowFlags(flags.windows));
  ASSIGN_OR_RETURN(auto specs, CrossAttention(flags.attention, flags.engine.page_size));
  ASSIGN_OR_RETURN(const std::string text, ReadText(flags.windows.text_file));
  ASSIGN_OR_RETURN(EngineOptions options, MakeEngineOptions(flags.engine, specs, SequencesFor(specs)));
  if (options.max_model_len == 0) options.max_model_len = flags.windows.context;
  ASSIGN_OR_RETURN(auto engine, OpenEngine(seat, std::move(options)));
  ASSIGN_OR_RETURN(const std::vector<Window> windows, ReadWindows(*engine, flags.windows, text));

  Json results = Json::array();
  std::vector<std::vector<std::string>> table = {
      {"attention", "budget", "context", "tokens", "perplexity", "nll", "pages read", "of", "seconds"}};
  Progress progress("perplexity");
  ASSIGN_OR_RETURN(const std::vector<WindowSums> scores, RunWindows(*engine, specs, windows, progress));
  for (size_t i = 0; i < specs.size(); ++i) {
    const AttentionSpec& spec = specs[i];
    const WindowSums& score = scores[i];
    ASSIGN_OR_RETURN(const auto policy, MakePolicy(spec, engine->options().page_size));
    const int64_t budget = policy->token_budget();
    ASSIGN_OR_RETURN(const bool sparse, Selects(*engine, spec, flags.windows.context));
    if (sparse && score.reads.pages_read >= score.reads.pages_total) {
      return Internal(spec.ToString() + " read " + std::to_string(score.reads.pages_read) + " of " +
                      std::to_string(score.reads.pages_total) + " pages, so nothing was selected");
    }
    const double nll = score.nll / score.tokens;
    Json row;
    RETURN_IF_ERROR(AddAttentionFields(spec, engine->options().page_size, &row));
    row["context"] = flags.windows.context;
    row["tokens"] = score.tokens;
    row["perplexity"] = std::exp(nll);
    row["nll"] = nll;
    AddReads(score.reads, &row);
    row["seconds"] = score.seconds;
    results.push_back(std::move(row));
    table.push_back({spec.ToString(), budget > 0 ? std::to_string(budget) : "-", std::to_string(flags.windows.context),
                     std::to_string(score.tokens), Fixed(std::exp(nll), 4), Fixed(nll, 5),
                     std::to_string(score.reads.pages_read), std::to_string(score.reads.pages_total), Fixed(score.seconds, 1)});
  }
  progress.Finish();
  WriteResults(flags.format, std::move(results), table);
  return OkStatus();
}

}  // namespace

Command AddEvalPerplexity(CLI::App& parent) {
  CLI::App* app =
      parent.add_subcommand("perplexity", "Perplexity of a text, each token a decode step, per policy and budget");
  auto flags = std::make_shared<PerplexityFlags>();
  app->footer(R"(
Example
  quire eval perplexity --model M.gguf --text-file book.txt --context 2048 --max-tokens 16384 \
    --attention dense,quest --token-budget 256,512,1024
Windows of --context tokens: the first half is prefilled densely, the second scored token by token, or the
first --tokens of it.)");
  AddWindowFlags(*app, &flags->windows);
  AddScoredFlag(*app, &flags->windows);
  AddFormatFlag(*app, &flags->format);
  AddAttentionFlags(*app, &flags->attention, /*lists=*/true);
  AddEngineFlags(*app, &flags->engine);
  return {app, [flags] {
            return RunGroup(GroupOf(flags->engine),
                            [&](const Seat& seat) { return RunPerplexity(*flags, seat); });
          }};
}

}  // namespace quire::launch

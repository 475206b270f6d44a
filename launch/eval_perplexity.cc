// quire eval perplexity: how much a policy's selection costs in likelihood. The text is cut into windows of --context
// tokens; the first half of each is prefilled densely, and every token of the second half is scored as a decode step of
// its own, for dense as for the others (scoring a prompt by prefill would measure nothing).
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/base/clock.h"
#include "launch/command.h"
#include "launch/flags.h"
#include "launch/group.h"
#include "launch/output.h"
#include "launch/progress.h"
#include "launch/session.h"

namespace quire::launch {
namespace {

struct PerplexityFlags {
  EngineFlags engine;
  AttentionFlags attention;
  std::string text_file, format = "text";
  int64_t context = 2048, max_tokens = 0;
};

struct Window {
  std::vector<int32_t> prompt;  // prefilled
  // The first forced token only enters the cache: its own logits come from the prefill. The rest are scored.
  std::vector<int32_t> forced;
};

// Windows over the text's ids, each opened by the ids that the tokenizer puts before any text (BOS; often none).
std::vector<Window> CutWindows(const std::vector<int32_t>& ids, const std::vector<int32_t>& opening, int64_t context) {
  std::vector<Window> windows;
  const int64_t body = context - static_cast<int64_t>(opening.size());
  const int64_t half = context / 2;
  for (int64_t begin = 0; begin < static_cast<int64_t>(ids.size()); begin += body) {
    std::vector<int32_t> all = opening;
    const int64_t end = std::min<int64_t>(begin + body, ids.size());
    all.insert(all.end(), ids.begin() + begin, ids.begin() + end);
    if (static_cast<int64_t>(all.size()) <= half) break;  // nothing of its second half is left
    Window window;
    window.prompt.assign(all.begin(), all.begin() + half - 1);
    window.forced.assign(all.begin() + half - 1, all.end());
    windows.push_back(std::move(window));
  }
  return windows;
}

struct Score {
  double nll_sum = 0;
  int64_t tokens = 0, pages_read = 0, pages_total = 0;
  double seconds = 0;
};

Result<Score> Evaluate(Engine& engine, const AttentionSpec& spec, const std::vector<Window>& windows,
                       Progress& progress) {
  Score score;
  Status failure;
  std::vector<std::string> ids;
  int64_t wanted = 0, seen = 0;
  const AttentionStats before = engine.Stats().attention;
  const double start = NowSeconds();
  for (const Window& window : windows) {
    GenerationRequest request;
    request.prompt = window.prompt;
    request.forced = window.forced;
    request.sampling.temperature = 0;
    request.stopping.max_tokens = static_cast<int>(window.forced.size());
    request.stopping.ignore_eos = true;
    request.logprobs = 0;
    request.attention = spec;
    wanted += static_cast<int64_t>(window.forced.size());
    ASSIGN_OR_RETURN(ids.emplace_back(), engine.Submit(std::move(request), [&](const TokenEvent& event) {
      if (!event.status.ok()) failure = event.status;
      for (size_t i = 0; i < event.logprobs.size(); ++i) {
        ++seen;
        if (event.index + i == 0) continue;
        score.nll_sum -= event.logprobs[i].chosen.logprob;
        ++score.tokens;
      }
    }));
  }
  RETURN_IF_ERROR(RunToEnd(engine, ids, [&] {
    progress.Update(static_cast<double>(seen) / wanted,
                    std::to_string(seen) + " of " + std::to_string(wanted) + " tokens");
  }));
  RETURN_IF_ERROR(failure);
  if (seen != wanted) {
    return Internal("scored " + std::to_string(seen) + " of " + std::to_string(wanted) + " tokens");
  }
  const AttentionStats after = engine.Stats().attention;
  score.pages_read = after.pages_read - before.pages_read;
  score.pages_total = after.pages_total - before.pages_total;
  score.seconds = NowSeconds() - start;
  return score;
}

Status RunPerplexity(const PerplexityFlags& flags, const Seat& seat) {
  if (flags.context < 4)
    return InvalidArgument("--context is " + std::to_string(flags.context) + "; it must be at least 4");
  if (flags.max_tokens < 0) return InvalidArgument("--max-tokens is negative; 0 takes the whole text");
  ASSIGN_OR_RETURN(auto specs, CrossAttention(flags.attention, flags.engine.page_size));
  ASSIGN_OR_RETURN(const std::string text, ReadText(flags.text_file));
  ASSIGN_OR_RETURN(EngineOptions options, MakeEngineOptions(flags.engine, specs, 4));
  if (options.max_model_len == 0) options.max_model_len = flags.context;
  ASSIGN_OR_RETURN(auto engine, OpenEngine(seat, std::move(options)));

  EncodeOptions with, without;
  without.add_special_tokens = false;
  ASSIGN_OR_RETURN(std::vector<int32_t> ids, engine->tokenizer()->Encode(text, without));
  if (flags.max_tokens > 0 && static_cast<int64_t>(ids.size()) > flags.max_tokens) ids.resize(flags.max_tokens);
  // What stands before a text: the ids of "a" with special tokens, up to those of "a" without.
  ASSIGN_OR_RETURN(const std::vector<int32_t> bare, engine->tokenizer()->Encode("a", without));
  ASSIGN_OR_RETURN(std::vector<int32_t> opening, engine->tokenizer()->Encode("a", with));
  opening.resize(std::search(opening.begin(), opening.end(), bare.begin(), bare.end()) - opening.begin());
  if (static_cast<int64_t>(opening.size()) >= flags.context / 2)
    return InvalidArgument("--context is too short for this tokenizer");
  const std::vector<Window> windows = CutWindows(ids, opening, flags.context);
  if (windows.empty()) {
    return InvalidArgument(flags.text_file + " has " + std::to_string(ids.size()) +
                           " tokens; more than half of --context " + std::to_string(flags.context) + " are needed");
  }

  Json results = Json::array();
  std::vector<std::vector<std::string>> table = {
      {"attention", "budget", "context", "tokens", "perplexity", "nll", "pages read", "of", "seconds"}};
  Progress progress("perplexity");
  for (const AttentionSpec& spec : specs) {
    progress.SetWhat("perplexity, " + spec.ToString() + ":");
    ASSIGN_OR_RETURN(const Score score, Evaluate(*engine, spec, windows, progress));
    ASSIGN_OR_RETURN(const auto policy, MakePolicy(spec, engine->options().page_size));
    const int64_t budget = policy->token_budget();
    bool sparse = false;  // in some layer, from the first scored token on
    for (int layer = 0; layer < engine->config().layers; ++layer) {
      sparse = sparse || !policy->IsDense(flags.context / 2, layer, engine->options().page_size);
    }
    if (sparse && score.pages_read >= score.pages_total) {
      return Internal(spec.ToString() + " read " + std::to_string(score.pages_read) + " of " +
                      std::to_string(score.pages_total) + " pages, so nothing was selected");
    }
    const double nll = score.nll_sum / score.tokens;
    Json row;
    RETURN_IF_ERROR(AddAttentionFields(spec, engine->options().page_size, &row));
    row["context"] = flags.context;
    row["tokens"] = score.tokens;
    row["perplexity"] = std::exp(nll);
    row["nll"] = nll;
    row["pages_read"] = score.pages_read;
    row["pages_total"] = score.pages_total;
    row["seconds"] = score.seconds;
    results.push_back(std::move(row));
    table.push_back({spec.ToString(), budget > 0 ? std::to_string(budget) : "-", std::to_string(flags.context),
                     std::to_string(score.tokens), Fixed(std::exp(nll), 4), Fixed(nll, 5),
                     std::to_string(score.pages_read), std::to_string(score.pages_total), Fixed(score.seconds, 1)});
  }
  progress.Finish();
  if (flags.format == "json")
    WriteJson({{"results", std::move(results)}});
  else
    WriteTable(table);
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
Windows of --context tokens: the first half is prefilled densely, the second scored token by token.)");
  app->add_option("--text-file", flags->text_file, "UTF-8 text; - is stdin")->required();
  app->add_option("--context", flags->context, "tokens in a window")->capture_default_str();
  app->add_option("--max-tokens", flags->max_tokens, "tokens of the text that are used; 0: all")->capture_default_str();
  AddFormatFlag(*app, &flags->format);
  AddAttentionFlags(*app, &flags->attention, /*lists=*/true);
  AddEngineFlags(*app, &flags->engine);
  return {app, [flags] {
            return RunGroup(GroupOf(flags->engine),
                            [&](const Seat& seat) { return RunPerplexity(*flags, seat); });
          }};
}

}  // namespace quire::launch

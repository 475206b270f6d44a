// quire score: the log-probability that a model gives to each token of a sequence after those before it, and its top
// choices there. Scored by dense prefill.
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "launch/command.h"
#include "launch/flags.h"
#include "launch/group.h"
#include "launch/output.h"
#include "launch/progress.h"
#include "launch/session.h"

namespace quire::launch {
namespace {

struct ScoreFlags {
  EngineFlags engine;
  std::string token_ids_file, format = "text";
  int top = 5;
};

Status RunScore(const ScoreFlags& flags, const Seat& seat) {
  ASSIGN_OR_RETURN(const std::vector<int32_t> ids, ReadTokenIds(flags.token_ids_file));
  if (flags.top < 0) return InvalidArgument("--top is " + std::to_string(flags.top) + "; it must be at least 0");
  ASSIGN_OR_RETURN(EngineOptions options, MakeEngineOptions(flags.engine, {AttentionSpec{}}, 1));
  ASSIGN_OR_RETURN(auto engine, OpenEngineForTokenIds(seat, std::move(options)));
  if (const int64_t limit = engine->options().max_model_len; static_cast<int64_t>(ids.size()) > limit) {
    return InvalidArgument(flags.token_ids_file + " holds " + std::to_string(ids.size()) + " ids; the context takes " +
                           std::to_string(limit) + " (--max-model-len)");
  }
  GenerationRequest request;
  request.prompt = ids;
  // The last id is forced rather than part of the prompt, so that a sequence may fill the whole context.
  if (ids.size() > 1) {
    request.prompt.pop_back();
    request.forced = {ids.back()};
    request.logprobs = flags.top;
  }
  request.sampling.temperature = 0;
  request.stopping.max_tokens = 1;
  request.prompt_logprobs = flags.top;
  std::vector<std::optional<TokenLogprobs>> scored;
  Status failure;
  ASSIGN_OR_RETURN(const std::string id, engine->Submit(std::move(request), [&](const TokenEvent& event) {
    if (!event.status.ok()) failure = event.status;
    if (!event.prompt_logprobs.empty()) scored = event.prompt_logprobs;
    scored.insert(scored.end(), event.logprobs.begin(), event.logprobs.end());
  }));
  Progress progress("scoring");
  RETURN_IF_ERROR(RunToEnd(*engine, {id},
                           [&] { progress.Update(static_cast<double>(engine->Stats().prompt_tokens) / ids.size()); }));
  progress.Finish();
  RETURN_IF_ERROR(failure);
  if (scored.size() != ids.size()) {
    return Internal("the engine scored " + std::to_string(scored.size()) + " of " + std::to_string(ids.size()) +
                    " tokens");
  }

  if (flags.format == "json") {
    Json json;
    json["token_ids"] = ids;
    json["logprobs"] = Json::array();
    json["top"] = Json::array();
    for (const auto& token : scored) {
      json["logprobs"].push_back(token ? Json(token->chosen.logprob) : Json(nullptr));
      Json top = Json::array();
      for (size_t i = 0; token && i < token->top.size(); ++i) {
        top.push_back({{"id", token->top[i].id}, {"logprob", token->top[i].logprob}});
      }
      json["top"].push_back(std::move(top));
    }
    WriteJson(json);
    return OkStatus();
  }
  std::vector<std::vector<std::string>> table = {{"token", "logprob", "best", "logprob"}};
  double sum = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    std::vector<std::string> row = {std::to_string(ids[i]), "", "", ""};
    if (scored[i]) {
      sum += scored[i]->chosen.logprob;
      row[1] = Fixed(scored[i]->chosen.logprob, 4);
      if (!scored[i]->top.empty()) {
        row[2] = std::to_string(scored[i]->top[0].id);
        row[3] = Fixed(scored[i]->top[0].logprob, 4);
      }
    }
    table.push_back(std::move(row));
  }
  WriteTable(table);
  WriteOut("sum " + Fixed(sum, 4) + "\n");
  return OkStatus();
}

}  // namespace

Command AddScore(CLI::App& parent) {
  CLI::App* app =
      parent.add_subcommand("score", "Log-probability of each token of a sequence, and the best ones there");
  auto flags = std::make_shared<ScoreFlags>();
  app->footer("\nExample\n  quire score --model DIR --token-ids-file ids.json --format json");
  app->add_option("--token-ids-file", flags->token_ids_file, "JSON array of token ids")->required();
  app->add_option("--top", flags->top, "best tokens shown at each place")->capture_default_str();
  AddFormatFlag(*app, &flags->format);
  AddEngineFlags(*app, &flags->engine);
  return {app, [flags] {
            return RunGroup(GroupOf(flags->engine),
                            [&](const Seat& seat) { return RunScore(*flags, seat); });
          }};
}

}  // namespace quire::launch

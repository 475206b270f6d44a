// quire score: the log-probability that a model gives to each token of a text after those before it, and its top choices
// there. One text or a list of them, by an engine of its own or by a service. Scored by dense prefill.
#include "launch/score.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/base/log.h"
#include "core/engine/scoring.h"
#include "core/io/file_mapping.h"
#include "launch/command.h"
#include "launch/flags.h"
#include "launch/group.h"
#include "launch/output.h"
#include "launch/progress.h"
#include "launch/session.h"
#include "launch/token_json.h"

namespace quire::launch {
namespace {

constexpr int kTextsAtOnce = 8;  // of a list, where --max-num-seqs says nothing

struct ScoreFlags {
  EngineFlags engine;
  std::string address, token_ids_file, list_file, format = "text";
  double connect_timeout = 10, retry = 60;
  int top = 5;
};

// A JSON array of strings and arrays of token ids.
Result<std::vector<ScoreText>> ReadList(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string bytes, ReadTextFile(path));
  const Json json = Json::parse(bytes, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) {
    return InvalidArgument(path + " is not valid JSON; it should be an array of texts, each a string or token ids");
  }
  if (!json.is_array()) {
    return InvalidArgument(path + " holds a JSON " + json.type_name() +
                           ", not an array of texts, each a string or token ids");
  }
  if (json.empty()) return InvalidArgument(path + " holds no texts");
  std::vector<ScoreText> texts;
  for (const Json& entry : json) {
    const std::string name = path + ": text " + std::to_string(texts.size());
    ScoreText& text = texts.emplace_back();
    if (entry.is_string()) {
      text.text = entry.get<std::string>();
      if (text.text->empty()) return InvalidArgument(name + " is empty");
    } else if (entry.is_array()) {
      ASSIGN_OR_RETURN(text.token_ids, TokenIdsOf(entry, name));
    } else {
      return InvalidArgument(name + " is a JSON " + entry.type_name() + "; it should be a string or token ids");
    }
  }
  return texts;
}

Result<std::vector<ScoredText>> ScoreHere(const ScoreFlags& flags, const Seat& seat,
                                          const std::vector<ScoreText>& texts) {
  const bool has_text = std::any_of(texts.begin(), texts.end(), [](const ScoreText& t) { return t.text.has_value(); });
  const int seqs = static_cast<int>(std::min<size_t>(texts.size(), kTextsAtOnce));
  ASSIGN_OR_RETURN(EngineOptions options, MakeEngineOptions(flags.engine, {AttentionSpec{}}, seqs));
  ASSIGN_OR_RETURN(auto engine, has_text ? OpenEngine(seat, std::move(options))
                                         : OpenEngineForTokenIds(seat, std::move(options)));
  const bool list = flags.token_ids_file.empty();
  std::vector<ScoredText> scored(texts.size());
  int64_t tokens = 0;
  for (size_t i = 0; i < texts.size(); ++i) {
    scored[i].token_ids = texts[i].token_ids;
    if (texts[i].text) {
      ASSIGN_OR_RETURN(scored[i].token_ids, engine->tokenizer()->Encode(*texts[i].text, {}));
    }
    const size_t count = scored[i].token_ids.size();
    const std::string name = list ? flags.list_file + ": text " + std::to_string(i) : flags.token_ids_file;
    if (count == 0) return InvalidArgument(name + " has no tokens");
    if (const int64_t limit = engine->options().max_model_len; static_cast<int64_t>(count) > limit) {
      return InvalidArgument(name + " holds " + std::to_string(count) + " ids; the context takes " +
                             std::to_string(limit) + " (--max-model-len)");
    }
    tokens += static_cast<int64_t>(count);
  }
  Status failure;
  std::vector<std::string> ids;
  for (size_t i = 0; i < texts.size(); ++i) {
    auto id = engine->Submit(ScoringRequest(scored[i].token_ids, flags.top), [&, i](const TokenEvent& event) {
      if (!event.status.ok()) failure = event.status;
      AddScores(event, &scored[i].logprobs);
    });
    if (!id.ok()) return list ? id.status().WithContext("text " + std::to_string(i)) : id.status();
    ids.push_back(std::move(id).value());
  }
  Progress progress("scoring");
  RETURN_IF_ERROR(RunToEnd(*engine, ids, [&] {
    progress.Update(static_cast<double>(engine->Stats().prompt_tokens) / static_cast<double>(tokens));
  }));
  progress.Finish();
  RETURN_IF_ERROR(failure);
  for (const ScoredText& text : scored) {
    if (text.logprobs.size() != text.token_ids.size()) {
      return Internal("the engine scored " + std::to_string(text.logprobs.size()) + " of " +
                      std::to_string(text.token_ids.size()) + " tokens");
    }
  }
  return scored;
}

double SumOf(const ScoredText& text) {
  double sum = 0;
  for (const auto& token : text.logprobs) sum += token ? token->chosen.logprob : 0;
  return sum;
}

Json TextJson(const ScoredText& text) {
  Json json;
  json["token_ids"] = text.token_ids;
  json["logprobs"] = Json::array();
  json["top"] = Json::array();
  for (const auto& token : text.logprobs) {
    json["logprobs"].push_back(token ? Json(token->chosen.logprob) : Json(nullptr));
    json["top"].push_back(token ? TopJson(*token) : Json::array());
  }
  json["sum"] = SumOf(text);
  return json;
}

void WriteTokens(const ScoredText& text) {
  std::vector<std::vector<std::string>> table = {{"token", "logprob", "best", "logprob"}};
  for (size_t i = 0; i < text.token_ids.size(); ++i) {
    std::vector<std::string> row = {std::to_string(text.token_ids[i]), "", "", ""};
    if (const auto& token = text.logprobs[i]) {
      row[1] = Fixed(token->chosen.logprob, 4);
      if (!token->top.empty()) {
        row[2] = std::to_string(token->top[0].id);
        row[3] = Fixed(token->top[0].logprob, 4);
      }
    }
    table.push_back(std::move(row));
  }
  WriteTable(table);
  WriteOut("sum " + Fixed(SumOf(text), 4) + "\n");
}

// A line for each text: its tokens, the sum over all but the first of them, and what that makes per token.
void WriteTexts(const std::vector<ScoredText>& texts) {
  std::vector<std::vector<std::string>> table = {{"text", "tokens", "sum", "per token", "perplexity"}};
  for (size_t i = 0; i < texts.size(); ++i) {
    const double sum = SumOf(texts[i]), count = static_cast<double>(texts[i].token_ids.size()) - 1;
    table.push_back({std::to_string(i), std::to_string(texts[i].token_ids.size()), Fixed(sum, 4),
                     count > 0 ? Fixed(sum / count, 4) : "", count > 0 ? Fixed(std::exp(-sum / count), 2) : ""});
  }
  WriteTable(table);
}

// Flags of an engine mean nothing to a service, which has one already.
void WarnOfEngineFlags(const CLI::App& app) {
  std::string given;
  for (const CLI::Option* option : app.get_options()) {
    const bool engine = option->get_group() == "Engine" || option->check_lname("model");
    const bool from_environment = !option->get_envname().empty() && std::getenv(option->get_envname().c_str());
    if (!engine || option->count() == 0 || from_environment) continue;
    given += (given.empty() ? "--" : ", --") + option->get_lnames().front();
  }
  if (!given.empty()) Log(LogLevel::kWarning, "the service has a model of its own: with --address, " + given + " does nothing");
}

Status RunScore(const ScoreFlags& flags, const CLI::App& app, const Seat& seat) {
  if (flags.token_ids_file.empty() == flags.list_file.empty()) {
    return InvalidArgument("give one of --token-ids-file and --list-file");
  }
  if (flags.top < 0) return InvalidArgument("--top is " + std::to_string(flags.top) + "; it must be at least 0");
  std::vector<ScoreText> texts(1);
  if (flags.list_file.empty()) {
    ASSIGN_OR_RETURN(texts[0].token_ids, ReadTokenIds(flags.token_ids_file));
  } else {
    ASSIGN_OR_RETURN(texts, ReadList(flags.list_file));
  }
  std::vector<ScoredText> scored;
  if (flags.address.empty()) {
    ASSIGN_OR_RETURN(scored, ScoreHere(flags, seat, texts));
  } else {
    WarnOfEngineFlags(app);
    ASSIGN_OR_RETURN(scored, ScoreByService(flags.address, flags.connect_timeout, flags.retry, texts, flags.top));
  }

  if (flags.format == "json") {
    if (flags.list_file.empty()) {
      WriteJson(TextJson(scored[0]));
      return OkStatus();
    }
    Json json;
    json["results"] = Json::array();
    for (const ScoredText& text : scored) json["results"].push_back(TextJson(text));
    WriteJson(json);
  } else if (flags.list_file.empty()) {
    WriteTokens(scored[0]);
  } else {
    WriteTexts(scored);
  }
  return OkStatus();
}

}  // namespace

Command AddScore(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand("score", "Log-probability of each token of a text, and the best ones there");
  auto flags = std::make_shared<ScoreFlags>();
  app->footer(R"(
Examples
  quire score --model DIR --token-ids-file ids.json --format json
  quire score --model DIR --list-file texts.json                     ["a text", "another", [1, 403, 407]]
  quire score --address 127.0.0.1:50050 --list-file texts.json       by a service, over all groups of a coordinator)");
  app->add_option("--token-ids-file", flags->token_ids_file, "JSON array of token ids");
  app->add_option("--list-file", flags->list_file, "JSON array of texts, each a string or an array of token ids");
  app->add_option("--top", flags->top, "best tokens shown at each place")->capture_default_str();
  app->add_option("--address", flags->address, "HOST:PORT of a service that scores; empty: this program, with --model");
  app->add_option("--connect-timeout", flags->connect_timeout, "seconds to reach the service")->capture_default_str();
  app->add_option("--retry", flags->retry, "seconds to try again when the service is unavailable; 0: none")
      ->capture_default_str();
  AddFormatFlag(*app, &flags->format);
  AddEngineFlags(*app, &flags->engine);
  app->get_option("--model")->required(false);
  app->final_callback([flags] {
    if (flags->address.empty() && flags->engine.model.empty()) throw CLI::RequiredError("--model or --address");
  });
  return {app, [flags, app] {
            return RunGroup(flags->address.empty() ? GroupOf(flags->engine) : GroupOptions{},
                            [&](const Seat& seat) { return RunScore(*flags, *app, seat); });
          }};
}

}  // namespace quire::launch

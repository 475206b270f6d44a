// quire generate: a prompt in, text out as it comes; at the end speed, and the pages read of those there.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "core/io/chat_template.h"
#include "launch/command.h"
#include "launch/flags.h"
#include "launch/group.h"
#include "launch/output.h"
#include "launch/progress.h"
#include "launch/request_flags.h"
#include "launch/session.h"
#include "launch/signals.h"
#include "launch/token_json.h"

namespace quire::launch {
namespace {

struct GenerateFlags {
  EngineFlags engine;
  AttentionFlags attention;
  std::string format = "text";
  std::string prompt, prompt_file, token_ids_file, system;
  bool prompt_given = false;
  bool chat = false;
  RequestFlags request;
};

// What one sequence has become so far.
struct Output {
  std::vector<int32_t> ids;
  std::string text;
  std::vector<TokenLogprobs> logprobs;
  TokenEvent last;
};

Result<std::vector<int32_t>> MakePrompt(const GenerateFlags& flags, const Engine& engine) {
  const int sources = flags.prompt_given + !flags.prompt_file.empty() + !flags.token_ids_file.empty();
  if (sources != 1) {
    return InvalidArgument("give exactly one of --prompt, --prompt-file and --token-ids-file, not " +
                           std::to_string(sources));
  }
  if (!flags.token_ids_file.empty()) {
    if (flags.chat) return InvalidArgument("--chat needs text: give --prompt or --prompt-file, not --token-ids-file");
    return ReadTokenIds(flags.token_ids_file);
  }
  std::string text = flags.prompt;
  if (!flags.prompt_file.empty()) {
    ASSIGN_OR_RETURN(text, ReadText(flags.prompt_file));
  } else if (const size_t offset = FindInvalidUtf8(text); offset != std::string::npos) {
    return InvalidArgument("--prompt is not valid UTF-8 at byte " + std::to_string(offset));
  }
  if (text.empty()) {
    return InvalidArgument(
        "the prompt is empty; to let the model write from nothing, give its BOS by --token-ids-file");
  }
  if (!flags.system.empty() && !flags.chat) return InvalidArgument("--system needs --chat");
  EncodeOptions options;
  if (flags.chat) {
    std::vector<ChatMessage> messages;
    if (!flags.system.empty()) messages.push_back({"system", flags.system});
    messages.push_back({"user", text});
    ASSIGN_OR_RETURN(text, ApplyChatTemplate(*engine.tokenizer(), messages));
    options.add_special_tokens = false;
  }
  return engine.tokenizer()->Encode(text, options);
}

// Of the request's own rows: the engine's sums count again what a preempted sequence recomputed.
AttentionReads UsageOf(const std::vector<Output>& outputs) {
  AttentionReads usage;
  for (const Output& output : outputs) usage += output.last.attention;
  return usage;
}

Json ReportJson(const GenerateFlags& flags, const Engine& engine, const AttentionSpec& spec,
                const std::vector<Output>& outputs, int64_t prompt_tokens, const RequestTimings& timings,
                double prefill_rate, double decode_rate) {
  Json json;
  json["model"] = flags.engine.model;
  json["prompt_tokens"] = prompt_tokens;
  json["sequences"] = Json::array();
  for (const Output& output : outputs) {
    Json sequence;
    sequence["token_ids"] = output.ids;
    sequence["text"] = output.text;
    sequence["finish_reason"] = FinishReasonName(output.last.reason);
    if (flags.request.logprobs >= 0) {
      sequence["logprobs"] = Json::array();
      for (const TokenLogprobs& token : output.logprobs) sequence["logprobs"].push_back(TokenJson(token));
    }
    json["sequences"].push_back(std::move(sequence));
  }
  json["timings"] = {{"load_s", engine.load_seconds()}, {"prefill_s", timings.prefill_s},
                     {"decode_s", timings.decode_s},    {"ttft_s", timings.ttft_s},
                     {"prefill_tok_s", prefill_rate},   {"decode_tok_s", decode_rate}};
  const AttentionReads usage = UsageOf(outputs);
  Json attention;
  const auto policy = MakePolicy(spec, engine.options().page_size);
  attention["policy"] = spec.name;
  attention["token_budget"] =
      policy.ok() && (*policy)->token_budget() > 0 ? Json((*policy)->token_budget()) : Json(nullptr);
  attention["page_size"] = engine.options().page_size;
  attention["pages_read"] = usage.pages_read;
  attention["pages_total"] = usage.pages_total;
  if (flags.engine.missing_mass_bound) {
    attention["missing_mass_bound"] = usage.bounds > 0 ? Json(usage.missing_mass_bound()) : Json(nullptr);
  }
  json["attention"] = std::move(attention);
  return json;
}

Status RunGenerate(const GenerateFlags& flags, const Seat& seat) {
  const bool json = flags.format == "json";
  ASSIGN_OR_RETURN(auto specs, CrossAttention(flags.attention, flags.engine.page_size));
  if (specs.size() != 1) return InvalidArgument("generate runs one attention policy with one budget; give no lists");
  const AttentionSpec spec = specs.front();
  if (flags.request.sampling.n < 1)
    return InvalidArgument("--n is " + std::to_string(flags.request.sampling.n) + "; it must be at least 1");
  ASSIGN_OR_RETURN(EngineOptions options, MakeEngineOptions(flags.engine, std::move(specs), flags.request.sampling.n));
  ASSIGN_OR_RETURN(GenerationRequest request, MakeRequest(flags.request));

  const bool ids_only = !flags.token_ids_file.empty();
  ASSIGN_OR_RETURN(auto engine, ids_only ? OpenEngineForTokenIds(seat, std::move(options)) : OpenEngine(seat, std::move(options)));
  ASSIGN_OR_RETURN(request.prompt, MakePrompt(flags, *engine));
  const int64_t prompt_tokens = static_cast<int64_t>(request.prompt.size());

  const bool stream = !json && flags.request.sampling.n == 1;
  std::vector<Output> outputs(flags.request.sampling.n);
  Status failure;
  Progress progress("prefill");
  bool prefilling = true;
  ASSIGN_OR_RETURN(const std::string id, engine->Submit(std::move(request), [&](const TokenEvent& event) {
    if (prefilling) progress.Finish();
    prefilling = false;
    if (!event.status.ok()) failure = event.status;
    Output& output = outputs[event.sequence];
    output.ids.insert(output.ids.end(), event.token_ids.begin(), event.token_ids.end());
    output.text += event.text;
    output.logprobs.insert(output.logprobs.end(), event.logprobs.begin(), event.logprobs.end());
    if (event.finished) output.last = event;
    if (stream) WriteOut(event.text);
  }));
  const Status ended = RunToEnd(*engine, {id}, [&] {
    if (!prefilling) return;
    const int64_t done = engine->Stats().prompt_tokens;
    progress.Update(static_cast<double>(done) / prompt_tokens,
                    std::to_string(done) + " of " + std::to_string(prompt_tokens) + " tokens");
  });
  progress.Finish();
  RETURN_IF_ERROR(failure);
  if (!ended.ok() && !Interrupted()) return ended;

  RequestTimings timings = outputs.front().last.timings;
  int64_t generated = 0;
  for (const Output& output : outputs) {
    generated += static_cast<int64_t>(output.ids.size());
    timings.decode_s = std::max(timings.decode_s, output.last.timings.decode_s);
  }
  // The first token of each sequence comes from the prompt's last row, so decoding made one less.
  const int64_t decoded = std::max<int64_t>(0, generated - static_cast<int64_t>(outputs.size()));
  const double prefill_rate = timings.prefill_s > 0 ? prompt_tokens / timings.prefill_s : 0;
  const double decode_rate = timings.decode_s > 0 ? decoded / timings.decode_s : 0;
  if (json) {
    WriteJson(ReportJson(flags, *engine, spec, outputs, prompt_tokens, timings, prefill_rate, decode_rate));
    return ended;
  }
  if (!stream) {
    for (size_t i = 0; i < outputs.size(); ++i) WriteOut("[" + std::to_string(i) + "] " + outputs[i].text + "\n");
  } else {
    WriteOut("\n");
  }
  for (size_t i = 0; flags.request.logprobs >= 0 && i < outputs.size(); ++i) {
    std::vector<std::vector<std::string>> table = {{"token", "logprob"}};
    for (const TokenLogprobs& token : outputs[i].logprobs) {
      table.push_back({std::to_string(token.chosen.id), Fixed(token.chosen.logprob, 4)});
    }
    WriteTable(table);
  }
  const AttentionReads usage = UsageOf(outputs);
  std::fprintf(stderr,
               "quire: %lld prompt tokens at %.1f tok/s, %lld generated at %.1f tok/s (first after %.2f s); "
               "attention %s: pages read %lld of %lld\n",
               static_cast<long long>(prompt_tokens), prefill_rate, static_cast<long long>(generated), decode_rate,
               timings.ttft_s, spec.ToString().c_str(), static_cast<long long>(usage.pages_read),
               static_cast<long long>(usage.pages_total));
  if (flags.engine.missing_mass_bound) {
    const std::string said = usage.bounds > 0
                                 ? "of the attention at most " + Fixed(usage.missing_mass_bound(), 4) + " may have been left out (mean)"
                                 : "nothing was chosen by page metadata, so there is no bound of the attention left out";
    std::fprintf(stderr, "quire: %s\n", said.c_str());
  }
  return ended;
}

}  // namespace

Command AddGenerate(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand("generate", "Writes what a model makes of a prompt, as it comes");
  auto flags = std::make_shared<GenerateFlags>();
  app->footer(R"(
Examples
  quire generate --model DIR --prompt "Once upon a time"                       greedy: the same text every time
  quire generate --model M.gguf --chat --prompt "Name three rivers." --temperature 0.8 --top-p 0.95 --seed 7
  quire generate --model M.gguf --prompt-file book.txt --attention quest:token_budget=512 --format json
The text goes to stdout, progress and the line of figures to stderr. Ctrl-C ends it and prints what there is.)");
  app->add_option("--prompt,-p", flags->prompt, "the text to go on from")->each([flags](const std::string&) {
    flags->prompt_given = true;
  });
  app->add_option("--prompt-file,-f", flags->prompt_file, "the same from a file; - is stdin");
  app->add_option("--token-ids-file", flags->token_ids_file, "the same as a JSON array of token ids");
  app->add_flag("--chat", flags->chat, "wrap the prompt in the model's chat template");
  app->add_option("--system", flags->system, "system message, with --chat");
  AddFormatFlag(*app, &flags->format);
  AddRequestFlags(*app, &flags->request);
  AddAttentionFlags(*app, &flags->attention, /*lists=*/false);
  AddEngineFlags(*app, &flags->engine);
  return {app, [flags] {
            return RunGroup(GroupOf(flags->engine),
                            [&](const Seat& seat) { return RunGenerate(*flags, seat); });
          }};
}

}  // namespace quire::launch

// quire client: `quire generate` with the model somewhere else; and what an operator asks of a service.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "launch/command.h"
#include "launch/flags.h"
#include "launch/output.h"
#include "launch/request_flags.h"
#include "launch/session.h"
#include "launch/signals.h"
#include "launch/token_json.h"
#include "rpc/client.h"

namespace quire::launch {
namespace {

struct ClientFlags {
  std::string address = "127.0.0.1:50051";
  std::string prompt_file, token_ids_file, system, model, attention, request_id, format = "text";
  std::vector<std::string> prompts;
  bool chat = false, info = false, drain = false;
  double connect_timeout = 10, retry = 60, timeout = 0;
  int priority = 0;
  bool seed_given = false;
  uint64_t seed = 0;
  RequestFlags request;
};

struct Output {
  std::vector<int32_t> ids;
  std::string text;
  std::vector<TokenLogprobs> logprobs;
  TokenEvent last;
};

Result<std::vector<ClientPrompt>> MakePrompts(const ClientFlags& flags) {
  const int sources = !flags.prompts.empty() + !flags.prompt_file.empty() + !flags.token_ids_file.empty();
  if (sources != 1) {
    return InvalidArgument("give exactly one of --prompt, --prompt-file and --token-ids-file, not " +
                           std::to_string(sources));
  }
  if (!flags.system.empty() && !flags.chat) return InvalidArgument("--system needs --chat");
  std::vector<ClientPrompt> prompts;
  if (!flags.token_ids_file.empty()) {
    if (flags.chat) return InvalidArgument("--chat needs text: give --prompt or --prompt-file, not --token-ids-file");
    prompts.emplace_back();
    ASSIGN_OR_RETURN(prompts.back().token_ids, ReadTokenIds(flags.token_ids_file));
    return prompts;
  }
  std::vector<std::string> texts = flags.prompts;
  if (!flags.prompt_file.empty()) {
    ASSIGN_OR_RETURN(std::string text, ReadText(flags.prompt_file));
    texts.push_back(std::move(text));
  }
  for (const std::string& text : texts) {
    if (const size_t offset = FindInvalidUtf8(text); offset != std::string::npos) {
      return InvalidArgument("--prompt is not valid UTF-8 at byte " + std::to_string(offset));
    }
    ClientPrompt& prompt = prompts.emplace_back();
    if (!flags.chat) {
      prompt.text = text;
      continue;
    }
    if (!flags.system.empty()) prompt.messages.push_back({"system", flags.system});
    prompt.messages.push_back({"user", text});
  }
  return prompts;
}

Json ReportJson(const ClientFlags& flags, const std::vector<Output>& outputs) {
  Json json;
  json["request_id"] = outputs.front().last.request_id;
  json["sequences"] = Json::array();
  const int n = flags.request.sampling.n;
  for (size_t i = 0; i < outputs.size(); ++i) {
    const Output& output = outputs[i];
    const TokenEvent& last = output.last;
    Json sequence;
    sequence["prompt"] = static_cast<int>(i) / n;
    sequence["token_ids"] = output.ids;
    sequence["text"] = output.text;
    sequence["finish_reason"] = FinishReasonName(last.reason);
    if (flags.request.logprobs >= 0) {
      sequence["logprobs"] = Json::array();
      for (const TokenLogprobs& token : output.logprobs) sequence["logprobs"].push_back(TokenJson(token));
    }
    sequence["usage"] = {{"prompt_tokens", last.prompt_tokens}, {"completion_tokens", last.completion_tokens}};
    sequence["timings"] = {{"queue_s", last.timings.queue_s},
                           {"prefill_s", last.timings.prefill_s},
                           {"decode_s", last.timings.decode_s},
                           {"ttft_s", last.timings.ttft_s}};
    sequence["attention"] = {{"pages_read", last.attention.pages_read}, {"pages_total", last.attention.pages_total}};
    json["sequences"].push_back(std::move(sequence));
  }
  return json;
}

Status PrintInfo(Client& client, bool json) {
  ASSIGN_OR_RETURN(const ServiceInfo info, client.Info());
  ASSIGN_OR_RETURN(const ServiceLoad load, client.Load());
  Json out;
  out["model"] = info.model;
  out["role"] = info.role;
  out["version"] = info.version;
  out["state"] = info.state;
  out["detail"] = info.detail;
  out["host"] = info.host;
  out["pid"] = info.pid;
  out["tensor_parallel_size"] = info.tensor_parallel_size;
  out["max_model_len"] = info.max_model_len;
  out["has_tokenizer"] = info.has_tokenizer;
  out["has_chat_template"] = info.has_chat_template;
  out["attention"] = info.attention;
  out["load"] = {{"groups", load.groups},
                 {"available_groups", load.available_groups},
                 {"running", load.running},
                 {"waiting", load.waiting},
                 {"tokens_in_flight", load.tokens_in_flight},
                 {"pages_free", load.pages_free},
                 {"pages_total", load.pages_total},
                 {"requests_finished", load.requests_finished},
                 {"prompt_tokens", load.prompt_tokens},
                 {"generation_tokens", load.generation_tokens}};
  if (json) {
    WriteJson(out);
    return OkStatus();
  }
  std::vector<std::vector<std::string>> table = {{"", ""}};
  const auto add = [&table](const std::string& name, const Json& value) {
    table.push_back({name, value.is_string() ? value.get<std::string>() : value.dump()});
  };
  for (const auto& [name, value] : out.items()) {
    if (name != "load") add(name, value);
  }
  for (const auto& [name, value] : out["load"].items()) add(name, value);
  WriteTable(table);
  return OkStatus();
}

Status RunClient(const ClientFlags& flags) {
  const bool json = flags.format == "json";
  const bool asks = flags.info || flags.drain;
  ClientRequest request;
  if (!asks) {
    ASSIGN_OR_RETURN(request.parameters, MakeRequest(flags.request));
    ASSIGN_OR_RETURN(request.prompts, MakePrompts(flags));
    if (flags.request.sampling.n < 1) {
      return InvalidArgument("--n is " + std::to_string(flags.request.sampling.n) + "; it must be at least 1");
    }
    if (!flags.attention.empty()) {
      ASSIGN_OR_RETURN(request.parameters.attention, AttentionSpec::Parse(flags.attention));
    }
    if (flags.seed_given) request.parameters.sampling.seed = flags.seed;
    request.parameters.request_id = flags.request_id;
    request.parameters.priority = flags.priority;
    request.model = flags.model;
    request.timeout_s = flags.timeout;
  }
  ClientOptions options;
  options.address = flags.address;
  options.connect_s = flags.connect_timeout;
  options.retry_s = flags.retry;
  ASSIGN_OR_RETURN(const auto client, Client::Connect(std::move(options)));
  if (flags.info) return PrintInfo(*client, json);
  if (flags.drain) return client->Drain(std::nullopt);

  const int n = flags.request.sampling.n;
  std::vector<Output> outputs(request.prompts.size() * static_cast<size_t>(n));
  const bool stream = !json && outputs.size() == 1;
  Status misplaced;
  const Status status = client->Generate(
      request,
      [&](const ClientChunk& chunk) {
        const TokenEvent& event = chunk.event;
        const size_t place = static_cast<size_t>(chunk.prompt) * n + static_cast<size_t>(event.sequence);
        if (chunk.prompt < 0 || event.sequence < 0 || event.sequence >= n || place >= outputs.size()) {
          misplaced = Internal("the service sent a chunk of a sequence that was not asked for");
          return;
        }
        Output& output = outputs[place];
        output.ids.insert(output.ids.end(), event.token_ids.begin(), event.token_ids.end());
        output.text += event.text;
        output.logprobs.insert(output.logprobs.end(), event.logprobs.begin(), event.logprobs.end());
        if (event.finished) output.last = event;
        if (stream) WriteOut(event.text);
      },
      [] { return Interrupted() || OutputBroken(); });
  RETURN_IF_ERROR(misplaced);
  if (!status.ok() && !Interrupted()) return status;
  const Status ended = Interrupted() ? Cancelled("interrupted") : OkStatus();
  if (json) {
    WriteJson(ReportJson(flags, outputs));
    return ended;
  }
  if (stream) {
    WriteOut("\n");
  } else {
    for (size_t i = 0; i < outputs.size(); ++i) WriteOut("[" + std::to_string(i) + "] " + outputs[i].text + "\n");
  }
  const TokenEvent& last = outputs.front().last;
  int64_t generated = 0;
  double decode = 0;
  for (const Output& output : outputs) {
    generated += static_cast<int64_t>(output.ids.size());
    decode = std::max(decode, output.last.timings.decode_s);
  }
  const int64_t decoded = std::max<int64_t>(0, generated - static_cast<int64_t>(outputs.size()));
  std::fprintf(stderr, "quire: %d prompt tokens, %lld generated at %.1f tok/s (first after %.2f s)\n",
               last.prompt_tokens, static_cast<long long>(generated),
               decode > 0 ? static_cast<double>(decoded) / decode : 0.0, last.timings.ttft_s);
  return ended;
}

}  // namespace

Command AddClient(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand("client", "Asks a service (quire serve, quire coordinator) for text");
  auto flags = std::make_shared<ClientFlags>();
  app->footer(R"(
Examples
  quire client --address 127.0.0.1:50051 --prompt "Once upon a time" --max-tokens 60
  quire client --chat --prompt "Name three rivers." --temperature 0.8 --seed 7 --format json
  quire client --info
The text goes to stdout as it comes. A stream whose connection breaks is taken up again where it was.)");
  AddFlag(*app, "--address", &flags->address, "HOST:PORT of the service");
  app->add_option("--prompt,-p", flags->prompts, "the text to go on from; may be repeated")->allow_extra_args(false);
  app->add_option("--prompt-file,-f", flags->prompt_file, "the same from a file; - is stdin");
  app->add_option("--token-ids-file", flags->token_ids_file, "the same as a JSON array of token ids");
  app->add_flag("--chat", flags->chat, "let the service wrap the prompt in the model's chat template");
  app->add_option("--system", flags->system, "system message, with --chat");
  app->add_option("--attention", flags->attention, "one of the service's policies, options after colons; empty: its default");
  app->add_option("--served-model-name", flags->model, "refuse to be answered by another model");
  app->add_option("--request-id", flags->request_id, "name of the request; empty: one is made");
  app->add_option("--priority", flags->priority, "lower runs first")->capture_default_str();
  app->add_option("--seed", flags->seed, "of the draws; none: the service chooses")->each([flags](const std::string&) {
    flags->seed_given = true;
  });
  app->add_option("--timeout", flags->timeout, "seconds for the whole answer; 0: no limit")->capture_default_str();
  app->add_option("--connect-timeout", flags->connect_timeout, "seconds to reach the service")->capture_default_str();
  app->add_option("--retry", flags->retry, "seconds to try again when the service is unavailable; 0: none")
      ->capture_default_str();
  app->add_flag("--info", flags->info, "print what the service is and how busy");
  app->add_flag("--drain", flags->drain, "let the service finish what runs, and end");
  AddFormatFlag(*app, &flags->format);
  AddRequestFlags(*app, &flags->request);
  return {app, [flags] { return RunClient(*flags); }};
}

}  // namespace quire::launch

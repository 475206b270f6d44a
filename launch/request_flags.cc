// See request_flags.h.
#include "launch/request_flags.h"

#include <cstdio>
#include <map>
#include <utility>

namespace quire::launch {
namespace {

Result<std::map<int32_t, float>> ParseLogitBias(const std::vector<std::string>& entries) {
  std::map<int32_t, float> bias;
  for (const std::string& entry : entries) {
    int id = 0;
    float value = 0;
    char rest = 0;
    if (std::sscanf(entry.c_str(), "%d=%f%c", &id, &value, &rest) != 2) {
      return InvalidArgument("--logit-bias has the entry \"" + entry + "\"; it takes ID=BIAS, as in 42=-3.5");
    }
    bias[id] = value;
  }
  return bias;
}

}  // namespace

void AddRequestFlags(CLI::App& app, RequestFlags* flags) {
  app.add_option("--max-tokens,-n", flags->stopping.max_tokens, "most tokens to generate")->capture_default_str();
  const std::string sampling = "Sampling";
  SamplingParams& s = flags->sampling;
  auto number = [&](const std::string& name, auto* value, const std::string& help) {
    app.add_option(name, *value, help)->capture_default_str()->group(sampling);
  };
  number("--temperature", &s.temperature, "0: greedy, the most probable token each time");
  number("--top-k", &s.top_k, "draw from the K most probable tokens; 0: all");
  number("--top-p", &s.top_p, "draw from the fewest tokens whose probabilities reach P");
  number("--min-p", &s.min_p, "drop tokens less probable than P × the most probable one");
  number("--repetition-penalty", &s.repetition_penalty, "over prompt and output; 1: none");
  number("--presence-penalty", &s.presence_penalty, "over output; 0: none");
  number("--frequency-penalty", &s.frequency_penalty, "over output, by count; 0: none");
  app.add_option("--logit-bias", flags->logit_bias, "ID=BIAS, added to that token's logit; may be repeated")
      ->group(sampling);
  number("--n", &s.n, "sequences from the one prompt");
  number("--logprobs", &flags->logprobs, "log-probability of each token and of the N best; -1: none");
  const std::string stopping = "Stopping";
  app.add_option("--stop", flags->stopping.stop, "text that ends a sequence; may be repeated")
      ->allow_extra_args(false)
      ->group(stopping);
  app.add_option("--stop-token-ids", flags->stopping.stop_token_ids, "ids that end a sequence")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->group(stopping);
  app.add_option("--min-tokens", flags->stopping.min_tokens, "nothing ends a sequence before")
      ->capture_default_str()
      ->group(stopping);
  app.add_flag("--ignore-eos", flags->stopping.ignore_eos, "go on after the model's end token")->group(stopping);
  app.add_flag("--include-stop", flags->stopping.include_stop, "keep the stop text in the output")->group(stopping);
}

Result<GenerationRequest> MakeRequest(const RequestFlags& flags) {
  GenerationRequest request;
  request.sampling = flags.sampling;
  ASSIGN_OR_RETURN(request.sampling.logit_bias, ParseLogitBias(flags.logit_bias));
  request.stopping = flags.stopping;
  request.logprobs = flags.logprobs;
  return request;
}

}  // namespace quire::launch

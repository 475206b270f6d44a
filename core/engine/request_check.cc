#include "core/engine/request_check.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <sstream>
#include <string>

namespace quire {
namespace {

constexpr int kMaxSequences = 1024;  // n of one request
constexpr size_t kMaxStops = 256;

template <typename T>
Status Bad(const char* name, const T& value, const char* allowed) {
  std::ostringstream out;
  out << name << " is " << value << "; it must be " << allowed;
  return InvalidArgument(out.str());
}

Status CheckIds(const char* what, const std::vector<int32_t>& ids, int64_t vocab) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab) {
      return InvalidArgument(std::string(what) + " has token id " + std::to_string(ids[i]) + " at index " +
                             std::to_string(i) + "; the model's ids are 0 to " + std::to_string(vocab - 1));
    }
  }
  return OkStatus();
}

// Comparisons are written so that NaN fails them.
Status CheckSampling(const SamplingParams& s, int64_t vocab) {
  if (!(s.temperature >= 0) || std::isinf(s.temperature)) {
    return Bad("temperature", s.temperature, "a finite number ≥ 0 (0 is greedy)");
  }
  if (s.top_k < -1) return Bad("top_k", s.top_k, "≥ 1, or 0 or −1 for all tokens");
  if (!(s.top_p > 0 && s.top_p <= 1)) return Bad("top_p", s.top_p, "in (0, 1]");
  if (!(s.min_p >= 0 && s.min_p <= 1)) return Bad("min_p", s.min_p, "in [0, 1]");
  if (s.n < 1 || s.n > kMaxSequences) return Bad("n", s.n, "1 to 1024");
  if (!(s.repetition_penalty > 0 && s.repetition_penalty <= 100)) {
    return Bad("repetition_penalty", s.repetition_penalty, "in (0, 100]");
  }
  if (!(s.presence_penalty >= -2 && s.presence_penalty <= 2)) {
    return Bad("presence_penalty", s.presence_penalty, "in [−2, 2]");
  }
  if (!(s.frequency_penalty >= -2 && s.frequency_penalty <= 2)) {
    return Bad("frequency_penalty", s.frequency_penalty, "in [−2, 2]");
  }
  for (const auto& [id, bias] : s.logit_bias) {
    if (id < 0 || id >= vocab) {
      return InvalidArgument("logit_bias names token id " + std::to_string(id) + "; the model's ids are 0 to " +
                             std::to_string(vocab - 1));
    }
    if (!(bias >= -100 && bias <= 100)) return Bad("a value of logit_bias", bias, "in [−100, 100]");
  }
  return OkStatus();
}

Status CheckStopping(const StoppingParams& s, const RequestLimits& limits) {
  if (s.max_tokens < 1) return Bad("max_tokens", s.max_tokens, "at least 1");
  if (s.min_tokens < 0 || s.min_tokens > s.max_tokens) {
    return Bad("min_tokens", s.min_tokens, ("0 to max_tokens (" + std::to_string(s.max_tokens) + ")").c_str());
  }
  if (s.stop.size() > kMaxStops) return Bad("the number of stop strings", s.stop.size(), "at most 256");
  for (const std::string& stop : s.stop) {
    if (stop.empty()) return InvalidArgument("a stop string is empty; leave it out instead");
  }
  if (!s.stop.empty() && !limits.has_tokenizer) {
    return InvalidArgument("stop strings need a tokenizer, and this engine runs without one; use stop_token_ids");
  }
  return CheckIds("stop_token_ids", s.stop_token_ids, limits.vocab);
}

Status CheckResume(const GenerationRequest& request, const RequestLimits& limits) {
  const GenerationRequest::Resume& resume = *request.resume;
  if (resume.sequence < 0 || resume.sequence >= kMaxSequences) {
    return Bad("the sequence to resume", resume.sequence, "0 to 1023");
  }
  if (request.sampling.n != 1) return Bad("n", request.sampling.n, "1 when a sequence is resumed");
  if (!request.forced.empty()) return InvalidArgument("tokens are forced in a resumed sequence; give one or the other");
  if (request.sampling.temperature > 0 && !request.sampling.seed.has_value()) {
    return InvalidArgument("a resumed sequence has no seed; give the one that its first tokens were drawn with");
  }
  const auto tokens = static_cast<int64_t>(resume.tokens.size());
  if (tokens >= request.stopping.max_tokens) {
    return Bad("the number of tokens to resume behind", tokens,
               ("less than max_tokens (" + std::to_string(request.stopping.max_tokens) + ")").c_str());
  }
  if (static_cast<int64_t>(request.prompt.size()) + tokens >= limits.max_model_len) {
    return InvalidArgument("the prompt's " + std::to_string(request.prompt.size()) + " and " + std::to_string(tokens) +
                           " tokens to resume behind leave no room in the context of " +
                           std::to_string(limits.max_model_len));
  }
  return CheckIds("the tokens to resume behind", resume.tokens, limits.vocab);
}

}  // namespace

const char* FinishReasonName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kUnspecified: return "";
    case FinishReason::kStop: return "stop";
    case FinishReason::kLength: return "length";
    case FinishReason::kAborted: return "aborted";
  }
  return "";
}

Result<AttentionSpec> ResolveAttention(const std::optional<AttentionSpec>& wanted,
                                       const std::vector<AttentionSpec>& attention, int page_size) {
  if (!wanted.has_value()) return attention.front();
  std::string allowed;
  for (const AttentionSpec& spec : attention) {
    if (spec == *wanted) return spec;
    allowed += (allowed.empty() ? "" : ", ") + spec.ToString();
  }
  const auto same_name = [&](const AttentionSpec& spec) { return spec.name == wanted->name; };
  const auto configured = std::find_if(attention.begin(), attention.end(), same_name);
  if (configured == attention.end()) {
    return InvalidArgument("attention '" + wanted->ToString() + "' is not among this engine's policies (" + allowed +
                           "); choose one of them, or start the engine with it");
  }
  AttentionSpec spec = *wanted;
  spec.options.insert(configured->options.begin(), configured->options.end());  // keeps those wanted
  ASSIGN_OR_RETURN(const auto policy, MakePolicy(spec, page_size));
  // Its options may ask for more than the engine's policies do.
  PageDataNeeds kept;
  int64_t map_capacity = 0;
  for (const AttentionSpec& known : attention) {
    ASSIGN_OR_RETURN(const auto one, MakePolicy(known, page_size));
    kept.min_max |= one->Declare().min_max;
    kept.codes |= one->Declare().codes;
    kept.history = std::max(kept.history, one->Declare().history);
    if (one->Declare().slot_map) map_capacity = std::max(map_capacity, one->capacity());
  }
  const PageDataNeeds needs = policy->Declare();
  if (needs.slot_map && policy->capacity() > map_capacity) {
    return InvalidArgument("attention '" + spec.ToString() + "' needs maps of " + std::to_string(policy->capacity()) +
                           " slots, and this engine keeps " +
                           (map_capacity > 0 ? "some of " + std::to_string(map_capacity) : std::string("none")) +
                           "; start the engine with it");
  }
  if ((needs.min_max && !kept.min_max) || (needs.codes && !kept.codes) || needs.history > kept.history) {
    return InvalidArgument("attention '" + spec.ToString() + "' needs " +
                           (needs.history > kept.history
                                ? std::to_string(needs.history) + " floats of history a page, and this engine keeps " +
                                      std::to_string(kept.history)
                                : std::string(needs.codes && kept.min_max ? "page metadata in 8 bits" : "page metadata") +
                                      ", and this engine keeps none") +
                           "; start the engine with it");
  }
  return spec;
}

Status CheckBranches(const std::vector<std::string>& branches, int page_size) {
  std::unique_ptr<AttentionPolicy> first;
  AttentionSpec first_spec;
  for (const std::string& branch : branches) {
    ASSIGN_OR_RETURN(const AttentionSpec spec, AttentionSpec::Parse(branch));
    ASSIGN_OR_RETURN(auto policy, MakePolicy(spec, page_size));
    if (policy->capacity() > 0) {
      return InvalidArgument("attention '" + branch + "' evicts from the prompt, which other branches of the request " +
                             "need; give it a request of its own");
    }
    if (first == nullptr) {
      first = std::move(policy);
      first_spec = spec;
    } else if (!RememberAlike({first_spec, *first}, {spec, *policy})) {
      return InvalidArgument("attention '" + branch + "' remembers another thing of a prompt than '" +
                             first_spec.ToString() + "'; give it a request of its own");
    }
  }
  return OkStatus();
}

Status CheckRequest(const GenerationRequest& request, const RequestLimits& limits) {
  if (request.prompt.empty()) return InvalidArgument("the prompt is empty; give at least one token (BOS, say)");
  const int64_t prompt = static_cast<int64_t>(request.prompt.size());
  if (prompt >= limits.max_model_len) {
    return InvalidArgument("the prompt has " + std::to_string(prompt) +
                           " tokens; with at least one to generate it must " + "be shorter than the context of " +
                           std::to_string(limits.max_model_len) + " (--max-model-len)");
  }
  RETURN_IF_ERROR(CheckIds("the prompt", request.prompt, limits.vocab));
  RETURN_IF_ERROR(CheckSampling(request.sampling, limits.vocab));
  RETURN_IF_ERROR(CheckStopping(request.stopping, limits));
  if (request.logprobs < -1 || request.logprobs > limits.vocab) {
    return Bad("logprobs", request.logprobs, "−1 (none) to the size of the vocabulary");
  }
  if (request.prompt_logprobs < -1 || request.prompt_logprobs > limits.vocab) {
    return Bad("prompt_logprobs", request.prompt_logprobs, "−1 (none) to the size of the vocabulary");
  }
  if (!request.forced.empty()) {
    RETURN_IF_ERROR(CheckIds("the forced tokens", request.forced, limits.vocab));
    if (request.sampling.n != 1 && request.branches.empty()) {
      return Bad("n", request.sampling.n, "1 when tokens are forced");
    }
    if (prompt + static_cast<int64_t>(request.forced.size()) > limits.max_model_len) {
      return InvalidArgument("the prompt's " + std::to_string(prompt) + " and " +
                             std::to_string(request.forced.size()) + " forced tokens are more than the context of " +
                             std::to_string(limits.max_model_len));
    }
  }
  if (!request.branches.empty() && static_cast<int64_t>(request.branches.size()) != request.sampling.n) {
    return Bad("n", request.sampling.n, "the number of branches");
  }
  return request.resume.has_value() ? CheckResume(request, limits) : OkStatus();
}

SamplerParams MakeSamplerParams(const GenerationRequest& request, uint64_t seed, const std::vector<int32_t>& stop_ids) {
  const SamplingParams& s = request.sampling;
  SamplerParams p;
  p.temperature = s.temperature;
  p.top_k = s.top_k > 0 ? s.top_k : 0;
  p.top_p = s.top_p;
  p.min_p = s.min_p;
  p.repetition_penalty = s.repetition_penalty;
  p.presence_penalty = s.presence_penalty;
  p.frequency_penalty = s.frequency_penalty;
  p.seed = seed;
  p.logprobs = request.logprobs;
  p.min_tokens = request.stopping.min_tokens;
  p.logit_bias.assign(s.logit_bias.begin(), s.logit_bias.end());
  p.masked_ids = stop_ids;
  return p;
}

}  // namespace quire

// See convert.h.
#include "rpc/convert.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <string>
#include <utility>

namespace quire::rpc {
namespace {

constexpr size_t kMaxIdBytes = 256;
constexpr size_t kMaxParameterBytes = 8 << 20;  // a bias for each of 256k ids takes 3 MiB

Status ReadAttention(const v1::Attention& message, GenerationRequest* request) {
  if (message.policy().empty() && !message.has_token_budget() && message.options().empty()) return OkStatus();
  if (message.policy().empty()) {
    return InvalidArgument("attention has options but no policy; name one of those that GetModelInfo lists");
  }
  AttentionSpec spec;
  spec.name = message.policy();
  for (const auto& [name, value] : message.options()) spec.options[name] = value;
  if (message.has_token_budget()) {
    if (message.token_budget() < 1) {
      return InvalidArgument("attention.token_budget is " + std::to_string(message.token_budget()) +
                             "; it must be at least 1");
    }
    const std::string budget = std::to_string(message.token_budget());
    const auto [at, added] = spec.options.emplace("token_budget", budget);
    if (!added && at->second != budget) {
      return InvalidArgument("attention.token_budget is " + budget + ", and options say " + at->second +
                             "; give one of them");
    }
  }
  request->attention = std::move(spec);
  return OkStatus();
}

// GenerateRequest and Submission name these fields alike.
template <typename Message>
Status ReadShared(const Message& m, GenerationRequest* r) {
  const v1::Sampling& s = m.sampling();
  if (s.has_temperature()) r->sampling.temperature = s.temperature();
  if (s.has_top_k()) r->sampling.top_k = s.top_k();
  if (s.has_top_p()) r->sampling.top_p = s.top_p();
  if (s.has_min_p()) r->sampling.min_p = s.min_p();
  if (s.has_seed()) r->sampling.seed = s.seed();
  if (s.has_n()) r->sampling.n = s.n();
  const v1::Penalties& p = m.penalties();
  if (p.has_repetition_penalty()) r->sampling.repetition_penalty = p.repetition_penalty();
  if (p.has_presence_penalty()) r->sampling.presence_penalty = p.presence_penalty();
  if (p.has_frequency_penalty()) r->sampling.frequency_penalty = p.frequency_penalty();
  for (const auto& [id, bias] : m.logit_bias()) r->sampling.logit_bias[id] = bias;
  const v1::Stopping& stop = m.stopping();
  if (stop.has_max_tokens()) r->stopping.max_tokens = stop.max_tokens();
  if (stop.has_min_tokens()) r->stopping.min_tokens = stop.min_tokens();
  r->stopping.stop.assign(stop.stop().begin(), stop.stop().end());
  r->stopping.stop_token_ids.assign(stop.stop_token_ids().begin(), stop.stop_token_ids().end());
  if (stop.has_ignore_eos()) r->stopping.ignore_eos = stop.ignore_eos();
  if (stop.has_include_stop()) r->stopping.include_stop = stop.include_stop();
  if (m.response().has_logprobs()) r->logprobs = m.response().logprobs();
  if (m.response().has_prompt_logprobs()) r->prompt_logprobs = m.response().prompt_logprobs();
  if (m.has_priority()) r->priority = m.priority();
  return ReadAttention(m.attention(), r);
}

template <typename Message>
void WriteShared(const GenerationRequest& r, Message* m) {
  v1::Sampling* s = m->mutable_sampling();
  s->set_temperature(r.sampling.temperature);
  s->set_top_k(r.sampling.top_k);
  s->set_top_p(r.sampling.top_p);
  s->set_min_p(r.sampling.min_p);
  if (r.sampling.seed.has_value()) s->set_seed(*r.sampling.seed);
  s->set_n(r.sampling.n);
  v1::Penalties* p = m->mutable_penalties();
  p->set_repetition_penalty(r.sampling.repetition_penalty);
  p->set_presence_penalty(r.sampling.presence_penalty);
  p->set_frequency_penalty(r.sampling.frequency_penalty);
  for (const auto& [id, bias] : r.sampling.logit_bias) (*m->mutable_logit_bias())[id] = bias;
  v1::Stopping* stop = m->mutable_stopping();
  stop->set_max_tokens(r.stopping.max_tokens);
  stop->set_min_tokens(r.stopping.min_tokens);
  for (const std::string& text : r.stopping.stop) stop->add_stop(text);
  for (const int32_t id : r.stopping.stop_token_ids) stop->add_stop_token_ids(id);
  stop->set_ignore_eos(r.stopping.ignore_eos);
  stop->set_include_stop(r.stopping.include_stop);
  m->mutable_response()->set_logprobs(r.logprobs);
  m->mutable_response()->set_prompt_logprobs(r.prompt_logprobs);
  if (r.attention.has_value()) {
    m->mutable_attention()->set_policy(r.attention->name);
    for (const auto& [name, value] : r.attention->options) (*m->mutable_attention()->mutable_options())[name] = value;
  }
  m->set_priority(r.priority);
}

}  // namespace

Status ReadParameters(const v1::GenerateRequest& message, GenerationRequest* request) {
  return ReadShared(message, request);
}

void WriteParameters(const GenerationRequest& request, v1::GenerateRequest* message) { WriteShared(request, message); }

Status CheckParameterBytes(size_t message, size_t prompts) {
  const size_t bytes = message - std::min(message, prompts);
  if (bytes <= kMaxParameterBytes) return OkStatus();
  return InvalidArgument("the request has " + std::to_string(bytes) +
                         " bytes beside its prompts; it may have at most " + std::to_string(kMaxParameterBytes));
}

Status CheckRequestId(const std::string& id) {
  if (id.size() > kMaxIdBytes) {
    return InvalidArgument("request_id has " + std::to_string(id.size()) + " bytes; it may have at most " +
                           std::to_string(kMaxIdBytes));
  }
  for (const unsigned char c : id) {
    if (c < 0x20 || c == 0x7f) {
      return InvalidArgument("request_id has a control character (byte " + std::to_string(c) + "); leave it out");
    }
  }
  return OkStatus();
}

void WriteLogprobs(const TokenLogprobs& logprobs, v1::TokenLogprob* message) {
  message->set_id(logprobs.chosen.id);
  message->set_logprob(logprobs.chosen.logprob);
  message->mutable_top_ids()->Reserve(static_cast<int>(logprobs.top.size()));
  message->mutable_top_logprobs()->Reserve(static_cast<int>(logprobs.top.size()));
  for (const TokenLogprob& top : logprobs.top) {
    message->add_top_ids(top.id);
    message->add_top_logprobs(top.logprob);
  }
}

TokenLogprobs ReadLogprobs(const v1::TokenLogprob& message) {
  TokenLogprobs logprobs{{message.id(), message.logprob()}, {}};
  const int tops = std::min(message.top_ids_size(), message.top_logprobs_size());
  for (int i = 0; i < tops; ++i) logprobs.top.push_back({message.top_ids(i), message.top_logprobs(i)});
  return logprobs;
}

void WriteUsage(const TokenEvent& event, v1::Usage* usage) {
  usage->set_prompt_tokens(event.prompt_tokens);
  usage->set_completion_tokens(event.completion_tokens);
  usage->set_cached_tokens(0);
  usage->set_pages_read(event.attention.pages_read);
  usage->set_pages_total(event.attention.pages_total);
  usage->set_preemptions(event.preemptions);
}

void WriteTimings(const RequestTimings& timings, v1::Timings* message) {
  message->set_queue_s(timings.queue_s);
  message->set_prefill_s(timings.prefill_s);
  message->set_decode_s(timings.decode_s);
  message->set_ttft_s(timings.ttft_s);
}

RequestTimings ReadTimings(const v1::Timings& message) {
  return {message.queue_s(), message.prefill_s(), message.decode_s(), message.ttft_s()};
}

namespace {

void WriteDurations(const DurationHistogram& durations, v1::Durations* message) {
  message->mutable_counts()->Assign(durations.counts.begin(), durations.counts.end());
  message->set_sum(durations.sum);
}

void AddDurations(const v1::Durations& durations, v1::Durations* sum) {
  for (int i = 0; i < durations.counts_size(); ++i) {
    if (i == sum->counts_size()) sum->add_counts(0);
    sum->set_counts(i, sum->counts(i) + durations.counts(i));
  }
  sum->set_sum(sum->sum() + durations.sum());
}

}  // namespace

void WriteFinished(const FinishedSequences& finished, v1::FinishedSequences* message) {
  message->set_stop(finished.stop);
  message->set_length(finished.length);
  message->set_aborted(finished.aborted);
  WriteDurations(finished.time_to_first_token, message->mutable_time_to_first_token());
  WriteDurations(finished.e2e, message->mutable_e2e());
  WriteDurations(finished.time_per_output_token, message->mutable_time_per_output_token());
  WriteDurations(finished.queue, message->mutable_queue());
  WriteDurations(finished.prefill, message->mutable_prefill());
  WriteDurations(finished.decode, message->mutable_decode());
}

void AddFinished(const v1::FinishedSequences& finished, v1::FinishedSequences* sum) {
  sum->set_stop(sum->stop() + finished.stop());
  sum->set_length(sum->length() + finished.length());
  sum->set_aborted(sum->aborted() + finished.aborted());
  AddDurations(finished.time_to_first_token(), sum->mutable_time_to_first_token());
  AddDurations(finished.e2e(), sum->mutable_e2e());
  AddDurations(finished.time_per_output_token(), sum->mutable_time_per_output_token());
  AddDurations(finished.queue(), sum->mutable_queue());
  AddDurations(finished.prefill(), sum->mutable_prefill());
  AddDurations(finished.decode(), sum->mutable_decode());
}

v1::FinishReason WriteReason(FinishReason reason) {
  switch (reason) {
    case FinishReason::kUnspecified: return v1::FINISH_REASON_UNSPECIFIED;
    case FinishReason::kStop: return v1::FINISH_REASON_STOP;
    case FinishReason::kLength: return v1::FINISH_REASON_LENGTH;
    case FinishReason::kAborted: return v1::FINISH_REASON_ABORTED;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

FinishReason ReadReason(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP: return FinishReason::kStop;
    case v1::FINISH_REASON_LENGTH: return FinishReason::kLength;
    case v1::FINISH_REASON_ABORTED: return FinishReason::kAborted;
    default: return FinishReason::kUnspecified;
  }
}

void WriteSubmission(const GenerationRequest& request, v1::Submission* message) {
  WriteShared(request, message);
  message->mutable_id()->set_request_id(request.request_id);
  message->mutable_prompt_token_ids()->Assign(request.prompt.begin(), request.prompt.end());
  message->mutable_forced_token_ids()->Assign(request.forced.begin(), request.forced.end());
  if (request.resume.has_value()) {
    message->set_first_sequence(request.resume->sequence);
    message->mutable_output_token_ids()->Assign(request.resume->tokens.begin(), request.resume->tokens.end());
  }
}

Result<GenerationRequest> ReadSubmission(const v1::Submission& message) {
  GenerationRequest request;
  RETURN_IF_ERROR(ReadShared(message, &request));
  request.request_id = message.id().request_id();
  request.prompt.assign(message.prompt_token_ids().begin(), message.prompt_token_ids().end());
  request.forced.assign(message.forced_token_ids().begin(), message.forced_token_ids().end());
  if (message.first_sequence() < 0) {
    return InvalidArgument("first_sequence is " + std::to_string(message.first_sequence()) + "; it must be ≥ 0");
  }
  if (!message.has_sampling() || !message.sampling().has_seed()) {
    return InvalidArgument("a submission has no seed; the coordinator fixes it before it hands a request on");
  }
  if (request.sampling.n != 1 && (message.first_sequence() != 0 || message.output_token_ids_size() > 0)) {
    return InvalidArgument("n is " + std::to_string(request.sampling.n) +
                           "; a submission that names its first sequence or has output ids already is one sequence");
  }
  if (message.first_sequence() != 0 || message.output_token_ids_size() > 0) {
    request.resume.emplace();
    request.resume->sequence = message.first_sequence();
    request.resume->tokens.assign(message.output_token_ids().begin(), message.output_token_ids().end());
  }
  return request;
}

Status CheckEvent(const v1::TokenEvent& m) {
  const int tokens = m.token_ids_size();
  if (m.logprobs_size() != 0 && m.logprobs_size() != tokens) {
    return InvalidArgument("an event has " + std::to_string(tokens) + " tokens and " +
                           std::to_string(m.logprobs_size()) + " logprobs");
  }
  if (m.text_sizes_size() != 0 && m.text_sizes_size() != tokens) {
    return InvalidArgument("an event has " + std::to_string(tokens) + " tokens and " +
                           std::to_string(m.text_sizes_size()) + " sizes of text");
  }
  size_t sized = 0;
  for (const int32_t size : m.text_sizes()) {
    if (size < 0 || sized + static_cast<size_t>(size) > m.text().size()) {
      return InvalidArgument("an event's sizes of text don't fit its " + std::to_string(m.text().size()) + " bytes");
    }
    sized += static_cast<size_t>(size);
  }
  return OkStatus();
}

Status ReadEvent(const v1::TokenEvent& m, const std::function<void(TokenEvent&)>& callback) {
  RETURN_IF_ERROR(CheckEvent(m));
  const int tokens = m.token_ids_size();
  const bool finished = m.finish_reason() != v1::FINISH_REASON_UNSPECIFIED;
  size_t sized = 0;
  for (const int32_t size : m.text_sizes()) sized += static_cast<size_t>(size);
  // Text behind the last token's came with the end alone; the end is an event of its own then.
  const bool tail = finished && m.text_sizes_size() > 0 && sized < m.text().size();
  const int events = std::max(tokens, 1) + (tail ? 1 : 0);
  size_t at = 0;
  for (int i = 0; i < events; ++i) {
    const bool last = i + 1 == events;
    TokenEvent event;
    event.request_id = m.id().request_id();
    event.sequence = m.sequence_index();
    event.index = m.token_index() + i;
    if (i < tokens) event.token_ids = {m.token_ids(i)};
    if (i < m.logprobs_size()) event.logprobs.push_back(ReadLogprobs(m.logprobs(i)));
    if (i == 0) {
      for (const v1::TokenLogprob& prompt : m.prompt_logprobs()) {
        event.prompt_logprobs.push_back(prompt.has_id() ? std::optional(ReadLogprobs(prompt)) : std::nullopt);
      }
    }
    const size_t size = i < m.text_sizes_size() ? static_cast<size_t>(m.text_sizes(i)) : 0;
    event.text = last ? m.text().substr(at) : m.text().substr(at, size);
    at += size;
    if (last && finished) {
      event.finished = true;
      event.reason = ReadReason(m.finish_reason());
      event.matched_stop = m.stop();
      if (m.matched_stop_case() == v1::TokenEvent::kStopTokenId) event.matched_stop_id = m.stop_token_id();
      event.prompt_tokens = m.usage().prompt_tokens();
      event.completion_tokens = m.usage().completion_tokens();
      event.preemptions = m.usage().preemptions();
      event.attention = {m.usage().pages_read(), m.usage().pages_total()};
      event.timings = ReadTimings(m.timings());
    }
    callback(event);
  }
  return OkStatus();
}

}  // namespace quire::rpc

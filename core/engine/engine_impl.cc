// One step: inbox → plan → execute → tokens → events.
#include "core/engine/engine_impl.h"

#include <algorithm>
#include <string>
#include <utility>

#include "core/base/check.h"
#include "core/base/clock.h"
#include "core/engine/philox.h"
#include "core/engine/request_check.h"

namespace quire {

Result<std::string> EngineImpl::Submit(GenerationRequest request, EventCallback callback) {
  const EngineOptions& o = plan_.options;
  auto state = std::make_unique<RequestState>();
  ASSIGN_OR_RETURN(const AttentionSpec spec, ResolveAttention(request.attention, o.attention, o.page_size));
  ASSIGN_OR_RETURN(const auto policy, MakePolicy(spec, o.page_size));
  // A request's own options may ask for what the engine's don't.
  if (o.device == "cuda") RETURN_IF_ERROR(CheckRunsOnGpu(*policy, spec));
  RETURN_IF_ERROR(CheckEvicts(*policy, spec, plan_.executor.cache, o.max_model_len));
  // Positions inside what is kept don't end; the engine is ready for that if its own policies ask for it.
  const int64_t longest = policy->CountsInside() ? plan_.executor.limits.longest() : o.max_model_len;
  RETURN_IF_ERROR(CheckRequest(request, {config_.vocab, longest, tokenizer_ != nullptr}));
  for (const AttentionSpec& branch : request.branches) {
    ASSIGN_OR_RETURN(const AttentionSpec resolved, ResolveAttention(branch, o.attention, o.page_size));
    state->branches.push_back(resolved.ToString());
    if (o.device == "cuda") {
      ASSIGN_OR_RETURN(const auto other, MakePolicy(resolved, o.page_size));
      RETURN_IF_ERROR(CheckRunsOnGpu(*other, resolved));
    }
  }
  RETURN_IF_ERROR(CheckBranches(state->branches, o.page_size));
  state->attention = spec.ToString();
  state->capacity = policy->capacity();
  state->counts_inside = policy->CountsInside();
  const int64_t prompt = static_cast<int64_t>(request.prompt.size());
  state->dense_length = prompt;
  state->output_begin = prompt;
  state->max_output = request.forced.empty() ? std::min<int64_t>(request.stopping.max_tokens, longest - prompt)
                                             : static_cast<int64_t>(request.forced.size());
  state->stop_ids = request.stopping.stop_token_ids;
  if (!request.stopping.ignore_eos) {
    state->stop_ids.insert(state->stop_ids.end(), config_.eos_ids.begin(), config_.eos_ids.end());
  }
  std::sort(state->stop_ids.begin(), state->stop_ids.end());
  state->stop_ids.erase(std::unique(state->stop_ids.begin(), state->stop_ids.end()), state->stop_ids.end());
  // An eos of the config may lie outside the vocabulary of the weights.
  std::erase_if(state->stop_ids, [&](int32_t id) { return id < 0 || id >= config_.vocab; });
  auto first = std::make_unique<Sequence>();
  first->tokens = request.prompt;
  if (request.resume.has_value()) {
    first->index = request.resume->sequence;
    first->tokens.insert(first->tokens.end(), request.resume->tokens.begin(), request.resume->tokens.end());
    if (!request.resume->tokens.empty()) request.prompt_logprobs = -1;  // reported with the first token
  }
  if (request.prompt_logprobs >= 0) state->prompt_logprobs.emplace_back();
  state->callback = std::move(callback);
  state->sequences.push_back(std::move(first));
  state->unfinished = request.sampling.n;
  state->request = std::move(request);
  return Queue(std::move(state));
}

Result<std::string> EngineImpl::SubmitRandomCache(int64_t length, int steps, uint64_t seed,
                                                  std::optional<AttentionSpec> attention, EventCallback callback) {
  const EngineOptions& o = plan_.options;
  if (length < 0 || steps < 1 || length + steps > o.max_model_len) {
    return InvalidArgument("a cache of " + std::to_string(length) + " tokens and " + std::to_string(steps) +
                           " steps (at least 1) must fit in the context of " + std::to_string(o.max_model_len) +
                           " (--max-model-len)");
  }
  auto state = std::make_unique<RequestState>();
  ASSIGN_OR_RETURN(const AttentionSpec spec, ResolveAttention(attention, o.attention, o.page_size));
  ASSIGN_OR_RETURN(const auto policy, MakePolicy(spec, o.page_size));
  if (o.device == "cuda") RETURN_IF_ERROR(CheckRunsOnGpu(*policy, spec));
  RETURN_IF_ERROR(CheckEvicts(*policy, spec, plan_.executor.cache, o.max_model_len));
  state->attention = spec.ToString();
  state->capacity = policy->capacity();
  state->counts_inside = policy->CountsInside();
  state->dense_length = length;
  state->output_begin = length + 1;
  state->max_output = steps;
  state->random_cache = seed;
  state->callback = std::move(callback);
  state->request.sampling.temperature = 0;
  state->request.sampling.seed = seed;
  state->request.stopping.ignore_eos = true;
  state->request.attention = std::move(attention);
  auto first = std::make_unique<Sequence>();
  for (int64_t i = 0; i <= length; ++i) {
    const uint64_t bits = RandomBits(seed, 0, static_cast<uint64_t>(i), DrawPurpose::kRandomToken);
    first->tokens.push_back(static_cast<int32_t>(bits % static_cast<uint64_t>(config_.vocab)));
  }
  state->sequences.push_back(std::move(first));
  state->unfinished = 1;
  return Queue(std::move(state));
}

Result<std::string> EngineImpl::Queue(std::unique_ptr<RequestState> state) {
  const Status fits = scheduler_->CheckFits(*state);
  if (!fits.ok()) return fits.WithContext("the request can never run in this cache");
  state->submitted = NowSeconds();
  for (auto& sequence : state->sequences) sequence->request = state.get();
  std::lock_guard lock(inbox_mutex_);
  state->arrival = arrivals_;
  state->id = state->request.request_id;
  while (state->id.empty() || (state->request.request_id.empty() && ids_.contains(state->id))) {
    state->id = "request-" + std::to_string(arrivals_++);
  }
  if (!ids_.insert(state->id).second) {
    return Status(StatusCode::kAlreadyExists, "a request '" + state->id + "' is in flight; give another request_id");
  }
  ++arrivals_;
  const uint64_t seed = state->request.sampling.seed.value_or(
      RandomBits(plan_.options.seed, 0, state->arrival, DrawPurpose::kRequestSeed));
  state->sampler = MakeSamplerParams(state->request, seed, state->stop_ids);
  std::string id = state->id;
  submitted_.push_back(std::move(state));
  return id;
}

void EngineImpl::Cancel(const std::string& request_id) {
  std::lock_guard lock(inbox_mutex_);
  if (ids_.contains(request_id)) cancelled_.push_back(request_id);
}

void EngineImpl::StartDecoder(Sequence* sequence) {
  const StoppingParams& stopping = sequence->request->request.stopping;
  if (tokenizer_ != nullptr) sequence->decoder.emplace(tokenizer_.get(), /*skip_special=*/true);
  sequence->stops = StopMatcher(stopping.stop, stopping.include_stop);
  if (!sequence->decoder.has_value() || !sequence->request->request.resume.has_value()) return;
  // The text of a resumed sequence goes on where its tokens so far have left it.
  int outputs = 0;
  for (int32_t id : sequence->request->request.resume->tokens) {
    sequence->stops.Push(sequence->decoder->Push(id), ++outputs >= stopping.min_tokens);
  }
}

void EngineImpl::TakeInbox() {
  std::vector<std::unique_ptr<RequestState>> submitted;
  std::vector<std::string> cancelled;
  {
    std::lock_guard lock(inbox_mutex_);
    submitted.swap(submitted_);
    cancelled.swap(cancelled_);
  }
  for (auto& state : submitted) {
    scheduler_->Enqueue(state->sequences[0].get());
    std::string id = state->id;
    requests_.emplace(std::move(id), std::move(state));
  }
  for (const std::string& id : cancelled) {
    if (auto it = requests_.find(id); it != requests_.end()) Abort(it->second.get());
  }
}

// One last event for each sequence that has not had one, those that were never forked included.
void EngineImpl::Fail(RequestState* request, const Status& status) {
  const double now = NowSeconds();
  if (!request->spawned) {
    request->spawned = true;
    for (int i = 1; i < request->request.sampling.n; ++i) {
      request->sequences.push_back(std::make_unique<Sequence>());
      Sequence* child = request->sequences.back().get();
      child->request = request;
      child->index = i;
      child->tokens.assign(request->request.prompt.begin(), request->request.prompt.end());
      child->first_scheduled = request->sequences[0]->first_scheduled;
    }
  }
  for (const auto& sequence : request->sequences) {
    if (sequence->state == SequenceState::kFinished) continue;
    TokenEvent event;
    event.index = static_cast<int>(sequence->output_tokens());
    event.reason = FinishReason::kAborted;
    event.status = status;
    if (sequence->decoder.has_value()) event.text = sequence->stops.Finish();
    FinishSequence(sequence.get(), &event, now);
  }
}

void EngineImpl::Abort(RequestState* request) { Fail(request, OkStatus()); }

void EngineImpl::FailAll(const Status& status, bool also_waiting) {
  for (auto& [id, request] : requests_) {
    const bool touched = also_waiting || std::any_of(request->sequences.begin(), request->sequences.end(),
                                     [](const auto& sequence) { return sequence->state == SequenceState::kRunning; });
    if (touched) Fail(request.get(), status);
  }
}

void EngineImpl::FinishSequence(Sequence* sequence, TokenEvent* event, double now) {
  RequestState* request = sequence->request;
  scheduler_->Remove(sequence);
  event->request_id = request->id;
  event->sequence = sequence->index;
  event->finished = true;
  event->prompt_tokens = static_cast<int>(request->dense_length);
  event->completion_tokens = event->index + static_cast<int>(event->token_ids.size());
  event->preemptions = request->preemptions;
  event->attention = sequence->attention;
  const double scheduled = sequence->first_scheduled > 0 ? sequence->first_scheduled : now;
  const double first = sequence->first_token > 0 ? sequence->first_token : now;
  event->timings.queue_s = scheduled - request->submitted;
  event->timings.prefill_s = first - scheduled;
  event->timings.decode_s = now - first;
  event->timings.ttft_s = first - request->submitted;
  CountFinished(*event);
  if (--request->unfinished == 0) done_.push_back(request->id);
  Tell(request, std::move(*event));
}

void EngineImpl::CountFinished(const TokenEvent& event) {
  std::lock_guard lock(stats_mutex_);
  FinishedSequences& sums = stats_.sequences;
  switch (event.reason) {
    case FinishReason::kStop: ++sums.stop; break;
    case FinishReason::kLength: ++sums.length; break;
    case FinishReason::kAborted: ++sums.aborted; return;
    case FinishReason::kUnspecified: CHECK(false && "a sequence ends with a reason");
  }
  const RequestTimings& t = event.timings;
  sums.time_to_first_token.Add(t.ttft_s);
  if (event.completion_tokens > 1) sums.time_per_output_token.Add(t.decode_s / (event.completion_tokens - 1));
  sums.e2e.Add(t.ttft_s + t.decode_s);
  sums.queue.Add(t.queue_s);
  sums.prefill.Add(t.prefill_s);
  sums.decode.Add(t.decode_s);
}

void EngineImpl::Tell(RequestState* request, TokenEvent event) {
  if (request->callback) events_.emplace_back(request, std::move(event));
}

// Called when the books are closed: whoever hears of a request's end finds it gone from Stats, and its id free.
void EngineImpl::Deliver() {
  for (const auto& [request, event] : events_) request->callback(event);
  events_.clear();
  dropped_.clear();
}

void EngineImpl::ApplyScores(const Scheduler::Planned& planned, const StepResult& result) {
  for (size_t i = 0; i < result.scores.size(); ++i) {
    planned.scores[i]->request->prompt_logprobs.emplace_back(result.scores[i]);
  }
}

void EngineImpl::ApplyToken(Sequence* sequence, const SampledToken& token, double now) {
  if (sequence->state == SequenceState::kFinished) return;  // its request failed meanwhile
  RequestState* request = sequence->request;
  if (!token.finite) {
    Fail(request, Internal("the model's logits are not finite numbers; the weights, or " + plan_.options.dtype +
                           " for this model, may be at fault"));
    return;
  }
  if (sequence->first_token == 0) {
    sequence->first_token = now;
    StartDecoder(sequence);
  }
  const StoppingParams& stopping = request->request.stopping;
  const bool forced = !request->request.forced.empty();
  sequence->tokens.push_back(token.id);
  const int64_t outputs = sequence->output_tokens();

  TokenEvent event;
  event.request_id = request->id;
  event.sequence = sequence->index;
  event.index = static_cast<int>(outputs - 1);
  if (sequence == request->sequences[0].get() && !request->prompt_logprobs_sent) {
    request->prompt_logprobs_sent = true;
    event.prompt_logprobs = request->prompt_logprobs;
  }
  const bool stop_id = !forced && outputs > stopping.min_tokens &&
                       std::binary_search(request->stop_ids.begin(), request->stop_ids.end(), token.id);
  bool finished = false;
  if (stop_id) {
    finished = true;
    event.reason = FinishReason::kStop;
    event.matched_stop_id = token.id;
  }
  if (!stop_id || stopping.include_stop) {
    event.token_ids.push_back(token.id);
    if (token.logprobs.has_value()) event.logprobs.push_back(*token.logprobs);
    if (sequence->decoder.has_value()) {
      const bool armed = !forced && !stop_id && outputs >= stopping.min_tokens;
      StopMatcher::Piece piece = sequence->stops.Push(sequence->decoder->Push(token.id), armed);
      event.text = std::move(piece.text);
      if (piece.stopped) {
        finished = true;
        event.reason = FinishReason::kStop;
        event.matched_stop = std::move(piece.matched);
      }
    }
  }
  if (!finished && outputs >= request->max_output) {
    finished = true;
    event.reason = FinishReason::kLength;
  }
  if (!finished) {
    Tell(request, std::move(event));
    return;
  }
  if (sequence->decoder.has_value() && event.matched_stop.empty()) {
    event.text += sequence->stops.Push(sequence->decoder->Finish(), /*armed=*/false).text;
    event.text += sequence->stops.Finish();
  }
  FinishSequence(sequence, &event, now);
}

void EngineImpl::DropFinished() {
  if (done_.empty()) return;
  finished_ += static_cast<int64_t>(done_.size());
  for (const std::string& id : done_) {
    const auto at = requests_.find(id);
    CHECK(at != requests_.end());
    dropped_.push_back(std::move(at->second));  // its last events are still to be told
    requests_.erase(at);
  }
  std::lock_guard lock(inbox_mutex_);
  for (const std::string& id : done_) {
    ids_.erase(id);
    std::erase(cancelled_, id);  // a cancellation that came too late must not meet the next request of that id
  }
  done_.clear();
}

void EngineImpl::UpdateCounts() {
  std::lock_guard lock(stats_mutex_);
  stats_.running = scheduler_->running();
  stats_.waiting = scheduler_->waiting();
  stats_.preemptions = scheduler_->preemptions();
  stats_.requests_finished = finished_;
  const KvBooks& books = scheduler_->books();
  for (int g = 0; g < books.num_cache_groups(); ++g) {
    const PagePool& pages = books.pages(g);
    if (g == 0 || pages.free() < stats_.pages_free) {
      stats_.pages_total = pages.capacity();
      stats_.pages_free = pages.free();
    }
  }
}

void EngineImpl::UpdateStats(const Scheduler::Planned& planned, const StepResult& result, double seconds) {
  UpdateCounts();
  std::lock_guard lock(stats_mutex_);
  scratch_bytes_ = rank_->executor->scratch_bytes();
  stats_.collectives = rank_->comm->stats();
  stats_.step_broadcast_seconds = broadcast_seconds_;
  if (planned.plan.chunks.empty()) return;
  ++stats_.steps;
  for (const PlanChunk& chunk : planned.plan.chunks) stats_.prompt_tokens += chunk.decode != 0 ? 0 : chunk.rows;
  stats_.generation_tokens += static_cast<int64_t>(result.tokens.size());
  stats_.attention += result.attention;
  stats_.attention.selection_seconds += result.attention.selection_seconds;
  stats_.attention.attention_seconds += result.attention.attention_seconds;
  stats_.prefill_seconds += seconds * planned.prefill_share;
  stats_.decode_seconds += seconds * (1 - planned.prefill_share);
}

Status EngineImpl::Execute(const StepPlan& plan, StepResult* result) {
  if (!rank_->alone()) {
    if (plan.empty()) {
      *result = {};
      return OkStatus();
    }
    rank_->Enter(Phase::kBroadcast);
    const double begin = NowSeconds();
    plan.Serialize(&message_);
    const Status sent = channel_.Send(GroupMessage::kPlan, message_);
    broadcast_seconds_ += NowSeconds() - begin;
    RETURN_IF_ERROR(sent);
  }
  return rank_->Execute(plan, result);
}

Result<bool> EngineImpl::Step() {
  TakeInbox();
  if (!broken_.ok()) {
    FailAll(broken_, /*also_waiting=*/true);
    DropFinished();
    Deliver();
    return broken_;
  }
  const bool aborted = !done_.empty();
  DropFinished();
  if (aborted) UpdateCounts();
  Deliver();
  if (scheduler_->idle()) {
    rank_->Enter(Phase::kIdle);
    return aborted;
  }
  const double begin = NowSeconds();
  Scheduler::Planned planned;
  scheduler_->Plan(&planned);
  for (Sequence* sequence : planned.admitted) {
    if (sequence->first_scheduled == 0) sequence->first_scheduled = begin;
  }
  if (planned.failed != nullptr) {
    planned.failed->state = SequenceState::kWaiting;  // so that it gets its event
    Fail(planned.failed->request, planned.failure);
  }
  UpdateCounts();  // a step may be long: whoever asks meanwhile is told of what it runs
  StepResult result;
  const Status status = Execute(planned.plan, &result);
  rank_->Enter(Phase::kIdle);  // what follows ends in events, and so in code of others
  const double now = NowSeconds();
  if (!status.ok() && !rank_->alone()) {
    // The ranks are no longer at the same place, whoever is to blame; a follower that is has named itself.
    broken_ = status.WithContext("the group of " + std::to_string(rank_->comm->size()) + " ranks is lost");
    rank_->comm->Abort(status.WithContext(rank_->topology.Name(0)));
    FailAll(broken_, /*also_waiting=*/true);
    DropFinished();
    Deliver();
    return broken_;
  }
  if (!status.ok()) {
    FailAll(status, /*also_waiting=*/false);
  } else {
    scheduler_->CompleteForks();
    ApplyScores(planned, result);
    CHECK_EQ(result.tokens.size(), planned.samples.size());
    // A row counts for its request once, not again when it is recomputed: those that draw are the first time.
    for (size_t i = 0; i < result.usage.size(); ++i) {
      Sequence* sequence = planned.chunks[i];
      if (sequence->computed != static_cast<int64_t>(sequence->tokens.size())) continue;
      sequence->attention += result.usage[i];
    }
    for (size_t i = 0; i < planned.samples.size(); ++i) ApplyToken(planned.samples[i], result.tokens[i], now);
  }
  DropFinished();
  UpdateStats(planned, result, now - begin);
  Deliver();
  return true;
}

Status EngineImpl::Run() {
  while (true) {
    ASSIGN_OR_RETURN(const bool more, Step());
    if (!more) return OkStatus();
  }
}

}  // namespace quire

// What groups say: events, failures and loads, and how requests end. See dispatcher.h.
#include <algorithm>
#include <utility>

#include "core/base/log.h"
#include "rpc/convert.h"
#include "rpc/coordinator/dispatcher.h"
#include "rpc/coordinator/dispatcher_state.h"

namespace quire::rpc {

void Dispatcher::OnResponse(uint64_t session, const v1::ExecuteResponse& response, double now) {
  const auto find = [&]() -> Group* {
    const auto at = std::find_if(groups_.begin(), groups_.end(), [&](const auto& g) { return g->session == session; });
    return at == groups_.end() ? nullptr : at->get();
  };
  Group* group = find();
  if (group == nullptr) {
    late_events_ += response.events_size();
    return;
  }
  group->heard = now;
  if (group->silent) {
    group->silent = false;
    Log(LogLevel::kInfo, "group '" + group->identity.group() + "' answers again");
    NoteUsable(now);
  }
  for (const v1::TokenEvent& event : response.events()) {
    OnEvent(group, event, now);
    if ((group = find()) == nullptr) return Dispatch(now);  // it was lost by this one
  }
  for (const v1::Failure& failure : response.failures()) OnFailure(group, failure, now);
  if (response.has_load()) {
    const bool usable_changed = group->load.available() != response.load().available();
    group->load = response.load();
    // What the group counts and is not from here. The two are of different moments, so a little is nothing.
    const int others = group->load.running() + group->load.waiting() - group->sequences;
    group->others_sequences = std::max(0, others);
    group->others_tokens = others > 0 ? std::max<int64_t>(0, group->load.tokens_in_flight() - group->tokens) : 0;
    const int64_t used = group->load.pages_total() - group->load.pages_free();
    group->others_pages = others > 0 ? std::max<int64_t>(0, used - group->pages()) : 0;
    if (usable_changed) NoteUsable(now);
  }
  if (queue_.size() > 0) Dispatch(now);
}

Dispatcher::Part* Dispatcher::FindCurrent(const Group& group, const v1::AttemptId& id) {
  const auto at = parts_.find(id.request_id());
  if (at == parts_.end()) return nullptr;
  Part* const part = at->second.get();
  return part->group == &group && part->attempt == id.attempt() ? part : nullptr;
}

void Dispatcher::OnEvent(Group* group, const v1::TokenEvent& message, double now) {
  Part* const part = FindCurrent(*group, message.id());
  if (part == nullptr) {
    ++late_events_;
    return;
  }
  last_progress_ = now;
  const int place = message.sequence_index() - part->flight->first - part->first;
  const bool known = place >= 0 && place < part->count && !part->sequence(place).finished;
  const auto have = known ? static_cast<int64_t>(part->sequence(place).tokens.size()) : 0;
  Status fault;
  if (!known || message.token_index() != have) {
    fault = Internal("the group sent token " + std::to_string(message.token_index()) + " of sequence " +
                     std::to_string(message.sequence_index()) + " of '" + part->name + "' where token " +
                     std::to_string(have) + " was next");
  } else if (message.finish_reason() == v1::FINISH_REASON_ABORTED && !part->flight->cancelled) {
    // The group gives it up, as at the end of a drain. What it still had of it is made again elsewhere.
    part->refused.insert(group->session);
    part->refusal = Unavailable("the group has ended the request before its time");
    return TakeBack(part, Loss::kRefusal, now);
  } else {
    fault = CheckEvent(message);
  }
  if (!fault.ok()) {
    Log(LogLevel::kError, "group '" + group->identity.group() + "' breaks the protocol and is dropped: " + fault.message());
    GroupLink* const link = group->link;
    LoseGroup(group->session, fault, now);
    link->Reset(fault);
    return;
  }
  Deliver(part, message, now);
}

void Dispatcher::Deliver(Part* part, const v1::TokenEvent& message, double now) {
  Flight* const flight = part->flight;
  Group* const group = part->group;
  const int place = message.sequence_index() - flight->first - part->first;
  SequenceState& sequence = part->sequence(place);
  if (!part->begun) Account(group, part, -part->prompt() - part->replayed(), 0);
  part->begun = true;
  if (sequence.first_token_at == 0 && message.token_ids_size() > 0) sequence.first_token_at = now;
  sequence.tokens.insert(sequence.tokens.end(), message.token_ids().begin(), message.token_ids().end());
  const int64_t new_tokens = message.token_ids_size();
  Account(group, part, -std::min(new_tokens, part->tokens), new_tokens);
  const bool finished = message.finish_reason() != v1::FINISH_REASON_UNSPECIFIED;
  if (finished) {
    sequence.finished = true;
    const int64_t left = std::max<int64_t>(0, flight->limit - static_cast<int64_t>(sequence.tokens.size()));
    Account(group, part, -std::min(left, part->tokens), 0);
    --group->sequences;
    --part->unfinished;
    --flight->unfinished;
  }
  // Checked before: it gives no error now.
  const Status read = ReadEvent(message, [&](TokenEvent& event) {
    event.request_id = flight->request.request_id;
    if (event.finished) Stamp(*part, place, now, &event);
    flight->callback(event);
  });
  (void)read;
  if (!finished || part->unfinished > 0) return;
  RemovePart(part);
  EndIfDone(flight);
}

// Times as this service has seen them: over all attempts, the wait here included.
void Dispatcher::Stamp(const Part& part, int place, double now, TokenEvent* event) const {
  const Flight& flight = *part.flight;
  const SequenceState& sequence = flight.sequences[static_cast<size_t>(part.first + place)];
  const double waited = (part.first_sent > 0 ? part.first_sent : now) - flight.submitted;
  event->timings.queue_s += waited;
  const double first = sequence.first_token_at > 0 ? sequence.first_token_at : now;
  event->timings.ttft_s = sequence.first_token_at > 0 ? first - flight.submitted : 0;
  event->timings.prefill_s = std::max(0.0, event->timings.ttft_s - event->timings.queue_s);
  event->timings.decode_s = now - first;
}

void Dispatcher::AbortSequences(Part* part, double now) {
  Flight* const flight = part->flight;
  for (int i = 0; i < part->count; ++i) {
    SequenceState& sequence = part->sequence(i);
    if (sequence.finished) continue;
    sequence.finished = true;
    --flight->unfinished;
    TokenEvent event;
    event.request_id = flight->request.request_id;
    event.sequence = flight->first + part->first + i;
    event.index = static_cast<int>(sequence.tokens.size());
    event.finished = true;
    event.reason = FinishReason::kAborted;
    event.prompt_tokens = static_cast<int>(part->prompt());
    event.completion_tokens = event.index;
    Stamp(*part, i, now, &event);
    flight->callback(event);
  }
  RemovePart(part);
  EndIfDone(flight);
}

void Dispatcher::OnFailure(Group* group, const v1::Failure& failure, double now) {
  Part* const part = FindCurrent(*group, failure.id());
  if (part == nullptr) {
    ++late_events_;
    return;
  }
  const auto code = static_cast<StatusCode>(failure.code());
  const Status status(code, failure.message());
  switch (code) {
    case StatusCode::kResourceExhausted:  // its queue is full, or its cache too small: another's may not be
    case StatusCode::kUnavailable:
    case StatusCode::kInternal:
    case StatusCode::kUnknown:
    case StatusCode::kCancelled:
      part->refused.insert(group->session);
      part->refusal = code == StatusCode::kCancelled ? Unavailable(failure.message()) : status;
      return TakeBack(part, Loss::kRefusal, now);
    default:
      return FailFlight(part->flight, status, now);
  }
}

void Dispatcher::FailFlight(Flight* flight, const Status& status, double now) {
  for (Part* part : flight->parts) {
    if (part->group == nullptr) continue;
    v1::AttemptId* abort = part->group->pending.add_aborts();
    abort->set_request_id(part->name);
    abort->set_attempt(part->attempt);
    part->group->flush_at = now;
  }
  EndSequences(flight, status);
  flight->unfinished = 0;
  EndIfDone(flight);
}

void Dispatcher::EndSequences(Flight* flight, const Status& status) {
  for (size_t i = 0; i < flight->sequences.size(); ++i) {
    SequenceState& sequence = flight->sequences[i];
    if (std::exchange(sequence.finished, true)) continue;
    TokenEvent event;
    event.request_id = flight->request.request_id;
    event.sequence = flight->first + static_cast<int>(i);
    event.index = static_cast<int>(sequence.tokens.size());
    event.finished = true;
    event.reason = FinishReason::kAborted;
    event.status = status;
    flight->callback(event);
  }
}

}  // namespace quire::rpc

// See request_table.h.
#include "rpc/request_table.h"

#include <utility>

namespace quire::rpc {

Status RequestTable::Add(const std::shared_ptr<Request>& request) {
  const int sequences = request->options().prompts * request->options().sequences;
  std::lock_guard lock(mutex_);
  if (!closed_.empty()) return Unavailable(closed_);
  if (const auto at = requests_.find(request->id()); at != requests_.end()) {
    if (sequences_in_flight_.contains(request->id())) {
      return Status(StatusCode::kAlreadyExists,
                    "a request '" + request->id() + "' is in flight; give another request_id");
    }
    requests_.erase(at);
  }
  if (total_sequences_ + sequences > max_sequences_) {
    return ResourceExhausted("the queue is full: " + std::to_string(total_sequences_) +
                             " sequences are in flight, and these " + std::to_string(sequences) + " go over --max-queue (" +
                             std::to_string(max_sequences_) + "); try again later");
  }
  requests_[request->id()] = request;
  sequences_in_flight_[request->id()] = sequences;
  total_sequences_ += sequences;
  return OkStatus();
}

std::shared_ptr<Request> RequestTable::Find(const std::string& id) const {
  std::lock_guard lock(mutex_);
  const auto at = requests_.find(id);
  return at == requests_.end() ? nullptr : at->second;
}

void RequestTable::Release(const std::shared_ptr<Request>& request) {
  if (!request->Settled()) return;
  const bool read = request->reader() != nullptr;
  std::lock_guard lock(mutex_);
  const auto at = requests_.find(request->id());
  if (at == requests_.end() || at->second != request) return;
  if (const auto counted = sequences_in_flight_.find(request->id()); counted != sequences_in_flight_.end()) {
    total_sequences_ -= counted->second;
    sequences_in_flight_.erase(counted);
  }
  if (!read && !request->options().keep) requests_.erase(at);
}

void RequestTable::Tick(double now) {
  for (const auto& request : All()) {
    if (const auto reader = request->reader()) {
      reader->OnTick(now);
      continue;
    }
    const double since = request->unread_since();
    const double keep = request->options().keep ? keep_s_ : 0;
    const bool too_late = now >= request->deadline();
    if (since == 0 || (now - since < keep && (!too_late || request->Settled()))) continue;
    if (!request->Settled() && too_late) {
      request->Fail(Status(StatusCode::kDeadlineExceeded, "the call's deadline has passed"));
      continue;
    }
    if (!request->Settled()) {
      request->Fail(Cancelled("nobody has read this request's output for " + std::to_string(static_cast<int>(keep)) +
                              " seconds"));
      continue;
    }
    Release(request);
    Drop(request);
  }
}

void RequestTable::Drop(const std::shared_ptr<Request>& request) {
  std::lock_guard lock(mutex_);
  const auto at = requests_.find(request->id());
  if (at == requests_.end() || at->second != request) return;
  if (const auto counted = sequences_in_flight_.find(request->id()); counted != sequences_in_flight_.end()) {
    total_sequences_ -= counted->second;
    sequences_in_flight_.erase(counted);
  }
  requests_.erase(at);
}

void RequestTable::Close(std::string why) {
  std::lock_guard lock(mutex_);
  closed_ = std::move(why);
}

std::vector<std::shared_ptr<Request>> RequestTable::All() const {
  std::vector<std::shared_ptr<Request>> all;
  std::lock_guard lock(mutex_);
  all.reserve(requests_.size());
  for (const auto& [id, request] : requests_) all.push_back(request);
  return all;
}

int RequestTable::in_flight() const {
  std::lock_guard lock(mutex_);
  return static_cast<int>(sequences_in_flight_.size());
}

int RequestTable::readers() const {
  int readers = 0;
  for (const auto& request : All()) readers += request->reader() != nullptr ? 1 : 0;
  return readers;
}

}  // namespace quire::rpc

// RequestTable: the requests of one service by id, from admission to the end of what is kept of them, with the bound on
// how many are in flight. Internal to rpc/.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/base/status.h"
#include "rpc/request.h"

namespace quire::rpc {

class RequestTable {
 public:
  // keep_s: how long a kept request lives without a reader, running or ended. max_sequences: of all requests in flight.
  RequestTable(int max_sequences, double keep_s) : max_sequences_(max_sequences), keep_s_(keep_s) {}

  // ALREADY_EXISTS while one of the same id is in flight (one that has ended is replaced); RESOURCE_EXHAUSTED beyond
  // max_sequences; UNAVAILABLE when closed.
  Status Add(const std::shared_ptr<Request>& request);
  std::shared_ptr<Request> Find(const std::string& id) const;  // null when there is none
  // Lets go of it, settled and without a reader; otherwise does nothing. Called whenever one of these came true.
  void Release(const std::shared_ptr<Request>& request);
  // Lets go of it whatever its state; what is left of it ends on its own.
  void Drop(const std::shared_ptr<Request>& request);
  // Aborts what has had no reader for keep_s, forgets what has ended by then, and ticks the readers.
  void Tick(double now);

  // New requests are refused from now on, with this sentence.
  void Close(std::string why);
  std::vector<std::shared_ptr<Request>> All() const;
  int in_flight() const;  // requests that have not settled
  int readers() const;    // requests with a reader

 private:
  const int max_sequences_;
  const double keep_s_;
  mutable std::mutex mutex_;
  std::unordered_map<std::string, std::shared_ptr<Request>> requests_;
  // Of those in requests_ that have not settled.
  std::unordered_map<std::string, int> sequences_in_flight_;
  int64_t total_sequences_ = 0;
  std::string closed_;  // why; empty while open
};

}  // namespace quire::rpc

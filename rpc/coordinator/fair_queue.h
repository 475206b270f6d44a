// FairQueue: what waits for a group, in the order in which it is handed on. Start-time fair queueing (Goyal, Vin and
// Cheng, 1996) over tokens: each client's entries are laid end to end on an axis of service, from where the service is
// now, and the entry that begins first goes first; so a client that asks for much waits for its own requests, not the
// others for it. A step of priority moves an entry along that axis, so waiting makes up for it. Not thread safe.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <unordered_map>
#include <utility>

namespace quire::rpc {

template <typename T>
class FairQueue {
 public:
  using Ticket = std::pair<int64_t, uint64_t>;  // place on the axis, order of arrival

  // priority_tokens: service of others that makes up for one step of priority.
  explicit FairQueue(size_t max_entries, int64_t priority_tokens = 1024)
      : max_entries_(max_entries), priority_tokens_(priority_tokens) {}

  size_t size() const { return entries_.size(); }
  bool Full() const { return entries_.size() >= max_entries_; }

  // cost: tokens that it will take, ≥ 0. The caller has looked at Full().
  Ticket Push(T value, const std::string& client, int priority, int64_t cost) {
    Client& owner = clients_[client];
    const int64_t start = std::max(served_, owner.end);
    owner.end = start + cost;
    ++owner.waiting;
    return Insert({std::move(value), client, start, cost, true}, start + priority * priority_tokens_);
  }
  // What a lost group gives back: it has had its turn already, so it goes before all that has not. Never refused.
  Ticket PushAgain(T value, int priority) {
    return Insert({std::move(value), "", 0, 0, false}, std::min<int64_t>(priority, 0) * priority_tokens_ - kAgain);
  }

  // False when it is not here. Its client gets its share back.
  bool Remove(const Ticket& ticket) {
    const auto at = entries_.find(ticket);
    if (at == entries_.end()) return false;
    if (at->second.counted) clients_[at->second.client].end -= at->second.cost;
    Leave(at->second);
    entries_.erase(at);
    return true;
  }

  enum class Verdict { kTaken, kSkipped, kStop };
  // Offers the entries in order until `take` says kStop; taken ones leave the queue. `take` must not touch the queue.
  template <typename Take>
  void Offer(const Take& take) {
    for (auto at = entries_.begin(); at != entries_.end();) {
      const Verdict verdict = take(at->second.value);
      if (verdict == Verdict::kStop) return;
      if (verdict == Verdict::kSkipped) {
        ++at;
        continue;
      }
      served_ = std::max(served_, at->second.start);
      Leave(at->second);
      at = entries_.erase(at);
    }
  }

 private:
  // Far before every place that Push can give, and far from overflow.
  static constexpr int64_t kAgain = int64_t{1} << 60;
  struct Entry {
    T value;
    std::string client;
    int64_t start = 0, cost = 0;
    bool counted = true;  // among its client's
  };
  struct Client {
    int64_t end = 0;  // of its last entry on the axis
    int waiting = 0;
  };

  Ticket Insert(Entry entry, int64_t place) {
    const Ticket ticket(place, arrivals_++);
    entries_.emplace(ticket, std::move(entry));
    return ticket;
  }
  void Leave(const Entry& entry) {
    if (entry.counted) --clients_[entry.client].waiting;
    // Whoever has nothing here and no service ahead of the others is as good as new. Looked at now and then, so that a
    // departure costs O(1) on average.
    if (++departures_ < clients_.size()) return;
    departures_ = 0;
    std::erase_if(clients_, [this](const auto& one) { return one.second.waiting == 0 && one.second.end <= served_; });
  }

  const size_t max_entries_;
  const int64_t priority_tokens_;
  std::map<Ticket, Entry> entries_;
  std::unordered_map<std::string, Client> clients_;
  int64_t served_ = 0;  // where the service is on the axis
  uint64_t arrivals_ = 0;
  size_t departures_ = 0;
};

}  // namespace quire::rpc

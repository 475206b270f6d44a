// What the Dispatcher keeps of requests and groups. Internal to dispatcher*.cc.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <unordered_set>
#include <vector>

#include "rpc/coordinator/dispatcher.h"

namespace quire::rpc {

struct SequenceState {
  std::vector<int32_t> tokens;  // put out so far, those of lost groups included
  bool finished = false;
  double first_token_at = 0;
};

// A client's prompt with its sequences.
struct Dispatcher::Flight {
  std::string client;
  GenerationRequest request;  // with its seed; request_id is the client's
  EventCallback callback;
  std::vector<SequenceState> sequences;
  int first = 0;  // number of sequences[0]
  int unfinished = 0;
  int64_t limit = 0;  // most output tokens of a sequence
  bool cancelled = false;
  double submitted = 0;
  std::vector<PrefixKey> keys;
  std::unordered_set<Part*> parts;
};

// What one group is given of it. Its sequences but for one-sequence parts have put out nothing yet when it is sent.
struct Dispatcher::Part {
  Flight* flight = nullptr;
  std::string name;
  uint32_t attempt = 0;
  int first = 0, count = 1;  // places in flight->sequences
  int unfinished = 1;
  Group* group = nullptr;    // null: it waits
  FairQueue<Part*>::Ticket ticket;
  std::unordered_set<uint64_t> refused;  // sessions that would not have it
  Status refusal;                        // what the last of them said
  int lost_in_vain = 0;     // groups lost while they had it, with no token since the one before
  bool begun = false;       // the present attempt has put something out
  double first_sent = 0;
  int64_t tokens = 0, cached = 0;  // what it counts for in its group's books

  SequenceState& sequence(int i) const { return flight->sequences[static_cast<size_t>(first + i)]; }
  int64_t prompt() const { return static_cast<int64_t>(flight->request.prompt.size()); }
  // Tokens that an earlier attempt has put out.
  int64_t replayed() const { return count == 1 ? static_cast<int64_t>(sequence(0).tokens.size()) : 0; }
};

struct Dispatcher::Group {
  uint64_t session = 0;
  GroupLink* link = nullptr;
  v1::Identity identity;
  v1::GroupLoad load;  // as the group said last
  double heard = 0;
  bool silent = false;
  std::unordered_set<Part*> parts;
  int sequences = 0;           // unfinished ones of parts
  int64_t tokens = 0;          // still to be computed for parts
  int64_t cached = 0;          // in its cache for parts, about
  int64_t others_tokens = 0;   // of requests that are not from here, as of its last load
  int others_sequences = 0;
  int64_t others_pages = 0;    // that they hold
  v1::ExecuteRequest pending;  // not sent yet
  size_t pending_bytes = 0;    // of its submissions
  double flush_at = std::numeric_limits<double>::infinity();

  int64_t page_size() const { return std::max(1, identity.page_size()); }
  // That parts hold, about: a page more for each sequence, since none ends with its page.
  int64_t pages() const { return cached / page_size() + sequences; }
  // More than it can run, so that it never waits for the coordinator; the rest waits here, where order is decided.
  int max_sequences() const {
    const int slots = std::max(1, identity.max_num_seqs());
    const int most = identity.has_max_queue() ? std::max(1, identity.max_queue()) : slots * 2;
    return std::min(slots + std::max(1, slots / 4), most);
  }
};

}  // namespace quire::rpc

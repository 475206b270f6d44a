// Dispatcher: the coordinator's books and decisions. Which requests there are, what each has put out so far, which group
// works on which part of them, what waits, and what happens when a group is lost. It knows nothing of gRPC, threads or
// clocks: messages, calls and the time come in, messages go out to GroupLinks and events to callbacks. Not thread safe,
// and callbacks must not call it (coordinator_backend.h puts a Strand around it).
//
// A request is handed on in parts: all its sequences together, or each on its own. A part is with one group at a time;
// each time it is handed on its attempt number grows, and an event counts only when it comes from the group that has the
// part and names the present attempt. What a group has put out is kept here until the request ends, so that any other
// group can go on behind it.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "core/base/status.h"
#include "core/engine/request.h"
#include "quire/v1/control.pb.h"
#include "quire/v1/worker.pb.h"
#include "rpc/coordinator/fair_queue.h"
#include "rpc/coordinator/router.h"

namespace quire::rpc {

struct DispatcherOptions {
  std::string name;               // the coordinator's, part of its submissions' names; another at each start
  size_t max_queue = 4096;        // parts that wait here
  double batch_window_s = 0.001;  // how long a submission to a busy group waits for others to go with it
  double silent_s = 2.5;          // a group that has said nothing for so long is as good as lost
  double no_group_s = 2;          // how long requests wait when there is no group at all
  int64_t priority_tokens = 1024;  // see FairQueue
  size_t message_bytes = 4 << 20;  // of submissions that go together, about; groups refuse messages beyond 256 MiB
};

// The way to a group, of one Execute stream. Calls only queue.
class GroupLink {
 public:
  virtual ~GroupLink() = default;
  virtual void Send(v1::ExecuteRequest message) = 0;
  // Ends the stream, because the group did what it must not. OnDown may come or not.
  virtual void Reset(const Status& why) = 0;
};

class Dispatcher {
 public:
  explicit Dispatcher(DispatcherOptions options);
  ~Dispatcher();

  // Groups. A session is one Execute stream, never used again. What is told of sessions that are not (or no longer)
  // there is passed over. `link` stays valid until OnDown.
  void OnUp(uint64_t session, GroupLink* link, const v1::WorkerHello& hello, double now);
  void OnResponse(uint64_t session, const v1::ExecuteResponse& response, double now);
  void OnDown(uint64_t session, const Status& why, double now);

  // Requests: as Backend::Submit and Cancel, but that a refusal too comes as an event with its status.
  void Submit(GenerationRequest request, const std::string& client, EventCallback callback, double now);
  void Cancel(const std::string& request_id, double now);

  // Time. NextTime: when OnTime will have something to do.
  void OnTime(double now);
  double NextTime() const;

  // OK when requests find a group, or may hope for one.
  Status Available(double now) const;
  bool Stalled(double now, double seconds) const;
  v1::GetLoadResponse Load() const;
  const std::vector<const v1::Identity*> Identities() const;  // of groups that are up
  int flights() const { return static_cast<int>(flights_.size()); }

 private:
  struct Flight;
  struct Part;
  struct Group;
  enum class Loss { kGroup, kRefusal };

  // Parts and groups.
  Part* NewPart(Flight* flight, int first, int count, uint32_t attempt);
  void Queue(Part* part, bool again);
  void Dispatch(double now);
  int Choose(const Part& part, bool* refused_everywhere);
  void SendTo(Group* group, Part* part, double now);
  void Flush(Group* group);
  void Account(Group* group, Part* part, int64_t tokens, int64_t cached);
  void Leave(Part* part);  // its group: from the books only
  // The group has it no longer: it waits for another, split into sequences where these have come to differ.
  void TakeBack(Part* part, Loss loss, double now);
  void LoseGroup(uint64_t session, const Status& why, double now);
  void TakeAllBack(Group* group, double now);
  bool Usable(const Group& group) const;
  void NoteUsable(double now);

  // Events and ends.
  void OnEvent(Group* group, const v1::TokenEvent& message, double now);
  void OnFailure(Group* group, const v1::Failure& failure, double now);
  Part* FindCurrent(const Group& group, const v1::AttemptId& id);
  void Deliver(Part* part, const v1::TokenEvent& message, double now);
  void Stamp(const Part& part, int place, double now, TokenEvent* event) const;
  void AbortSequences(Part* part, double now);  // with final events of our own
  void FailFlight(Flight* flight, const Status& status, double now);
  void EndSequences(Flight* flight, const Status& status);  // events alone
  void RemovePart(Part* part);
  void EndIfDone(Flight* flight);

  const DispatcherOptions options_;
  std::mt19937_64 seeds_;
  std::unordered_map<std::string, std::unique_ptr<Flight>> flights_;  // by request id
  std::unordered_map<std::string, std::unique_ptr<Part>> parts_;      // by name
  std::vector<std::unique_ptr<Group>> groups_;                        // in the order of their coming
  FairQueue<Part*> queue_;
  PrefixMap prefixes_;
  uint64_t names_ = 0;
  size_t turn_ = 0;
  // When the last usable group went; +∞ while there is one, −∞ while there has never been one.
  double no_group_since_ = -std::numeric_limits<double>::infinity();
  double last_progress_ = 0;
  std::string last_loss_;  // why the last group went, for whoever asks why there is none
  int64_t failovers_ = 0, late_events_ = 0;
};

}  // namespace quire::rpc

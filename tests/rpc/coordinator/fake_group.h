// A group for tests of the Dispatcher: keeps what it is sent, and puts out tokens that are a function of (prompt, seed,
// sequence, position), as a real group's are, so that a stream put together from several groups can be checked.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "quire/v1/worker.pb.h"
#include "rpc/coordinator/dispatcher.h"

namespace quire::rpc {

int32_t FakeToken(const std::vector<int32_t>& prompt, uint64_t seed, int sequence, int64_t position);
// Ends a sequence before max_tokens, as an end token does.
bool FakeStop(int32_t token);
std::string FakeText(int32_t token);

v1::Identity FakeIdentity(const std::string& name, int max_num_seqs = 8, int64_t pages_total = 1000);

// What a request's stream should be.
struct FakeOutput {
  std::vector<int32_t> tokens;
  std::string text;
  v1::FinishReason reason = v1::FINISH_REASON_UNSPECIFIED;
};
FakeOutput ExpectedOutput(const GenerationRequest& request, uint64_t seed, int sequence);

class FakeGroup : public GroupLink {
 public:
  FakeGroup(std::string name, uint64_t session, Dispatcher* dispatcher, int max_num_seqs = 8, int64_t pages = 1000);

  void Send(v1::ExecuteRequest message) override;
  void Reset(const Status&) override { reset_ = true; }

  void Up(double now);
  void Down(double now);
  void Load(double now, bool available = true);
  // With what requests of others than the dispatcher run there and hold.
  void LoadWithOthers(double now, int sequences, int64_t pages);
  // Takes in what was sent: submissions and aborts.
  void TakeIn();
  // Every running sequence puts out up to `tokens` tokens; what that makes is held until Deliver.
  void Step(int tokens = 1);
  void Deliver(double now);
  // TakeIn, Step and Deliver until nothing runs.
  void Finish(double now);
  void Fail(const std::string& name, StatusCode code, const std::string& message, double now);

  uint64_t session() const { return session_; }
  int running() const { return static_cast<int>(running_.size()); }
  bool was_reset() const { return reset_; }
  const std::vector<v1::ExecuteRequest>& inbox() const { return inbox_; }  // not taken in
  std::vector<std::string> Names() const;                                  // of running submissions
  const v1::Submission& submission(const std::string& name) const;
  v1::ExecuteResponse& outbox() { return outbox_; }

 private:
  struct Running {
    v1::Submission submission;
    std::vector<int64_t> made;     // [sequences] output tokens
    std::vector<bool> ended;
  };
  void Finished(const std::string& key);

  const uint64_t session_;
  Dispatcher* const dispatcher_;
  v1::Identity identity_;
  std::vector<v1::ExecuteRequest> inbox_;
  std::map<std::string, Running> running_;  // by name and attempt
  v1::ExecuteResponse outbox_;
  bool reset_ = false;
};

}  // namespace quire::rpc

// CoordinatorBackend: many groups behind the services, as one Backend. Puts a Strand around the Dispatcher, gives it the
// time, holds the connections to the groups, and knows what model they all serve. Internal to rpc/.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "core/io/tokenizer.h"
#include "quire/v1/worker.pb.h"
#include "rpc/backend.h"
#include "rpc/coordinator/dispatcher.h"
#include "rpc/coordinator/group_connection.h"
#include "rpc/coordinator/strand.h"

namespace quire::rpc {

struct CoordinatorBackendOptions {
  std::string version;
  std::string name;               // for people and for groups
  std::vector<std::string> workers;  // HOST:PORT
  DispatcherOptions dispatcher;   // its name is made here
  double register_interval_s = 1;
  double forget_s = 60;           // a group that registered and has gone is forgotten after so long
};

class CoordinatorBackend : public Backend, private ConnectionOwner {
 public:
  // tokenizer: of --model; null: the first group's. files: those that made it.
  CoordinatorBackend(CoordinatorBackendOptions options, std::unique_ptr<Tokenizer> tokenizer,
                     std::vector<TokenizerFile> files);
  ~CoordinatorBackend() override;  // as Stop

  void Start();  // connects to the workers
  void Stop();   // what is in flight gets no more events
  void OnTick(double now);

  // A group says that it is there. INVALID_ARGUMENT, FAILED_PRECONDITION (another model), RESOURCE_EXHAUSTED.
  Result<v1::RegisterResponse> Register(const std::string& address, const v1::Identity& identity);

  Status Available() const override;
  bool Stalled(double seconds) const override;
  Status Submit(GenerationRequest request, const std::string& client, EventCallback callback) override;
  void Cancel(const std::string& request_id) override;
  const Tokenizer* tokenizer() const override;
  Result<v1::GetModelInfoResponse> ModelInfo() const override;
  v1::GetLoadResponse Load() const override;
  void FillServerInfo(v1::GetServerInfoResponse* info) const override;
  Result<std::vector<TokenizerFile>> TokenizerFiles() const override;

 private:
  uint64_t NewSession() override { return ++sessions_; }
  Status Greet(const v1::GetModelInfoResponse& info, v1::Control::Stub* control) override;
  void OnResponse(std::shared_ptr<ExecuteStream> stream) override;
  void OnDown(std::shared_ptr<ExecuteStream> stream, const Status& why) override;
  Status TakeUp(const v1::Identity& identity);                 // on the strand
  void RunTimer();
  void Rearm();  // on the strand
  void AddConnection(const std::string& address, bool fixed);  // with groups_mutex_ held

  const CoordinatorBackendOptions options_;
  std::atomic<uint64_t> sessions_ = 0;

  mutable Strand strand_;
  Dispatcher dispatcher_;                 // on the strand
  std::optional<v1::Identity> first_;     // likewise: what every group must agree with

  mutable std::mutex model_mutex_;        // held while a tokenizer is fetched: groups are greeted one at a time
  mutable std::mutex tokenizer_mutex_;
  std::unique_ptr<Tokenizer> tokenizer_;  // set once
  std::string tokenizer_hash_;
  std::vector<TokenizerFile> files_;
  std::optional<v1::GetModelInfoResponse> info_;  // of the first group

  mutable std::mutex groups_mutex_;
  std::vector<std::unique_ptr<GroupConnection>> groups_;

  std::mutex timer_mutex_;
  std::condition_variable timer_wake_;
  double armed_ = 0;  // when the timer wakes up
  bool stopping_ = false;
  std::thread timer_;
};

}  // namespace quire::rpc

// EngineBackend: a group's engine behind the services. One thread steps it; everybody else only queues. It is there
// before the engine is, so that the service can listen, and say that it is loading, while the model loads. Internal to
// rpc/.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "core/engine/engine.h"
#include "quire/v1/worker.pb.h"
#include "rpc/backend.h"

namespace quire::rpc {

struct EngineBackendOptions {
  std::string version;
  std::string group;         // name in loads and identities; set before the engine is given
  std::string served_model;  // empty: the config's name
  int tensor_parallel_size = 1;
};

class EngineBackend : public Backend {
 public:
  explicit EngineBackend(EngineBackendOptions options);
  ~EngineBackend() override;  // as Stop

  void SetLoading(const std::string& phase, double fraction);  // thread safe
  // The model is there: begins to step. Once. model_hash: see identity.h.
  void SetEngine(std::unique_ptr<Engine> engine, std::string model_hash);
  void set_group(const std::string& group);
  // Ends the stepping thread and with it the engine's work; requests in flight get no more events.
  void Stop();
  // Why the thread ended by itself: a step failed for good (the group has lost a rank). OK while all is well.
  Status failure() const;

  Status Available() const override;
  bool Stalled(double seconds) const override;
  Status Submit(GenerationRequest request, const std::string& client, EventCallback callback) override;
  void Cancel(const std::string& request_id) override;
  const Tokenizer* tokenizer() const override;
  Result<v1::GetModelInfoResponse> ModelInfo() const override;
  v1::GetLoadResponse Load() const override;
  void FillServerInfo(v1::GetServerInfoResponse* info) const override;
  Result<std::vector<TokenizerFile>> TokenizerFiles() const override;

  v1::GroupLoad GroupLoad() const;
  // What the group runs; `max_queue` is the service's. Valid when Available was OK once.
  Result<v1::Identity> Identity(int max_queue) const;

 private:
  struct InFlight {
    std::string engine_id;
    EventCallback callback;
    int unfinished = 0;      // sequences
    bool prompt_done = false;
    int64_t prompt = 0;      // tokens
    std::vector<int64_t> left;  // [sequences] tokens that may still come
    int first_sequence = 0;
  };

  void Run();
  void OnEvent(const std::string& id, const TokenEvent& event);
  void Wake();
  const Engine* engine() const { return engine_ready_.load(std::memory_order_acquire) ? engine_.get() : nullptr; }

  const std::string version_;
  const int tensor_parallel_size_;
  const uint64_t incarnation_;
  std::unique_ptr<Engine> engine_;  // written once, before engine_ready_
  std::atomic<bool> engine_ready_ = false;
  std::string tokenizer_hash_;      // likewise
  std::string model_hash_, served_model_;
  bool has_chat_template_ = false;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::string group_;
  std::string loading_ = "starting";
  std::unordered_map<std::string, InFlight> in_flight_;
  uint64_t submissions_ = 0;
  int64_t tokens_in_flight_ = 0;
  bool work_ = false, stopping_ = false;
  Status failure_;
  double busy_since_ = 0;  // when in_flight_ became not empty; 0 while it is empty
  std::atomic<double> last_step_ = 0;
  std::thread thread_;
};

}  // namespace quire::rpc

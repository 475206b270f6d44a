// Front: what a service of ours is, whatever its backend: a listening gRPC server with the Generation and Control
// services, health and reflection; admission, delivery, and the drain. Internal to rpc/; groups (serve.h) and
// coordinators are built on it.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/base/status.h"
#include "core/engine/request_check.h"
#include "rpc/backend.h"
#include "rpc/channel.h"
#include "rpc/delivery.h"
#include "rpc/intake.h"
#include "rpc/prompt.h"
#include "rpc/request_table.h"

namespace grpc {
class Server;
class Service;
}  // namespace grpc

namespace quire::rpc {

struct FrontOptions {
  std::string listen = "127.0.0.1:0";      // HOST:PORT; port 0: any
  int max_queue = 4096;                    // sequences in flight
  double shutdown_timeout_s = 30;          // of a drain that names none
  double keep_s = 60;                      // how long a resumable request lives without a reader
  double stall_s = 30;                     // not ready when no step has finished for so long
  double unread_s = 60;                    // a write that takes so long ends its call
  size_t max_unread = 4 << 20;             // bytes that may wait for one client
  size_t max_message = kMaxMessageBytes;   // either way
  int intake_threads = 2;
  double tick_s = 0.1;  // between looks at what only time ends
};

// What the model lets in, as far as the front must know.
struct ModelLimits {
  std::string model;
  PromptLimits prompt;
  RequestLimits request;  // of the engine, or of the groups' engines: what they would refuse goes no further than here
};

class Front {
 public:
  Front(FrontOptions options, Backend* backend);  // backend outlives it
  ~Front();                                       // as Stop

  // Listens. `extra` are further services (not owned, outliving it), `ready_names` their full names for health.
  // UNAVAILABLE when the address can't be had.
  Status Start(const std::vector<grpc::Service*>& extra, const std::vector<std::string>& ready_names);
  const std::string& address() const { return address_; }  // HOST:PORT with the port it has
  int port() const { return port_; }

  // Begins to drain: see Control.Drain. Thread safe; the shortest timeout counts.
  void Drain(double timeout_s);
  bool draining() const { return draining_; }
  bool refusing() const { return refusing_; }  // a moment later
  // True when it refuses and nothing runs any more, or when the timeout has passed and what ran has been aborted.
  bool Drained() const;
  // Ends the server: open calls get a few seconds for what is left to be read.
  void Stop();

  // For services.
  Backend& backend() { return *backend_; }
  const FrontOptions& options() const { return options_; }
  std::function<void(const std::shared_ptr<Request>&)> notify() {
    return [this](const std::shared_ptr<Request>& request) { delivery_->Note(request); };
  }
  RequestTable& requests() { return requests_; }
  RequestTable& submissions() { return submissions_; }  // of Worker.Execute
  Intake& intake() { return intake_; }
  // Called at every tick, after the readers' ticks.
  void set_on_tick(std::function<void(double)> on_tick) { on_tick_ = std::move(on_tick); }  // before Start
  // OK when a request may come in.
  Status Open() const;
  // Looks at the vocabulary the first time: not for gRPC's threads.
  Result<ModelLimits> Limits();
  std::string NewRequestId();
  v1::ServerState State() const;
  void ShowState() const;  // to the health service; done at every tick, too
  double uptime() const;
  int in_flight() const { return requests_.in_flight() + submissions_.in_flight(); }

 private:
  void OnTick(double now);
  void AbortAll();
  // Not ready, to whoever asks or watches, and only then refusing: who sees a refusal finds the service not ready.
  void Close(const std::string& why);

  const FrontOptions options_;
  Backend* const backend_;
  const double started_;
  RequestTable requests_, submissions_;
  Intake intake_;
  std::function<void(double)> on_tick_;
  std::unique_ptr<Delivery> delivery_;
  std::vector<std::unique_ptr<grpc::Service>> services_;
  std::unique_ptr<grpc::Server> server_;
  std::atomic<bool> listening_ = false;  // server_ may be used by the delivery thread
  std::vector<std::string> ready_names_;
  std::string address_;
  int port_ = 0;

  mutable std::mutex show_mutex_;       // held while what is so is shown, so that nothing older is shown after it
  std::atomic<bool> draining_ = false;  // not ready
  std::atomic<bool> refusing_ = false;  // after that
  std::atomic<bool> timed_out_ = false;
  mutable std::mutex mutex_;
  double drain_deadline_ = 0;
  std::unique_ptr<ModelLimits> limits_;
  const uint64_t id_base_;
  std::atomic<uint64_t> ids_ = 0;
  bool stopped_ = false;
};

// Full names, as health checks and reflection spell them.
inline constexpr const char* kGenerationName = "quire.v1.Generation";
inline constexpr const char* kControlName = "quire.v1.Control";
inline constexpr const char* kWorkerName = "quire.v1.Worker";
inline constexpr const char* kRegistryName = "quire.v1.Registry";

// The services that every front has.
std::unique_ptr<grpc::Service> MakeGenerationService(Front* front);
std::unique_ptr<grpc::Service> MakeControlService(Front* front);

}  // namespace quire::rpc

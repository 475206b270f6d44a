// A group as a service: `quire serve`. Generation, Control and Worker over one engine, with health and reflection; and
// its registration with coordinators. Part of the installed library: names no type of gRPC.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/base/status.h"
#include "core/engine/engine.h"

namespace quire {

struct ServeOptions {
  std::string listen = "127.0.0.1:50051";  // HOST:PORT; port 0: any free one
  std::string version;
  std::string group;                       // its name for people; empty: the address
  std::string served_model;                // its name in requests; empty: the model's
  int tensor_parallel_size = 1;
  std::vector<std::string> coordinators;   // HOST:PORT of each that it registers with
  std::string advertise;                   // HOST:PORT it tells them; empty: the port it has, at the host they see
  int max_queue = 4096;                    // sequences in flight, running and waiting
  double shutdown_timeout_s = 30;
  double keep_s = 60;                      // how long a resumable request lives without a reader
  double stall_s = 30;                     // not ready when no step has finished for so long
  double unread_s = 60;                    // a client that leaves a message unread for so long loses its call
  size_t max_unread = 4 << 20;             // bytes that may wait for one client
};

class GroupServer {
 public:
  // Listens at once; until Serve, every request is UNAVAILABLE with how far the loading is. UNAVAILABLE when the address
  // can't be had.
  static Result<std::unique_ptr<GroupServer>> Start(ServeOptions options);
  ~GroupServer();  // as Stop

  const std::string& address() const;  // HOST:PORT with the port it has

  void SetLoading(const std::string& phase, double fraction);  // thread safe
  // Begins to serve; the engine is stepped by a thread of the server from now on. Registers with the coordinators.
  void Serve(std::unique_ptr<Engine> engine);
  // See Control.Drain; absent: shutdown_timeout_s. Thread safe.
  void Drain(std::optional<double> timeout_s = {});
  bool draining() const;
  bool Drained() const;  // nothing runs any more, or the timeout has passed: time to Stop
  // Not OK when the engine has failed for good: the program should end with this.
  Status failure() const;
  void Stop();

 private:
  struct Impl;
  explicit GroupServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace quire

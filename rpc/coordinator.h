// A coordinator in front of any number of groups: `quire coordinator`. Generation and Control like a group's, and Registry,
// where groups announce themselves. Requests are spread over the groups, and those of a group that is lost go on with
// another. Part of the installed library: names no type of gRPC.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/base/status.h"

namespace quire {

struct CoordinatorOptions {
  std::string listen = "127.0.0.1:50050";  // HOST:PORT; port 0: any free one
  std::string version;
  std::string name;                        // for logs, and towards groups; empty: host and port
  std::vector<std::string> workers;        // HOST:PORT of groups; others may register
  std::string model;                       // whose tokenizer is taken; empty: the first group is asked for its own
  int max_queue = 4096;                    // sequences in flight, running and waiting
  double shutdown_timeout_s = 30;
  double keep_s = 60;                      // how long a resumable request lives without a reader
  double unread_s = 60;                    // a client that leaves a message unread for so long loses its call
  size_t max_unread = 4 << 20;             // bytes that may wait for one client
  double silent_s = 2.5;                   // a group that says nothing for so long loses its requests to others
  double no_group_s = 2;                   // how long requests wait for a group when there is none
  double batch_window_s = 0.001;           // how long a submission to a busy group waits for others to go with it
};

class Coordinator {
 public:
  // Listens at once; UNAVAILABLE to clients until a group is there. UNAVAILABLE when the address can't be had;
  // INVALID_ARGUMENT for addresses that are none; what LoadTokenizer gives for `model`.
  static Result<std::unique_ptr<Coordinator>> Start(CoordinatorOptions options);
  ~Coordinator();  // as Stop

  const std::string& address() const;  // HOST:PORT with the port it has

  // See Control.Drain; absent: shutdown_timeout_s. Thread safe. The groups go on.
  void Drain(std::optional<double> timeout_s = {});
  bool draining() const;
  bool Drained() const;  // nothing runs any more, or the timeout has passed: time to Stop
  void Stop();

 private:
  struct Impl;
  explicit Coordinator(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace quire

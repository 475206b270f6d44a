// Ranks as threads of one process: collectives read the peers' buffers in place. Several ranks on one node without
// a launcher, about as fast as processes of an MPI job (README's figures), and the way tests run any tp.
#pragma once

#include <chrono>
#include <memory>
#include <vector>

#include "core/base/status.h"
#include "parallel/communicator.h"

namespace quire {

struct ThreadGroupOptions {
  // A collective that not all ranks reach in this time is UNAVAILABLE on those that did, naming the missing ranks.
  // 0: they wait as long as it takes (a group that idles between requests).
  std::chrono::milliseconds timeout{60000};
};

// `size` communicators of one group; each is used by one thread. A rank that destroys its communicator makes the
// others' next collective UNAVAILABLE at once. After any such error the group stays broken.
std::vector<std::unique_ptr<Communicator>> MakeThreadCommunicators(int size, const ThreadGroupOptions& options = {});

}  // namespace quire

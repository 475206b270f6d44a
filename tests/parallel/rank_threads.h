// Runs a body on every rank of a group whose ranks are threads.
#pragma once

#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "parallel/threads_communicator.h"

namespace quire::testing {

// Each rank in a thread that owns its communicator; returns when all have ended.
inline void OnRanks(int size, const std::function<void(std::unique_ptr<Communicator>)>& body,
                    const ThreadGroupOptions& options = {}) {
  auto group = MakeThreadCommunicators(size, options);
  std::vector<std::thread> threads;
  for (int r = 0; r < size; ++r) {
    threads.emplace_back([&body, comm = std::move(group[r])]() mutable { body(std::move(comm)); });
  }
  for (std::thread& t : threads) t.join();
}

}  // namespace quire::testing

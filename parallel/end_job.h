// The end of a group that can't go on: one sentence on stderr, then the whole job, by means that work while other threads
// hang in a collective. And a watchdog for stretches of the start in which nobody else looks.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

namespace quire {

inline constexpr int kExitGroupFailed = 1;

// Prints "quire: error: <message>" (nothing when empty) and ends the process with kExitGroupFailed; with it the MPI job
// it belongs to. Where MPI_Abort doesn't come to an end within 1.5 s the process kills itself, which ends the job too.
// Any thread; does not return.
[[noreturn]] void EndJob(const std::string& message);

// Calls `action` on a thread of its own, once, unless it is destroyed within `limit`. The destructor waits for an action
// that has begun.
class Watchdog {
 public:
  Watchdog(std::chrono::milliseconds limit, std::function<void()> action);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool dismissed_ = false;
  std::thread thread_;
};

}  // namespace quire

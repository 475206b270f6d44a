// Intake: a few threads that do what is too long for gRPC's own (encoding prompts, mostly), first come first served.
// Internal to rpc/.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace quire::rpc {

class Intake {
 public:
  explicit Intake(int threads);
  ~Intake();  // as Stop

  void Post(std::function<void()> job);  // thread safe
  // Ends the threads when everything posted has run. Later jobs run at once, on the caller's thread.
  void Stop();

 private:
  void Run();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> jobs_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace quire::rpc

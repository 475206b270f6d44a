// Delivery: the thread between the one that steps the engine and gRPC's writes. The engine's callbacks only note which
// request has news; this thread tells the readers, which make messages of it. It also ticks. Internal to rpc/.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "rpc/request.h"

namespace quire::rpc {

class Delivery {
 public:
  // on_news gets each request noted since it was last told; on_tick every `tick_s` seconds.
  Delivery(std::function<void(const std::shared_ptr<Request>&)> on_news, std::function<void(double now)> on_tick,
           double tick_s);
  ~Delivery();  // as Stop

  void Note(const std::shared_ptr<Request>& request);  // thread safe, cheap
  // Ends the thread when it has told what was noted. Later notes are dropped.
  void Stop();

 private:
  void Run();

  const std::function<void(const std::shared_ptr<Request>&)> on_news_;
  const std::function<void(double)> on_tick_;
  const double tick_s_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::shared_ptr<Request>> noted_;  // each once: Request::noted
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace quire::rpc

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

class DeliveryBatch;

class Delivery {
 public:
  using OnNews = std::function<void(const std::vector<std::shared_ptr<Request>>&)>;
  // on_news gets the requests noted since it was last told, each once; on_tick every `tick_s` seconds.
  Delivery(OnNews on_news, std::function<void(double now)> on_tick, double tick_s);
  ~Delivery();  // as Stop

  void Note(const std::shared_ptr<Request>& request);  // thread safe, cheap
  // Ends the thread when it has told what was noted. Later notes are dropped.
  void Stop();

 private:
  friend class DeliveryBatch;
  void Run();
  void Tell(const std::vector<std::shared_ptr<Request>>& noted);
  void End(const DeliveryBatch& batch);

  const OnNews on_news_;
  const std::function<void(double)> on_tick_;
  const double tick_s_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::shared_ptr<Request>> noted_;  // each once: Request::noted
  bool stopping_ = false;
  std::thread thread_;
};

// While it lives, what its thread notes is kept here, so that what comes together is delivered together, and no thread is
// woken for a part of it. For one Delivery; not within another batch, and with no lock held at its end.
class DeliveryBatch {
 public:
  enum class AtEnd {
    kHandOver,  // to the Delivery's thread: of one that has something else to do
    kTell,      // the readers, by this thread: of gRPC's, which may write
  };
  explicit DeliveryBatch(AtEnd at_end);
  ~DeliveryBatch();

 private:
  friend class Delivery;
  const AtEnd at_end_;
  Delivery* delivery_ = nullptr;
  std::vector<std::shared_ptr<Request>> noted_;
};

}  // namespace quire::rpc

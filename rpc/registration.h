// Registration: tells one coordinator, again and again, that this group is there. A coordinator that isn't there (yet)
// is no error: it is tried for as long as the group lives. Internal to rpc/.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "core/base/status.h"
#include "quire/v1/worker.pb.h"

namespace quire::rpc {

class Registration {
 public:
  // address: as RegisterRequest has it. ready: whether to say anything now.
  Registration(std::string coordinator, std::string address, std::function<Result<v1::Identity>()> identity,
               std::function<bool()> ready);
  ~Registration();

 private:
  void Run();

  const std::string coordinator_, address_;
  const std::function<Result<v1::Identity>()> identity_;
  const std::function<bool()> ready_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace quire::rpc

// See registration.h.
#include "rpc/registration.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "core/base/log.h"
#include "quire/v1/worker.grpc.pb.h"
#include "rpc/channel.h"

namespace quire::rpc {
namespace {

constexpr double kRetrySeconds = 1, kCallSeconds = 5;
constexpr double kMinInterval = 0.1, kMaxInterval = 60;

}  // namespace

Registration::Registration(std::string coordinator, std::string address,
                           std::function<Result<v1::Identity>()> identity, std::function<bool()> ready)
    : coordinator_(std::move(coordinator)),
      address_(std::move(address)),
      identity_(std::move(identity)),
      ready_(std::move(ready)),
      thread_([this] { Run(); }) {}

Registration::~Registration() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

void Registration::Run() {
  const auto stub = v1::Registry::NewStub(MakeChannel(coordinator_));
  bool said_well = false, said_ill = false;
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    double wait = kRetrySeconds;
    lock.unlock();
    if (const auto identity = identity_(); identity.ok() && ready_()) {
      v1::RegisterRequest request;
      request.set_address(address_);
      *request.mutable_identity() = *identity;
      v1::RegisterResponse response;
      grpc::ClientContext context;
      context.set_deadline(std::chrono::system_clock::now() +
                           std::chrono::milliseconds(static_cast<int64_t>(1000 * kCallSeconds)));
      const grpc::Status status = stub->Register(&context, request, &response);
      if (status.ok()) {
        wait = std::clamp(response.interval_s(), kMinInterval, kMaxInterval);
        if (!std::exchange(said_well, true)) Log(LogLevel::kInfo, "registered with the coordinator " + coordinator_);
        said_ill = false;
      } else {
        if (!std::exchange(said_ill, true)) {
          Log(LogLevel::kWarning, "the coordinator " + coordinator_ + " doesn't take this group (yet): " +
                                      status.error_message() + "; it is tried again every second");
        }
        said_well = false;
      }
    }
    lock.lock();
    wake_.wait_for(lock, std::chrono::duration<double>(wait), [this] { return stopping_; });
  }
}

}  // namespace quire::rpc

// Only in builds with ThreadSanitizer: what it can't see of gRPC. The system's libraries are not instrumented; they lock
// with absl::Mutex, made of atomics and futexes, and hand a call's operations from thread to thread through atomics. To
// TSan all of that would be races. The functions here stand before the libraries' (a program's own symbols are found
// first), call those, and tell TSan what comes before what: an unlock before the next lock, the start of a batch of
// operations before its callback. Nothing is hidden by that: what no lock and no batch orders is still reported.
#include <absl/synchronization/mutex.h>
#include <dlfcn.h>
#include <grpc/grpc.h>
#include <grpcpp/support/callback_common.h>
#include <sanitizer/tsan_interface.h>

#include <cstring>

#include "core/base/check.h"

namespace {

// The function of that name in the library behind this program; a member's pointer begins with its address.
template <typename Member>
Member InLibrary(Member here) {
  void* address = nullptr;
  std::memcpy(&address, &here, sizeof address);
  Dl_info symbol{};
  CHECK(dladdr(address, &symbol) != 0 && symbol.dli_saddr == address);  // else gRPC's libraries don't find it either
  void* const next = dlsym(RTLD_NEXT, symbol.dli_sname);
  CHECK(next != nullptr);
  std::memcpy(&here, &next, sizeof next);
  return here;
}

// The two kinds of callback in gRPC's headers; the functions that run them are private, and an explicit instantiation may
// name what is private.
using Run = void (*)(grpc_completion_queue_functor*, int);
Run SuccessRun();
Run StatusRun();
template <Run kRun>
struct TellSuccessRun {
  friend Run SuccessRun() { return kRun; }
};
template <Run kRun>
struct TellStatusRun {
  friend Run StatusRun() { return kRun; }
};
template struct TellSuccessRun<&grpc::internal::CallbackWithSuccessTag::StaticRun>;
template struct TellStatusRun<&grpc::internal::CallbackWithStatusTag::StaticRun>;

template <Run (*kRun)()>
void RunAfterStart(grpc_completion_queue_functor* callback, int ok) {
  __tsan_acquire(callback);
  kRun()(callback, ok);
}

}  // namespace

// The tag is such a callback, or an operation of a completion queue (which begins with another pointer).
extern "C" grpc_call_error grpc_call_start_batch(grpc_call* call, const grpc_op* operations, size_t count, void* tag,
                                                 void* reserved) {
  static const auto start = reinterpret_cast<decltype(&grpc_call_start_batch)>(dlsym(RTLD_NEXT, "grpc_call_start_batch"));
  CHECK(start != nullptr);
  if (tag != nullptr) {
    auto* const callback = static_cast<grpc_completion_queue_functor*>(tag);
    if (callback->functor_run == SuccessRun()) callback->functor_run = &RunAfterStart<&SuccessRun>;
    if (callback->functor_run == StatusRun()) callback->functor_run = &RunAfterStart<&StatusRun>;
    __tsan_release(tag);
  }
  return start(call, operations, count, tag, reserved);
}

namespace absl {

void Mutex::Lock() {
  static const auto lock = InLibrary(&Mutex::Lock);
  (this->*lock)();
  __tsan_acquire(this);
}

bool Mutex::TryLock() {
  static const auto try_lock = InLibrary(&Mutex::TryLock);
  const bool locked = (this->*try_lock)();
  if (locked) __tsan_acquire(this);
  return locked;
}

void Mutex::Unlock() {
  static const auto unlock = InLibrary(&Mutex::Unlock);
  __tsan_release(this);
  (this->*unlock)();
}

void CondVar::Wait(Mutex* mutex) {
  static const auto wait = InLibrary(&CondVar::Wait);
  __tsan_release(mutex);
  (this->*wait)(mutex);
  __tsan_acquire(mutex);
}

bool CondVar::WaitWithTimeout(Mutex* mutex, Duration timeout) {
  static const auto wait = InLibrary(&CondVar::WaitWithTimeout);
  __tsan_release(mutex);
  const bool timed_out = (this->*wait)(mutex, timeout);
  __tsan_acquire(mutex);
  return timed_out;
}

bool CondVar::WaitWithDeadline(Mutex* mutex, Time deadline) {
  static const auto wait = InLibrary(&CondVar::WaitWithDeadline);
  __tsan_release(mutex);
  const bool timed_out = (this->*wait)(mutex, deadline);
  __tsan_acquire(mutex);
  return timed_out;
}

}  // namespace absl

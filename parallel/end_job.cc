#include "parallel/end_job.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <utility>

#include "core/base/log.h"
#include "parallel/mpi_communicator.h"

namespace quire {

void EndJob(const std::string& message) {
  if (!message.empty()) Log(LogLevel::kError, message);
  if (MpiRunning()) {
    std::thread([] {
      std::this_thread::sleep_for(std::chrono::milliseconds(1500));
      kill(getpid(), SIGKILL);
    }).detach();
    AbortMpiJob(kExitGroupFailed);
  }
  _exit(kExitGroupFailed);
}

Watchdog::Watchdog(std::chrono::milliseconds limit, std::function<void()> action) {
  thread_ = std::thread([this, limit, action = std::move(action)] {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, nullptr);  // signals are the program's threads' business
    std::unique_lock lock(mutex_);
    if (changed_.wait_for(lock, limit, [this] { return dismissed_; })) return;
    lock.unlock();
    action();
  });
}

Watchdog::~Watchdog() {
  {
    std::lock_guard lock(mutex_);
    dismissed_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

}  // namespace quire

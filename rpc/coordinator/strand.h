// Strand: runs what many threads post, one job at a time and in order, on whichever of them finds it idle. A job may
// post, which never waits and never recurses; so state behind a strand needs no care about who calls back whom.
#pragma once

#include <deque>
#include <functional>
#include <mutex>
#include <utility>

namespace quire::rpc {

class Strand {
 public:
  // Thread safe. Returns when the job has run, or has been left to the thread that is running others.
  void Post(std::function<void()> job) {
    std::unique_lock lock(queue_mutex_);
    jobs_.push_back(std::move(job));
    if (running_) return;
    running_ = true;
    while (!jobs_.empty()) {
      std::function<void()> next = std::move(jobs_.front());
      jobs_.pop_front();
      lock.unlock();
      {
        std::lock_guard state(state_mutex_);
        next();
      }
      next = nullptr;
      lock.lock();
    }
    running_ = false;
  }

  // Looks at the state between two jobs. Not from within a job.
  template <typename Look>
  auto View(const Look& look) const {
    std::lock_guard state(state_mutex_);
    return look();
  }

 private:
  std::mutex queue_mutex_;
  mutable std::mutex state_mutex_;  // held while a job runs
  std::deque<std::function<void()>> jobs_;
  bool running_ = false;
};

}  // namespace quire::rpc

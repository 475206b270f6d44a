#include "core/base/thread_pool.h"

#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "core/base/check.h"

namespace quire {
namespace {

int AvailableProcessors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    const int n = CPU_COUNT(&set);
    if (n > 0) return n;
  }
  const unsigned n = std::thread::hardware_concurrency();
  return n == 0 ? 1 : static_cast<int>(n);
}

// Spins this long before sleeping: a decode step makes some hundred short calls, and waking a
// sleeping thread costs as much as many of them.
constexpr int kSpins = 4000;

inline void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

struct ThreadPool::State {
  int threads = 1;
  std::vector<std::thread> workers;

  // One job at a time. `generation` is bumped to start it; `active` counts workers still inside.
  std::mutex mutex;
  std::condition_variable start;
  std::atomic<uint64_t> generation{0};
  std::atomic<bool> stop{false};
  std::atomic<int64_t> next{0};
  std::atomic<int> active{0};
  int64_t tasks = 0;
  void* fn = nullptr;
  TaskFn call = nullptr;
  std::atomic<bool> busy{false};

  void Work(int worker) {
    for (;;) {
      const int64_t task = next.fetch_add(1, std::memory_order_relaxed);
      if (task >= tasks) return;
      call(fn, task, worker);
    }
  }

  void WorkerLoop(int worker) {
    uint64_t seen = 0;
    for (;;) {
      for (int i = 0; i < kSpins && generation.load(std::memory_order_acquire) == seen; ++i) Pause();
      if (generation.load(std::memory_order_acquire) == seen) {
        std::unique_lock lock(mutex);
        start.wait(lock, [&] { return generation.load(std::memory_order_acquire) != seen; });
      }
      seen = generation.load(std::memory_order_acquire);
      if (stop.load()) return;
      Work(worker);
      active.fetch_sub(1, std::memory_order_acq_rel);
    }
  }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()) {
  CHECK_GE(threads, 0);
  state_->threads = threads == 0 ? AvailableProcessors() : threads;
  for (int i = 1; i < state_->threads; ++i) {
    state_->workers.emplace_back([s = state_.get(), i] { s->WorkerLoop(i); });
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(state_->mutex);
    state_->stop = true;
    state_->generation.fetch_add(1);
  }
  state_->start.notify_all();
  for (std::thread& t : state_->workers) t.join();
}

int ThreadPool::threads() const { return state_->threads; }

void ThreadPool::Run(int64_t tasks, void* fn, TaskFn call) {
  if (tasks <= 0) return;
  if (tasks == 1 || state_->threads == 1) {
    for (int64_t t = 0; t < tasks; ++t) call(fn, t, 0);
    return;
  }
  State& s = *state_;
  CHECK(!s.busy.exchange(true));  // calls neither nest nor overlap
  s.tasks = tasks;
  s.fn = fn;
  s.call = call;
  s.next.store(0, std::memory_order_relaxed);
  s.active.store(s.threads - 1, std::memory_order_relaxed);
  {
    std::lock_guard lock(s.mutex);
    s.generation.fetch_add(1, std::memory_order_release);
  }
  s.start.notify_all();
  s.Work(0);
  for (int spins = 0; s.active.load(std::memory_order_acquire) != 0; ++spins) {
    if (spins < kSpins) Pause();
    else std::this_thread::yield();
  }
  s.busy.store(false);
}

}  // namespace quire

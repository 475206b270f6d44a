// ThreadPool: the one pool of a rank. Kernels split their work into tasks whose borders depend on
// sizes alone, never on the number of threads, so that results don't either.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>
#include <utility>

namespace quire {

class ThreadPool {
 public:
  // `threads` ≥ 1, the calling thread included. 0 asks for the processors this process may use.
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const;

  // Calls f(task, worker) once for every task in [0, tasks), worker in [0, threads()); returns when all are
  // done. Tasks are handed out one at a time from a shared counter, so uneven tasks balance.
  // Only one thread may call it at a time; calls don't nest. A call with one task runs inline.
  template <typename F>
  void ParallelFor(int64_t tasks, F&& f) {
    using Fn = std::remove_reference_t<F>;
    Run(tasks, const_cast<void*>(static_cast<const void*>(std::addressof(f))),
        [](void* fn, int64_t task, int worker) { (*static_cast<Fn*>(fn))(task, worker); });
  }

 private:
  using TaskFn = void (*)(void* fn, int64_t task, int worker);
  void Run(int64_t tasks, void* fn, TaskFn call);

  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace quire

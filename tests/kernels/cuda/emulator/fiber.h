// Fibers on Boost.Context with stacks of their own behind a guard page, told to AddressSanitizer. A fiber runs one job
// after another; a pool belongs to one thread of the system. ThreadSanitizer can't follow them: its tests use threads.
#pragma once

#include <functional>
#include <memory>
#include <vector>

namespace quire::emulator {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Gives an idle fiber its next job; Resume starts it. The job may not throw.
  void Assign(std::function<void()> job);
  // From outside: runs the job until it calls Suspend or ends.
  void Resume();
  // From inside the job: back to whoever resumed it.
  void Suspend();
  bool idle() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

class FiberPool {
 public:
  // The i-th fiber, made when first asked for.
  Fiber& At(int i);

 private:
  std::vector<std::unique_ptr<Fiber>> fibers_;
};

}  // namespace quire::emulator

#include "tests/kernels/cuda/emulator/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <boost/context/fiber.hpp>
#include <boost/context/preallocated.hpp>
#include <utility>

#include "core/base/check.h"

#if defined(__SANITIZE_ADDRESS__)
#define QUIRE_FIBER_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define QUIRE_FIBER_ASAN 1
#endif
#endif
#if defined(QUIRE_FIBER_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace quire::emulator {
namespace {

constexpr size_t kStackBytes = 256 * 1024;  // of address space; what is not touched costs nothing

// A stack whose lowest page traps.
class Stack {
 public:
  Stack() {
    guard_ = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* p = mmap(nullptr, kStackBytes + guard_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(p != MAP_FAILED);
    begin_ = static_cast<char*>(p);
    CHECK_EQ(mprotect(begin_, guard_, PROT_NONE), 0);
  }
  ~Stack() {
#if defined(QUIRE_FIBER_ASAN)
    // Whoever maps these addresses next (a model's file, say) would find the marks of this stack's frames.
    __asan_unpoison_memory_region(begin_, kStackBytes + guard_);
#endif
    munmap(begin_, kStackBytes + guard_);
  }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;
  char* bottom() const { return begin_ + guard_; }
  char* top() const { return bottom() + kStackBytes; }

 private:
  size_t guard_ = 0;
  char* begin_ = nullptr;
};

// Boost gives the stack back through this; the Stack object owns it.
struct KeepStack {
  boost::context::stack_context allocate() { return {}; }
  void deallocate(boost::context::stack_context&) {}
};

}  // namespace

struct Fiber::State {
  Stack stack;
  std::function<void()> job;
  bool idle = true;
  bool stop = false;
  boost::context::fiber inside;   // the fiber, while it is suspended
  boost::context::fiber outside;  // whoever resumed it, while it runs
  const void* outside_bottom = nullptr;
  size_t outside_size = 0;
  void* outside_fake_stack = nullptr;
  void* inside_fake_stack = nullptr;

  // On the fiber's stack, after each arrival there.
  void Entered() {
#if defined(QUIRE_FIBER_ASAN)
    __sanitizer_finish_switch_fiber(inside_fake_stack, &outside_bottom, &outside_size);
#endif
  }

  // From the fiber's stack to the outside; `last`: it never comes back.
  void Leave(bool last) {
#if defined(QUIRE_FIBER_ASAN)
    __sanitizer_start_switch_fiber(last ? nullptr : &inside_fake_stack, outside_bottom, outside_size);
#endif
    if (last) return;
    outside = std::move(outside).resume();
    Entered();
  }

  boost::context::fiber Loop(boost::context::fiber&& from) {
    outside = std::move(from);
    Entered();
    while (!stop) {
      job();
      idle = true;
      Leave(false);
    }
    Leave(true);
    return std::move(outside);
  }

  void Enter() {
#if defined(QUIRE_FIBER_ASAN)
    __sanitizer_start_switch_fiber(&outside_fake_stack, stack.bottom(), kStackBytes);
#endif
    inside = std::move(inside).resume();
#if defined(QUIRE_FIBER_ASAN)
    __sanitizer_finish_switch_fiber(outside_fake_stack, nullptr, nullptr);
#endif
  }
};

Fiber::Fiber() : state_(std::make_unique<State>()) {
  State* s = state_.get();
  boost::context::stack_context context;
  context.sp = s->stack.top();
  context.size = kStackBytes;
  s->inside = boost::context::fiber(
      std::allocator_arg, boost::context::preallocated(context.sp, context.size, context), KeepStack{},
      [s](boost::context::fiber&& from) { return s->Loop(std::move(from)); });
}

Fiber::~Fiber() {
  CHECK(state_->idle);
  state_->stop = true;
  state_->job = [] {};
  state_->Enter();
}

void Fiber::Assign(std::function<void()> job) {
  CHECK(state_->idle);
  state_->job = std::move(job);
  state_->idle = false;
}

void Fiber::Resume() { state_->Enter(); }
void Fiber::Suspend() { state_->Leave(false); }
bool Fiber::idle() const { return state_->idle; }

Fiber& FiberPool::At(int i) {
  while (static_cast<int>(fibers_.size()) <= i) fibers_.push_back(std::make_unique<Fiber>());
  return *fibers_[static_cast<size_t>(i)];
}

}  // namespace quire::emulator

// Runs a launch: its blocks in a seeded order, a block's threads as fibers or as threads of the system. What they wait for is
// in block.h.
#include "tests/kernels/cuda/emulator/engine.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>

#include "core/base/check.h"
#include "tests/kernels/cuda/emulator/block.h"

#if defined(__SANITIZE_ADDRESS__)
#define QUIRE_ENGINE_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define QUIRE_ENGINE_ASAN 1
#endif
#endif
#if defined(QUIRE_ENGINE_ASAN)
#include <sanitizer/asan_interface.h>
#endif
namespace quire::emulator {
namespace {

// SplitMix64.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t x = state_ += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  }
  size_t Below(size_t n) { return static_cast<size_t>(Next() % n); }

 private:
  uint64_t state_;
};

#if defined(QUIRE_ENGINE_ASAN)
// AddressSanitizer's reports name the line; this names the thread.
void NameThread(const char*) {
  if (current == nullptr) return;
  std::fprintf(stderr, "in %s: thread %d\n", BlockName(*current->block).c_str(), current->place.thread);
}
#endif

void OnLeave(Thread& t) {
  Block& b = *t.block;
  auto lock = Lock(b);
  t.left = true;
  ++b.left;
  if (b.error.empty()) {
    const uint32_t bit = 1u << (t.place.thread % 32);
    for (const PendingWarp& p : b.warps[static_cast<size_t>(t.place.thread / 32)]) {
      if ((p.mask & bit) != 0 && (p.here & bit) == 0) {
        SetError(b, "thread " + std::to_string(t.place.thread) + " leaves the kernel while its warp waits for it in " + std::string(p.name) +
                        " at " + Line(p.where));
        return;
      }
    }
    if (!t.open.empty() || !t.copies.empty()) {
      SetError(b, "thread " + std::to_string(t.place.thread) + " leaves the kernel with asynchronous copies not waited for, "
                  "the last started at " + Line(t.copy_where));
      return;
    }
    const Barrier& all = b.barriers[0];
    if (all.arrived > 0) {
      SetError(b, "thread " + std::to_string(t.place.thread) + " leaves the kernel, but " +
                      ThreadAt(all.first_thread, all.where) + " waits for all in SyncThreads");
      return;
    }
  }
  if (b.os_threads) CheckStuck(b);
  b.changed.notify_all();
}

void RunThread(Thread& t, const std::function<void()>& body) {
  current = &t;
  try {
    body();
  } catch (const Leave&) {
  }
  const Hidden hidden;
  OnLeave(t);
}

void RunAsFibers(Block& b, const std::function<void()>& body, Random& random) {
  thread_local FiberPool pool;
  for (Thread& t : b.threads) {
    t.fiber = &pool.At(t.place.thread);
    t.fiber->Assign([&t, &body] { RunThread(t, body); });
    b.runnable.push_back(t.place.thread);
  }
  while (true) {
    while (!b.runnable.empty()) {
      const size_t i = random.Below(b.runnable.size());
      const int thread = b.runnable[i];
      b.runnable[i] = b.runnable.back();
      b.runnable.pop_back();
      b.threads[static_cast<size_t>(thread)].fiber->Resume();
    }
    if (b.left == static_cast<int>(b.threads.size())) break;
    SetError(b, StuckMessage(b));
  }
  current = nullptr;
}

// Threads of the system that run one block after another: starting them costs more than a small block. For ThreadSanitizer
// a block begins after what its launch did before, and the launch goes on after all threads of the block; nothing orders one
// thread after another.
class SystemThreads {
 public:
  explicit SystemThreads(int count) {
    for (int i = 0; i < count; ++i) threads_.emplace_back([this, i] { Loop(i); });
  }
  ~SystemThreads() {
    {
      const Hidden hidden;
      const std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
      start_.notify_all();
    }
    for (std::thread& t : threads_) t.join();
  }
  // block.threads is as long as `count`.
  void Run(Block& block, const std::function<void()>& body) {
    ReleaseOrder(&begin_tag_);
    {
      const Hidden hidden;
      std::unique_lock<std::mutex> lock(mutex_);
      block_ = &block;
      body_ = &body;
      running_ = static_cast<int>(threads_.size());
      ++round_;
      start_.notify_all();
      end_.wait(lock, [&] { return running_ == 0; });
    }
    AcquireOrder(&end_tag_);
  }

 private:
  void Loop(int i) {
    for (uint64_t round = 1;; ++round) {
      Thread* thread = nullptr;
      const std::function<void()>* body = nullptr;
      {
        const Hidden hidden;
        std::unique_lock<std::mutex> lock(mutex_);
        start_.wait(lock, [&] { return stop_ || round_ == round; });
        if (stop_) return;
        thread = &block_->threads[static_cast<size_t>(i)];
        body = body_;
      }
      AcquireOrder(&begin_tag_);
      RunThread(*thread, *body);
      ReleaseOrder(&end_tag_);
      const Hidden hidden;
      const std::lock_guard<std::mutex> lock(mutex_);
      if (--running_ == 0) end_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable start_, end_;
  Block* block_ = nullptr;
  const std::function<void()>* body_ = nullptr;
  uint64_t round_ = 0;
  int running_ = 0;
  bool stop_ = false;
  char begin_tag_ = 0, end_tag_ = 0;
  std::vector<std::thread> threads_;
};

struct FreeShared {
  void operator()(std::byte* p) const { std::free(p); }
};

void RunBlock(const char* kernel, const simt::LaunchShape& shape, const int64_t (&at)[3], const std::function<void()>& body,
              Random& random, SystemThreads* system_threads) {
  Block b;
  b.kernel = kernel;
  b.os_threads = system_threads != nullptr;
  // Its own allocation of the exact size, so that AddressSanitizer sees what lies past it.
  void* memory = nullptr;
  if (shape.shared_bytes > 0) CHECK_EQ(posix_memalign(&memory, 128, shape.shared_bytes), 0);
  const std::unique_ptr<std::byte, FreeShared> shared(static_cast<std::byte*>(memory));
  if (memory != nullptr) std::memset(memory, 0xff, shape.shared_bytes);
  b.threads.resize(static_cast<size_t>(shape.threads));
  const size_t warps = static_cast<size_t>(shape.threads / 32);
  b.warps.resize(warps);
  b.warp_tags.resize(warps);
  b.warp_rounds.resize(warps);
  for (int i = 0; i < shape.threads; ++i) {
    Thread& t = b.threads[static_cast<size_t>(i)];
    t.block = &b;
    t.place.thread = i;
    t.place.threads = shape.threads;
    std::copy(at, at + 3, t.place.block);
    t.place.grid[0] = shape.grid_x;
    t.place.grid[1] = shape.grid_y;
    t.place.grid[2] = shape.grid_z;
    t.place.shared = shared.get();
    t.place.shared_bytes = shape.shared_bytes;
  }
  if (b.os_threads) {
    system_threads->Run(b, body);
  } else {
    RunAsFibers(b, body, random);
  }
  if (!b.error.empty()) throw Error(b.error);
}

thread_local Options current_options;
LaunchHook launch_hook;

struct Hooked {
  Hooked(const char* kernel, const void* params, size_t bytes) {
    if (launch_hook.begin != nullptr) launch_hook.begin(kernel, params, bytes);
  }
  ~Hooked() {
    if (launch_hook.end != nullptr) launch_hook.end();
  }
};

}  // namespace

ScopedOptions::ScopedOptions(const Options& options) : before_(current_options) { current_options = options; }
ScopedOptions::~ScopedOptions() { current_options = before_; }
const Options& ScopedOptions::Current() { return current_options; }

void SetLaunchHook(const LaunchHook& hook) { launch_hook = hook; }

void Submit(void* stream, std::function<void()> work) {
  if (launch_hook.submit != nullptr) return launch_hook.submit(stream, std::move(work));
  work();
}

void RunHostTask(const char* name, const void* params, size_t params_bytes, const std::function<void()>& body) {
  const Hooked hooked(name, params, params_bytes);
  body();
}

void RunLaunch(const char* kernel, int max_threads, const simt::LaunchShape& shape, const void* params, size_t params_bytes,
               const std::function<void()>& body) {
  CHECK(current == nullptr);
#if defined(QUIRE_ENGINE_ASAN)
  __asan_set_error_report_callback(NameThread);
#endif
  const auto refuse = [&](const std::string& what) { throw Error(std::string(kernel) + ": " + what); };
  if (shape.threads < 32 || shape.threads % 32 != 0 || shape.threads > max_threads || shape.threads > 1024) {
    refuse("a block of " + std::to_string(shape.threads) + " threads; it takes a multiple of 32, at most " +
           std::to_string(max_threads));
  }
  if (shape.grid_x < 0 || shape.grid_x > INT32_MAX || shape.grid_y < 0 || shape.grid_y > 65535 || shape.grid_z < 0 ||
      shape.grid_z > 65535) {
    refuse("a grid of " + std::to_string(shape.grid_x) + " × " + std::to_string(shape.grid_y) + " × " +
           std::to_string(shape.grid_z) + " blocks; the most is 2147483647 × 65535 × 65535");
  }
  const Options& options = ScopedOptions::Current();
  if (shape.shared_bytes > options.max_shared_bytes) {
    refuse(std::to_string(shape.shared_bytes) + " bytes of shared memory; a block has " +
           std::to_string(options.max_shared_bytes));
  }
  const Hooked hooked(kernel, params, params_bytes);
  Random random(options.seed);
  const int64_t blocks = shape.grid_x * shape.grid_y * shape.grid_z;
  std::vector<int64_t> order(static_cast<size_t>(blocks));
  for (int64_t i = 0; i < blocks; ++i) order[static_cast<size_t>(i)] = i;
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.Below(i)]);
  std::unique_ptr<SystemThreads> threads;
  if (options.os_threads) threads = std::make_unique<SystemThreads>(shape.threads);
  for (const int64_t i : order) {
    const int64_t at[3] = {i % shape.grid_x, i / shape.grid_x % shape.grid_y, i / shape.grid_x / shape.grid_y};
    RunBlock(kernel, shape, at, body, random, threads.get());
  }
}

}  // namespace quire::emulator

// Whatever waits is a record in Block: pending warp operations and barriers. An arrival that completes one releases its
// threads; when nobody can run and not all have left, the block is stuck, and that is an error with everybody's line.
//
// With threads of the system one lock guards the records. ThreadSanitizer is told to see neither the lock nor the records, so
// that the only order between threads is the one barriers give.
#include "tests/kernels/cuda/emulator/engine.h"

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string_view>
#include <thread>
#include <vector>

#include "core/base/check.h"
#include "tests/kernels/cuda/emulator/fiber.h"

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
#if defined(__SANITIZE_THREAD__)
#define QUIRE_ENGINE_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define QUIRE_ENGINE_TSAN 1
#endif
#endif
#if defined(QUIRE_ENGINE_TSAN)
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreSyncBegin(const char* file, int line);
void AnnotateIgnoreSyncEnd(const char* file, int line);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace quire::emulator {
namespace {

// Hides what happens inside from ThreadSanitizer: neither accesses nor order.
class Hidden {
 public:
#if defined(QUIRE_ENGINE_TSAN)
  Hidden() {
    AnnotateIgnoreSyncBegin(__FILE__, __LINE__);
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Hidden() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
    AnnotateIgnoreSyncEnd(__FILE__, __LINE__);
  }
#else
  Hidden() {}
  ~Hidden() {}
#endif
};

void ReleaseOrder([[maybe_unused]] void* tag) {
#if defined(QUIRE_ENGINE_TSAN)
  __tsan_release(tag);
#endif
}
void AcquireOrder([[maybe_unused]] void* tag) {
#if defined(QUIRE_ENGINE_TSAN)
  __tsan_acquire(tag);
#endif
}

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

struct Leave {};  // thrown through a kernel's frames when its launch has failed

std::string Line(const Where& w) { return std::string(w.file_name()) + ":" + std::to_string(w.line()); }
bool Same(const Where& a, const Where& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

struct Copy {
  void* to;
  const void* from;
  int bytes;
  bool there;
};

struct Block;

struct Thread {
  ThreadPlace place;
  Block* block = nullptr;
  Fiber* fiber = nullptr;
  bool waiting = false;
  bool left = false;
  std::string_view waits_for;  // "SyncThreads"
  Where waits_at;
  std::vector<std::vector<Copy>> copies;  // committed groups, oldest first
  std::vector<Copy> open;                 // not committed yet
  Where copy_where;
};

struct PendingWarp {
  uint32_t mask = 0, here = 0;
  const char* name = nullptr;
  Where where;
  Exchange* lanes[32] = {};
};

struct Barrier {
  int expected = 0, arrived = 0;
  Where where;
  int first_thread = 0;
  std::vector<int> waiting;
  uint64_t round = 0;
  char tags[2] = {};  // of even and odd rounds, for ThreadSanitizer
};

struct Block {
  const char* kernel = nullptr;
  bool os_threads = false;
  std::vector<Thread> threads;
  std::vector<std::vector<PendingWarp>> warps;
  Barrier barriers[16];
  char fence_tag = 0;
  // For ThreadSanitizer: tags of even and odd barriers of the whole warp, and of those of some lanes.
  std::vector<std::array<char, 3>> warp_tags;
  std::vector<std::array<uint64_t, 32>> warp_rounds;  // barriers of the whole warp that a lane has passed
  std::vector<int> runnable;                          // fibers
  int left = 0, waiting = 0;
  std::string error;
  std::mutex mutex;
  std::condition_variable changed;
};

thread_local Thread* current = nullptr;

Thread& Current() {
  CHECK(current != nullptr);
  return *current;
}

std::string BlockName(const Block& b) {
  const auto& at = b.threads[0].place.block;
  return std::string(b.kernel) + ", block (" + std::to_string(at[0]) + ", " + std::to_string(at[1]) + ", " +
         std::to_string(at[2]) + ")";
}

#if defined(QUIRE_ENGINE_ASAN)
// AddressSanitizer's reports name the line; this names the thread.
void NameThread(const char*) {
  if (current == nullptr) return;
  std::fprintf(stderr, "in %s: thread %d\n", BlockName(*current->block).c_str(), current->place.thread);
}
#endif

// Lock held (or fibers): everybody who waits wakes up and leaves.
void SetError(Block& b, const std::string& what) {
  if (b.error.empty()) b.error = BlockName(b) + ": " + what;
  for (Thread& t : b.threads) {
    if (!t.waiting) continue;
    t.waiting = false;
    if (!b.os_threads) b.runnable.push_back(t.place.thread);
  }
  b.waiting = 0;
  b.changed.notify_all();
}

void Wake(Block& b, int thread) {
  Thread& t = b.threads[static_cast<size_t>(thread)];
  if (!t.waiting) return;
  t.waiting = false;
  --b.waiting;
  if (!b.os_threads) b.runnable.push_back(thread);
}

// Everybody who has not left waits: says who waits where.
std::string StuckMessage(const Block& b) {
  std::map<std::string, std::vector<int>> places;
  for (const Thread& t : b.threads) places[t.left ? "left the kernel" : "wait for " + std::string(t.waits_for) + " at " + Line(t.waits_at)].push_back(t.place.thread);
  std::string text = "not all threads reach it:";
  for (const auto& [what, threads] : places) {
    text += " threads";
    for (size_t i = 0; i < threads.size();) {
      size_t j = i;
      while (j + 1 < threads.size() && threads[j + 1] == threads[j] + 1) ++j;
      text += (i == 0 ? " " : ", ") + std::to_string(threads[i]) + (j > i ? "-" + std::to_string(threads[j]) : "");
      i = j + 1;
    }
    text += " " + what + ";";
  }
  return text;
}

void CheckStuck(Block& b) {
  if (b.error.empty() && b.waiting > 0 && b.waiting + b.left == static_cast<int>(b.threads.size())) {
    SetError(b, StuckMessage(b));
  }
}

// The caller has put itself among those who wait for something; returns when woken. Throws Leave when the launch has failed.
void Wait(Block& b, Thread& t, std::unique_lock<std::mutex>& lock, std::string_view waits_for, const Where& where) {
  t.waits_for = waits_for;
  t.waits_at = where;
  t.waiting = true;
  ++b.waiting;
  if (b.os_threads) {
    CheckStuck(b);
    b.changed.wait(lock, [&] { return !t.waiting; });
  } else {
    t.fiber->Suspend();
    current = &t;
  }
}

std::unique_lock<std::mutex> Lock(Block& b) {
  return b.os_threads ? std::unique_lock<std::mutex>(b.mutex) : std::unique_lock<std::mutex>();
}

[[noreturn]] void FailLocked(Block& b, const std::string& what) {
  SetError(b, what);
  throw Leave{};
}

std::string ThreadAt(int thread, const Where& where) { return "thread " + std::to_string(thread) + " at " + Line(where); }

// ------------------------------------------------------------------------------------------------ leaving, and the runs

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

}  // namespace

ScopedOptions::ScopedOptions(const Options& options) : before_(current_options) { current_options = options; }
ScopedOptions::~ScopedOptions() { current_options = before_; }
const Options& ScopedOptions::Current() { return current_options; }

const ThreadPlace& Place() { return Current().place; }

void Fail(const std::string& what, const Where& where) {
  const Hidden hidden;
  Thread& t = Current();
  auto lock = Lock(*t.block);
  FailLocked(*t.block, ThreadAt(t.place.thread, where) + ": " + what);
}

// ----------------------------------------------------------------------------------------------------------- warp operations

void WarpArrive(uint32_t mask, const WarpOperation& operation, Exchange* exchange, const Where& where) {
  const Hidden hidden;
  Thread& t = Current();
  Block& b = *t.block;
  auto lock = Lock(b);
  if (!b.error.empty()) throw Leave{};
  const int me = t.place.thread, lane = me % 32, first = me - lane;
  const uint32_t bit = 1u << lane;
  const char* name = operation.name;
  if ((mask & bit) == 0) FailLocked(b, ThreadAt(me, where) + ": lane " + std::to_string(lane) + " isn't in its own mask of " + std::string(name));
  for (int l = 0; l < 32; ++l) {
    if ((mask >> l & 1) != 0 && b.threads[static_cast<size_t>(first + l)].left) {
      FailLocked(b, ThreadAt(me, where) + ": " + std::string(name) + " waits for lane " + std::to_string(l) + ", which has left the kernel");
    }
  }
  auto& pending = b.warps[static_cast<size_t>(me / 32)];
  size_t at = pending.size();
  for (size_t i = 0; i < pending.size(); ++i) {
    const PendingWarp& p = pending[i];
    if ((p.mask & mask) == 0) continue;
    if (p.mask != mask || std::strcmp(p.name, name) != 0 || !Same(p.where, where)) {
      int other = 0;
      while ((p.here >> other & 1) == 0) ++other;
      FailLocked(b, "divergent warp: " + ThreadAt(first + other, p.where) + " is in " + std::string(p.name) + " with mask " +
                        std::to_string(p.mask) + ", " + ThreadAt(me, where) + " in " + std::string(name) + " with mask " +
                        std::to_string(mask));
    }
    at = i;
  }
  if (at == pending.size()) {
    pending.emplace_back();
    pending.back().mask = mask;
    pending.back().name = name;
    pending.back().where = where;
  }
  PendingWarp& p = pending[at];
  p.here |= bit;
  p.lanes[lane] = exchange;
  if (p.here != mask) {
    Wait(b, t, lock, name, where);
    if (!b.error.empty()) throw Leave{};
    return;
  }
  const char* broken = operation.finish != nullptr ? operation.finish(p.lanes) : nullptr;
  pending.erase(pending.begin() + static_cast<int64_t>(at));
  if (broken != nullptr) FailLocked(b, ThreadAt(me, where) + ": " + name + ": " + broken);
  for (int l = 0; l < 32; ++l) {
    if ((mask >> l & 1) != 0) Wake(b, first + l);
  }
  if (b.os_threads) b.changed.notify_all();
}

void WarpBarrier(uint32_t mask, const Where& where) {
  Thread& t = Current();
  const size_t warp = static_cast<size_t>(t.place.thread / 32);
  uint64_t& round = t.block->warp_rounds[warp][static_cast<size_t>(t.place.thread % 32)];
  char* tag = &t.block->warp_tags[warp][mask == simt::kFullMask ? round % 2 : 2];
  ReleaseOrder(tag);
  WarpArrive(mask, {"SyncWarp", nullptr}, nullptr, where);
  AcquireOrder(tag);
  const Hidden hidden;
  if (mask == simt::kFullMask) ++round;
}

// ---------------------------------------------------------------------------------------------------------- block barriers

void BlockBarrier(int id, int threads, bool wait, const Where& where) {
  Thread& t = Current();
  Block& b = *t.block;
  const int me = t.place.thread;
  char* tag = nullptr;
  static constexpr std::string_view kNames[] = {"SyncThreads", "barrier 1",  "barrier 2",  "barrier 3",
                                                "barrier 4",   "barrier 5",  "barrier 6",  "barrier 7",
                                                "barrier 8",   "barrier 9",  "barrier 10", "barrier 11",
                                                "barrier 12",  "barrier 13", "barrier 14", "barrier 15"};
  {
    const Hidden hidden;
    auto lock = Lock(b);
    if (!b.error.empty()) throw Leave{};
    if (id < 0 || id > 15) FailLocked(b, ThreadAt(me, where) + ": barrier " + std::to_string(id) + "; ids are 1 to 15");
    const std::string_view name = kNames[id];
    if (threads % 32 != 0 || threads < 32 || threads > static_cast<int>(b.threads.size())) {
      FailLocked(b, ThreadAt(me, where) + ": " + std::string(name) + " of " + std::to_string(threads) + " threads in a block of " +
                        std::to_string(b.threads.size()) + "; it takes a multiple of 32, no more than the block has");
    }
    Barrier& barrier = b.barriers[id];
    tag = &barrier.tags[barrier.round % 2];
    if (id == 0 && b.left > 0) {
      FailLocked(b, ThreadAt(me, where) + " waits for all in SyncThreads, but " + std::to_string(b.left) +
                        " threads have left the kernel");
    }
    if (barrier.arrived > 0) {
      if (barrier.expected != threads) {
        FailLocked(b, std::string(name) + ": " + ThreadAt(barrier.first_thread, barrier.where) + " says " +
                          std::to_string(barrier.expected) + " threads, " + ThreadAt(me, where) + " " + std::to_string(threads));
      }
      if (id == 0 && !Same(barrier.where, where)) {
        FailLocked(b, "different barriers meet: " + ThreadAt(barrier.first_thread, barrier.where) + ", " + ThreadAt(me, where));
      }
    }
  }
  ReleaseOrder(tag);
  {
    const Hidden hidden;
    auto lock = Lock(b);
    if (!b.error.empty()) throw Leave{};
    Barrier& barrier = b.barriers[id];
    if (barrier.arrived == 0) {
      barrier.expected = threads;
      barrier.where = where;
      barrier.first_thread = me;
    }
    ++barrier.arrived;
    if (barrier.arrived < barrier.expected) {
      if (!wait) return;
      barrier.waiting.push_back(me);
      Wait(b, t, lock, kNames[id], where);
      if (!b.error.empty()) throw Leave{};
    } else {
      for (const int thread : barrier.waiting) Wake(b, thread);
      barrier.waiting.clear();
      barrier.arrived = 0;
      ++barrier.round;
      if (b.os_threads) b.changed.notify_all();
    }
  }
  if (wait) AcquireOrder(tag);
}

void Fence() {
  Block& b = *Current().block;
  ReleaseOrder(&b.fence_tag);
  AcquireOrder(&b.fence_tag);
}

// ------------------------------------------------------------------------------------------------------ asynchronous copies

void CopyAsync(void* shared, const void* global, int bytes, bool there, const Where& where) {
  Thread& t = Current();
  CheckShared(shared, static_cast<size_t>(bytes), where);
  CheckAligned(shared, static_cast<size_t>(bytes), where);
  if (there) {
    CheckAligned(global, static_cast<size_t>(bytes), where);
    const auto* from = static_cast<const std::byte*>(global);
    if (from >= t.place.shared && from < t.place.shared + t.place.shared_bytes) {
      Fail("an asynchronous copy reads shared memory; its source is global memory", where);
    }
    // Read here too, so that a bad address is found at the line that gave it.
    [[maybe_unused]] volatile std::byte probe = from[bytes - 1];
    probe = from[0];
  }
  std::memset(shared, 0xff, static_cast<size_t>(bytes));  // whoever reads before the wait finds NaN
  t.open.push_back({shared, global, bytes, there});
  t.copy_where = where;
}

void CopyCommit() {
  Thread& t = Current();
  t.copies.push_back(std::move(t.open));
  t.open.clear();
}

void CopyWait(int groups) {
  Thread& t = Current();
  while (static_cast<int>(t.copies.size()) > groups) {
    for (const Copy& c : t.copies.front()) {
      if (c.there) {
        std::memcpy(c.to, c.from, static_cast<size_t>(c.bytes));
      } else {
        std::memset(c.to, 0, static_cast<size_t>(c.bytes));
      }
    }
    t.copies.erase(t.copies.begin());
  }
}

// ------------------------------------------------------------------------------------------------------------------- checks

void CheckAligned(const void* p, size_t bytes, const Where& where) {
  if (reinterpret_cast<uintptr_t>(p) % bytes != 0) {
    Fail("an access of " + std::to_string(bytes) + " bytes at an address that ends in " +
             std::to_string(reinterpret_cast<uintptr_t>(p) % 16) + " (mod 16) is misaligned", where);
  }
}

void CheckShared(const void* p, size_t bytes, const Where& where) {
  const ThreadPlace& place = Current().place;
  const auto* at = static_cast<const std::byte*>(p);
  if (at < place.shared || at + bytes > place.shared + place.shared_bytes) {
    Fail("an address outside the block's " + std::to_string(place.shared_bytes) + " bytes of shared memory", where);
  }
}

uint64_t Tick() {
  thread_local uint64_t ticks = 0;
  return ++ticks;
}

void RunLaunch(const char* kernel, int max_threads, const simt::LaunchShape& shape, const std::function<void()>& body) {
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

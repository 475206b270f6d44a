// What the emulator keeps of the block that runs: its threads, what each of them waits for, its barriers and pending warp
// operations; and how a thread waits, wakes others and fails. For the emulator's own files.
//
// Whatever waits is a record in Block. An arrival that completes one releases its threads; when nobody can run and not all
// have left, the block is stuck, and that is an error with everybody's line.
//
// With threads of the system one lock guards the records. ThreadSanitizer is told to see neither the lock nor the records, so
// that the only order between threads is the one barriers give.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "tests/kernels/cuda/emulator/engine.h"
#include "tests/kernels/cuda/emulator/fiber.h"

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

inline void ReleaseOrder([[maybe_unused]] void* tag) {
#if defined(QUIRE_ENGINE_TSAN)
  __tsan_release(tag);
#endif
}
inline void AcquireOrder([[maybe_unused]] void* tag) {
#if defined(QUIRE_ENGINE_TSAN)
  __tsan_acquire(tag);
#endif
}

struct Leave {};  // thrown through a kernel's frames when its launch has failed


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

// The thread that runs; null outside a kernel.
extern thread_local Thread* current;
Thread& Current();

// "file:line".
std::string Line(const Where& where);
bool Same(const Where& a, const Where& b);
// "thread 3 at file:line".
std::string ThreadAt(int thread, const Where& where);
std::string BlockName(const Block& block);

// Empty with fibers, of which one runs at a time.
std::unique_lock<std::mutex> Lock(Block& block);
// Lock held, from here on. Everybody who waits wakes up and leaves.
void SetError(Block& block, const std::string& what);
[[noreturn]] void FailLocked(Block& block, const std::string& what);
void Wake(Block& block, int thread);
// Everybody who has not left waits: says who waits where.
std::string StuckMessage(const Block& block);
void CheckStuck(Block& block);
// The caller has put itself among those who wait for something; returns when woken, also because the launch has failed.
void Wait(Block& block, Thread& thread, std::unique_lock<std::mutex>& lock, std::string_view waits_for, const Where& where);

}  // namespace quire::emulator

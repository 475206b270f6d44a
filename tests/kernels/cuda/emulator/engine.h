// The emulator's engine: runs the blocks of a launch one after another and a block's threads as fibers (or as threads of the
// system), and holds the rules of barriers and warp operations. simt_backend.h is the face that kernels see.
//
// Thread safety: a launch belongs to the thread that makes it; launches of different threads don't meet.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <string>

#include "kernels/cuda/simt_types.h"
#include "tests/kernels/cuda/emulator/options.h"

namespace quire::emulator {

using Where = std::source_location;

// What a lane brings to a warp operation and takes from it, in words.
struct Exchange {
  uint32_t in[12];
  uint32_t out[16];
};

// One collective operation of the lanes of a mask. `finish` runs once, when all lanes are there.
struct WarpOperation {
  const char* name;  // a literal
  // lanes[i]: null where the mask has no lane i. Returns null or what rule was broken. Null: nothing to do.
  const char* (*finish)(Exchange* const (&lanes)[32]);
};

// --- for the thread that runs a kernel -------------------------------------------------------------------------------------
struct ThreadPlace {
  int thread = 0;
  int threads = 0;
  int64_t block[3] = {};
  int64_t grid[3] = {};
  std::byte* shared = nullptr;
  size_t shared_bytes = 0;
};
const ThreadPlace& Place();

void WarpArrive(uint32_t mask, const WarpOperation& operation, Exchange* exchange, const Where& where);
void WarpBarrier(uint32_t mask, const Where& where);
// id 0 is SyncThreads; wait false: arrives only.
void BlockBarrier(int id, int threads, bool wait, const Where& where);

// Orders this thread's memory with that of others who pass a fence before (for ThreadSanitizer, with more than hardware would).
void Fence();

void CopyAsync(void* shared, const void* global, int bytes, bool there, const Where& where);
void CopyCommit();
void CopyWait(int groups);

// Ends the launch with a sentence that names kernel, block, thread and line.
[[noreturn]] void Fail(const std::string& what, const Where& where);
// Fails unless p is aligned to `bytes`.
void CheckAligned(const void* p, size_t bytes, const Where& where);
// Fails unless [p, p + bytes) lies in the block's shared memory.
void CheckShared(const void* p, size_t bytes, const Where& where);
// A counter that grows with every call.
uint64_t Tick();

// --- for Launch ------------------------------------------------------------------------------------------------------------
// body is one thread's work; params are what it was given, for the hook. Throws Error.
void RunLaunch(const char* kernel, int max_threads, const simt::LaunchShape& shape, const void* params, size_t params_bytes,
               const std::function<void()>& body);

// What stands around the work of the device. Set before the first launch.
struct LaunchHook {
  // Around every launch of every thread: `begin` may throw, `end` follows where it didn't.
  void (*begin)(const char* kernel, const void* params, size_t bytes) = nullptr;
  void (*end)() = nullptr;
  // Takes work that was put on a stream, to do it now or later. Null: it is done at once.
  void (*submit)(void* stream, std::function<void()> work) = nullptr;
};
void SetLaunchHook(const LaunchHook& hook);
// A launch, or a host task, put on a stream.
void Submit(void* stream, std::function<void()> work);
// Work of the device that no kernel of ours does, by plain host code under the same hook.
void RunHostTask(const char* name, const void* params, size_t params_bytes, const std::function<void()>& body);

}  // namespace quire::emulator

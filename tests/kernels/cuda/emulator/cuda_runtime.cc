// core/base/cuda_runtime.h on the emulator: see device.h.
#include "core/base/cuda_runtime.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/base/check.h"
#include "tests/kernels/cuda/emulator/device.h"
#include "tests/kernels/cuda/emulator/engine.h"
#include "tests/kernels/cuda/emulator/options.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define QUIRE_POISON(p, n) ASAN_POISON_MEMORY_REGION(p, n)
#define QUIRE_UNPOISON(p, n) ASAN_UNPOISON_MEMORY_REGION(p, n)
#else
#define QUIRE_POISON(p, n) static_cast<void>(0)
#define QUIRE_UNPOISON(p, n) static_cast<void>(0)
#endif

namespace quire {
namespace emulator {
namespace {

constexpr size_t kReserved = size_t{8} << 30;
constexpr size_t kAlign = 256;  // and the least distance between two allocations
constexpr size_t kHugePage = size_t{2} << 20;  // opening and closing is one entry each of the page table

size_t RoundUp(size_t n, size_t to) { return (n + to - 1) / to * to; }

class Arena {
 public:
  Arena() {
    void* p = mmap(nullptr, kReserved + kHugePage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(p != MAP_FAILED);
    base_ = reinterpret_cast<std::byte*>(RoundUp(reinterpret_cast<uintptr_t>(p), kHugePage));
    madvise(base_, kReserved, MADV_HUGEPAGE);  // where there are none it only takes longer
  }

  void* Allocate(size_t bytes, size_t limit) {
    std::lock_guard lock(mutex_);
    if (bytes > limit || counts_.bytes > limit - bytes) return nullptr;
    // First fit, a border behind each.
    size_t at = 0;
    const size_t wanted = RoundUp(bytes, kAlign) + kAlign;
    for (const auto& [begin, size] : used_) {
      if (begin - at >= wanted) break;
      at = begin + RoundUp(size, kAlign) + kAlign;
    }
    if (at + wanted > kReserved) return nullptr;
    used_[at] = bytes;
    counts_.bytes += bytes;
    Open();
    top_ = std::max(top_, RoundUp(at + wanted, kHugePage));
    Protect(PROT_READ | PROT_WRITE);
    QUIRE_UNPOISON(base_ + at, bytes);
    std::memset(base_ + at, 0xcd, bytes);
    QUIRE_POISON(base_ + at + bytes, wanted - bytes);
    Close();
    return base_ + at;
  }

  void Free(void* p) {
    if (p == nullptr) return;
    std::lock_guard lock(mutex_);
    const auto it = used_.find(static_cast<size_t>(static_cast<std::byte*>(p) - base_));
    CHECK(it != used_.end());
    QUIRE_POISON(p, it->second);
    counts_.bytes -= it->second;
    used_.erase(it);
  }

  bool Holds(const void* p) const { return p >= base_ && p < base_ + kReserved; }

  // The range can be touched between the two; calls nest and meet.
  void Enter() {
    std::lock_guard lock(mutex_);
    Open();
  }
  void Leave() {
    std::lock_guard lock(mutex_);
    Close();
  }

  std::mutex& mutex() { return mutex_; }
  GpuCounts& counts() { return counts_; }

 private:
  void Open() {
    if (open_++ == 0) Protect(PROT_READ | PROT_WRITE);
  }
  void Close() {
    if (--open_ == 0) Protect(PROT_NONE);
  }
  void Protect(int how) {
    if (top_ > 0) CHECK_EQ(mprotect(base_, top_, how), 0);
  }

  std::mutex mutex_;
  std::byte* base_ = nullptr;
  size_t top_ = 0;
  int open_ = 0;
  std::map<size_t, size_t> used_;  // offset → bytes
  GpuCounts counts_;
};

Arena& TheArena() {
  static Arena& arena = *new Arena;  // lives as long as the process: buffers may go late
  return arena;
}

class Access {
 public:
  Access() { TheArena().Enter(); }
  ~Access() { TheArena().Leave(); }
};

Gpu the_gpu;

// A stream's work that is still to be done.
struct Queue {
  std::recursive_mutex mutex;
  std::deque<std::function<void()>> work;
  // While a thread captures:
  bool captures = false;
  std::string spoiled;  // by what; empty: by nothing
  std::vector<std::function<void()>> recorded;
};
thread_local Queue* captured = nullptr;  // by this thread
struct Queues {
  std::mutex mutex;
  std::set<Queue*> all;
};
Queues& TheQueues() {
  static Queues& queues = *new Queues;
  return queues;
}

void Drain(Queue* queue) {
  const std::lock_guard lock(queue->mutex);
  while (!queue->work.empty()) {
    const std::function<void()> work = std::move(queue->work.front());
    queue->work.pop_front();
    work();
  }
}
void DrainAll() {
  std::lock_guard lock(TheQueues().mutex);
  for (Queue* queue : TheQueues().all) Drain(queue);
}
void Enqueue(void* stream, std::function<void()> work) {
  if (stream == nullptr) return work();
  auto* queue = static_cast<Queue*>(stream);
  const std::lock_guard lock(queue->mutex);
  if (queue->captures) return queue->recorded.push_back(std::move(work));
  queue->work.push_back(std::move(work));
}

// What a thread that captures may not do.
Status Forbidden(const char* call) {
  if (captured == nullptr) return OkStatus();
  if (captured->spoiled.empty()) captured->spoiled = call;
  return Internal(std::string(call) + ": operation not permitted when stream is capturing (emulated)");
}

// What was recorded, with its arguments.
struct Graph {
  std::vector<std::function<void()>> work;
};

// Pinned host memory, by its beginnings.
struct Pinned {
  std::mutex mutex;
  std::map<const std::byte*, size_t> blocks;
  bool Holds(const void* p) {
    std::lock_guard lock(mutex);
    auto it = blocks.upper_bound(static_cast<const std::byte*>(p));
    return it != blocks.begin() && static_cast<const std::byte*>(p) < (--it)->first + it->second;
  }
};
Pinned& ThePinned() {
  static Pinned& pinned = *new Pinned;
  return pinned;
}

bool IsMapped(uintptr_t address) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  unsigned char there = 0;
  return mincore(reinterpret_cast<void*>(address / page * page), 1, &there) == 0;
}

// A word of the parameters that is an address, but not of the device.
void BeginLaunch(const char* kernel, const void* params, size_t bytes) {
  for (size_t at = 0; at + sizeof(uintptr_t) <= bytes; at += sizeof(uintptr_t)) {
    uintptr_t word = 0;
    std::memcpy(&word, static_cast<const std::byte*>(params) + at, sizeof(word));
    // Where programs, heaps, mappings and stacks of Linux on x86-64 lie; pairs of small numbers don't look like that.
    if (word < uintptr_t{0x5000} << 32 || word >= uintptr_t{1} << 47) continue;
    if (TheArena().Holds(reinterpret_cast<void*>(word)) || !IsMapped(word)) continue;
    throw Error(std::string(kernel) + ": bytes " + std::to_string(at) + " to " + std::to_string(at + 7) +
                " of its parameters are an address of host memory");
  }
  TheArena().Enter();
  std::lock_guard lock(TheArena().mutex());
  ++TheArena().counts().launches;
}
void EndLaunch() { TheArena().Leave(); }

// Kernels run over device memory in programs that link this file.
[[maybe_unused]] const bool installed = [] {
  SetLaunchHook({BeginLaunch, EndLaunch, Enqueue});
  return true;
}();

}  // namespace

ScopedGpu::ScopedGpu(const Gpu& gpu) : before_(the_gpu) { the_gpu = gpu; }
ScopedGpu::~ScopedGpu() { the_gpu = before_; }

GpuCounts CountsOfGpu() {
  std::lock_guard lock(TheArena().mutex());
  return TheArena().counts();
}

}  // namespace emulator

namespace cuda_runtime {
namespace {

using emulator::TheArena;

void CheckSides(const void* to, const void* from, Way way) {
  const bool to_device = TheArena().Holds(to), from_device = TheArena().Holds(from);
  if (to_device == (way != Way::kFromDevice) && from_device == (way != Way::kToDevice)) return;
  throw emulator::Error(std::string("a copy ") + (from_device ? "from device memory " : "from host memory ") +
                        (to_device ? "to device memory" : "to host memory") + " that says otherwise");
}

void Count(int64_t emulator::GpuCounts::*member, int64_t n = 1) {
  std::lock_guard lock(TheArena().mutex());
  TheArena().counts().*member += n;
}

struct Event {
  std::chrono::steady_clock::time_point at;
  void* stream = nullptr;
  bool recorded = false;
};

void CopyNow(void* to, size_t to_stride, const void* from, size_t from_stride, size_t width, size_t rows) {
  const emulator::Access access;
  for (size_t row = 0; row < rows; ++row) {
    std::memcpy(static_cast<std::byte*>(to) + row * to_stride, static_cast<const std::byte*>(from) + row * from_stride,
                width);
  }
}

}  // namespace

Result<int> Devices() {
  if (emulator::the_gpu.devices > 0) return emulator::the_gpu.devices;
  return FailedPrecondition("no GPU was found (emulated)");
}
Status Use(int device) {
  if (device >= 0 && device < emulator::the_gpu.devices) return OkStatus();
  return Internal("cudaSetDevice(" + std::to_string(device) + "): invalid device ordinal (emulated)");
}
Result<Info> Describe(int device) {
  RETURN_IF_ERROR(Use(device));
  const size_t total = emulator::the_gpu.memory_bytes, used = emulator::CountsOfGpu().bytes;
  return Info{total - std::min(total, used), total, "emulated"};
}

Result<void*> Malloc(size_t bytes) {
  RETURN_IF_ERROR(emulator::Forbidden("cudaMalloc"));
  void* p = TheArena().Allocate(bytes, emulator::the_gpu.memory_bytes);
  if (p == nullptr) return ResourceExhausted("cudaMalloc(" + std::to_string(bytes) + "): out of memory (emulated)");
  return p;
}
void Free(void* p) {
  static_cast<void>(emulator::Forbidden("cudaFree"));
  emulator::DrainAll();
  TheArena().Free(p);
}
Result<void*> MallocHost(size_t bytes) {
  RETURN_IF_ERROR(emulator::Forbidden("cudaMallocHost"));
  void* p = std::malloc(bytes);
  std::memset(p, 0xcd, bytes);
  std::lock_guard lock(emulator::ThePinned().mutex);
  emulator::ThePinned().blocks[static_cast<std::byte*>(p)] = bytes;
  return p;
}
void FreeHost(void* p) {
  static_cast<void>(emulator::Forbidden("cudaFreeHost"));
  emulator::DrainAll();
  {
    std::lock_guard lock(emulator::ThePinned().mutex);
    emulator::ThePinned().blocks.erase(static_cast<std::byte*>(p));
  }
  std::free(p);
}

Status Copy(void* to, const void* from, size_t bytes, Way way, void* stream) {
  return CopyRows(to, bytes, from, bytes, bytes, 1, way, stream);
}
Status CopyRows(void* to, size_t to_stride, const void* from, size_t from_stride, size_t width, size_t rows, Way way,
                void* stream) {
  CheckSides(to, from, way);
  if (way != Way::kOnDevice) Count(&emulator::GpuCounts::copies);
  if (way == Way::kFromDevice) Count(&emulator::GpuCounts::bytes_back, static_cast<int64_t>(width * rows));
  const bool ordinary = way != Way::kOnDevice && !emulator::ThePinned().Holds(way == Way::kToDevice ? from : to);
  if (ordinary) RETURN_IF_ERROR(emulator::Forbidden("cudaMemcpyAsync of ordinary memory"));
  if (ordinary && way == Way::kFromDevice) {
    if (stream != nullptr) emulator::Drain(static_cast<emulator::Queue*>(stream));
    CopyNow(to, to_stride, from, from_stride, width, rows);
  } else if (ordinary) {
    // Staged before the call returns.
    std::vector<std::byte> staged(width * rows);
    for (size_t row = 0; row < rows; ++row) {
      std::memcpy(staged.data() + row * width, static_cast<const std::byte*>(from) + row * from_stride, width);
    }
    emulator::Enqueue(stream, [=] { CopyNow(to, to_stride, staged.data(), width, width, rows); });
  } else {
    emulator::Enqueue(stream, [=] { CopyNow(to, to_stride, from, from_stride, width, rows); });
  }
  return OkStatus();
}
Status Clear(void* to, size_t bytes, void* stream) {
  if (!TheArena().Holds(to)) throw emulator::Error("zeros to host memory");
  emulator::Enqueue(stream, [=] {
    const emulator::Access access;
    std::memset(to, 0, bytes);
  });
  return OkStatus();
}

Result<void*> CreateStream() {
  auto* queue = new emulator::Queue();
  std::lock_guard lock(emulator::TheQueues().mutex);
  emulator::TheQueues().all.insert(queue);
  return static_cast<void*>(queue);
}
void DestroyStream(void* stream) {
  auto* queue = static_cast<emulator::Queue*>(stream);
  std::lock_guard lock(emulator::TheQueues().mutex);
  emulator::Drain(queue);
  emulator::TheQueues().all.erase(queue);
  delete queue;
}
Status Synchronize(void* stream) {
  if (stream == nullptr) return OkStatus();
  RETURN_IF_ERROR(emulator::Forbidden("cudaStreamSynchronize"));
  Count(&emulator::GpuCounts::waits);
  emulator::Drain(static_cast<emulator::Queue*>(stream));
  return OkStatus();
}
Result<void*> CreateEvent() { return static_cast<void*>(new Event()); }
void DestroyEvent(void* event) {
  emulator::DrainAll();
  delete static_cast<Event*>(event);
}
Status Record(void* event, void* stream) {
  auto* e = static_cast<Event*>(event);
  e->stream = stream;
  emulator::Enqueue(stream, [e] {
    e->at = std::chrono::steady_clock::now();
    e->recorded = true;
  });
  return OkStatus();
}
Status WaitFor(void* event) {
  auto* e = static_cast<Event*>(event);
  if (e->stream != nullptr) emulator::Drain(static_cast<emulator::Queue*>(e->stream));
  CHECK(e->recorded);
  return OkStatus();
}
Result<float> Milliseconds(void* from, void* to) {
  const auto between = static_cast<Event*>(to)->at - static_cast<Event*>(from)->at;
  return std::chrono::duration<float, std::milli>(between).count();
}

Status BeginCapture(void* stream) {
  auto* queue = static_cast<emulator::Queue*>(stream);
  const std::lock_guard lock(queue->mutex);
  CHECK(emulator::captured == nullptr && !queue->captures);
  queue->captures = true;
  emulator::captured = queue;
  return OkStatus();
}
Result<void*> EndCapture(void* stream) {
  auto* queue = static_cast<emulator::Queue*>(stream);
  const std::lock_guard lock(queue->mutex);
  CHECK(emulator::captured == queue);
  emulator::captured = nullptr;
  queue->captures = false;
  auto* graph = new emulator::Graph{std::exchange(queue->recorded, {})};
  const std::string spoiled = std::exchange(queue->spoiled, {});
  if (spoiled.empty()) {
    Count(&emulator::GpuCounts::captures);
    return static_cast<void*>(graph);
  }
  delete graph;
  return Internal("cudaStreamEndCapture: the capture was invalidated by " + spoiled + " (emulated)");
}
Status LaunchGraph(void* graph, void* stream) {
  Count(&emulator::GpuCounts::graphs);
  for (const auto& work : static_cast<emulator::Graph*>(graph)->work) emulator::Enqueue(stream, work);
  return OkStatus();
}
void DestroyGraph(void* graph) { delete static_cast<emulator::Graph*>(graph); }

}  // namespace cuda_runtime
}  // namespace quire

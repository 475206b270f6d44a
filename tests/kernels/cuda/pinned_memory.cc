// Runs the kernels' tests, which keep everything in vectors, on a real GPU: all that this program allocates is pinned host
// memory, which a GPU reads and writes where it lies, at the same address; and launches wait for their kernel. Slow, but the
// tests stay as they are for the emulator. Without a GPU every test skips and says why.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>

#include "tests/kernels/cuda/emulator/options.h"

namespace {

// Small allocations come from one piece of pinned memory in powers of two, and wait in a list of their size when they are given
// back; large ones are pinned one by one.
class Arena {
 public:
  void* Allocate(size_t bytes) {
    const std::lock_guard lock(mutex_);
    if (!started_) Start();
    if (begin_ == nullptr) return std::malloc(bytes);
    const int size = std::bit_width(bytes < kLeast ? kLeast - 1 : bytes - 1);
    if ((size_t{1} << size) > kLargest) return Pinned(bytes);
    void*& list = free_[size];
    if (list != nullptr) {
      void* p = list;
      list = *static_cast<void**>(p);
      return p;
    }
    const size_t whole = size_t{1} << size;
    if (used_ + whole > kBytes) return Pinned(bytes);
    char* p = begin_ + used_;
    sizes_[used_ / kLeast] = static_cast<uint8_t>(size);
    used_ += whole;
    return p;
  }
  void Free(void* p) {
    const std::lock_guard lock(mutex_);
    for (void*& one : pinned_) {
      if (one != p) continue;
      one = nullptr;
      static_cast<void>(cudaFreeHost(p));
      return;
    }
    const auto at = static_cast<size_t>(static_cast<char*>(p) - begin_);
    if (begin_ == nullptr || static_cast<char*>(p) < begin_ || at >= kBytes) return std::free(p);
    void*& list = free_[sizes_[at / kLeast]];
    *static_cast<void**>(p) = list;
    list = p;
  }
  bool there() const { return begin_ != nullptr; }

 private:
  static constexpr size_t kBytes = size_t{1} << 30, kLeast = 256;  // as aligned as device memory is
  static constexpr size_t kLargest = size_t{1} << 22;

  void* Pinned(size_t bytes) {
    for (void*& one : pinned_) {
      if (one != nullptr) continue;
      return cudaHostAlloc(&one, bytes, cudaHostAllocDefault) == cudaSuccess ? one : one = nullptr;
    }
    return nullptr;
  }

  void Start() {
    started_ = true;  // the runtime's own allocations, from within, are ordinary ones
    setenv("CUDA_LAUNCH_BLOCKING", "1", 1);
    mutex_.unlock();
    void* memory = nullptr;
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0 ||
        cudaHostAlloc(&memory, kBytes, cudaHostAllocDefault) != cudaSuccess) {
      memory = nullptr;
    }
    mutex_.lock();
    begin_ = static_cast<char*>(memory);
  }

  std::recursive_mutex mutex_;  // pinning may allocate in turn
  bool started_ = false;
  char* begin_ = nullptr;
  size_t used_ = 0;
  void* free_[64] = {};
  void* pinned_[4096] = {};
  uint8_t sizes_[kBytes / kLeast] = {};
};

Arena& TheArena() {
  static Arena* const arena = new (std::malloc(sizeof(Arena))) Arena;  // outlives every static object
  return *arena;
}

class NeedsGpu : public testing::Environment {
 public:
  void SetUp() override {
    if (!TheArena().there()) GTEST_SKIP() << "no GPU here";
  }
};
const testing::Environment* const needs_gpu = testing::AddGlobalTestEnvironment(new NeedsGpu);

}  // namespace

void* operator new(size_t bytes) {
  void* p = TheArena().Allocate(bytes);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}
void* operator new[](size_t bytes) { return operator new(bytes); }
void operator delete(void* p) noexcept {
  if (p != nullptr) TheArena().Free(p);
}
void operator delete[](void* p) noexcept { operator delete(p); }
void operator delete(void* p, size_t) noexcept { operator delete(p); }
void operator delete[](void* p, size_t) noexcept { operator delete(p); }

// The tests' seeds order an emulator's threads; a GPU has an order of its own.
namespace quire::emulator {
namespace {
thread_local Options current;
}
ScopedOptions::ScopedOptions(const Options& options) : before_(current) { current = options; }
ScopedOptions::~ScopedOptions() { current = before_; }
const Options& ScopedOptions::Current() { return current; }
}  // namespace quire::emulator

// The emulator's GPU: how much memory it has, for tests that link cuda_runtime.cc of this folder.
//
// Its memory is one range of addresses that nobody can touch but kernels and copies, while they run: a host's dereference
// ends the process with SIGSEGV. Between allocations AddressSanitizer's poison stands. A launch whose parameters hold
// addresses of host memory fails, and so does a copy whose sides are the wrong way round. New memory is full of 0xcd, pinned
// memory too.
//
// What is put on a stream is done as late as CUDA may: when the host waits for the stream, frees device memory, or copies to
// ordinary memory. So the host that reads results too early reads what was there before, and one that writes what is still to be
// copied from pinned memory spoils it. Work without a stream is done at once. A graph does its recorded work with the arguments
// of then; what CUDA forbids a thread that captures (to allocate, free or wait, or to copy ordinary memory) spoils the capture.
#pragma once

#include <cstddef>
#include <cstdint>

namespace quire::emulator {

struct Gpu {
  int devices = 1;  // 0: a machine without
  size_t memory_bytes = size_t{256} << 20;  // of each
};

// The machine that the process sees while the object lives. Memory allocated before stays.
class ScopedGpu {
 public:
  explicit ScopedGpu(const Gpu& gpu);
  ~ScopedGpu();
  ScopedGpu(const ScopedGpu&) = delete;
  ScopedGpu& operator=(const ScopedGpu&) = delete;

 private:
  Gpu before_;
};

struct GpuCounts {
  size_t bytes = 0;       // allocated now
  int64_t launches = 0;   // since the process began
  int64_t copies = 0;     // between host and device
  int64_t bytes_back = 0;  // of them, from the device
  int64_t waits = 0;      // of the host for a stream
  int64_t graphs = 0;         // launched
  int64_t captures = 0;       // that became one
};
GpuCounts CountsOfGpu();

}  // namespace quire::emulator

#include "core/base/buffer.h"

#include <sys/mman.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>

#include "core/base/cuda_runtime.h"
#include "core/base/device_memory.h"

namespace quire {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kPage = 4096;

size_t RoundUp(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// An anonymous mapping succeeds beyond the machine's memory and the process is killed when it is
// touched; so a request that can't fit is refused here, while there is still somebody to tell.
bool LargerThanMachine(size_t bytes) {
  struct sysinfo info;
  if (sysinfo(&info) != 0) return false;
  return bytes > (static_cast<size_t>(info.totalram) + info.totalswap) * info.mem_unit;
}

Result<std::byte*> ZeroedOnGpu(Device device, size_t bytes) {
  RETURN_IF_ERROR(UseDevice(device));
  Result<void*> memory = cuda_runtime::Malloc(bytes);
  if (!memory.ok()) {
    if (memory.status().code() != StatusCode::kResourceExhausted) return memory.status();
    const Result<DeviceInfo> info = DescribeDevice(device);
    return ResourceExhausted("no memory for " + std::to_string(bytes) + " bytes (" + std::to_string(bytes >> 20) +
                             " MiB) on " + DeviceName(device) +
                             (info.ok() ? ", which has " + std::to_string(info->free_bytes) + " of " +
                                              std::to_string(info->total_bytes) + " bytes free"
                                        : "") +
                             "; ask for a smaller cache or model, or give it more of the GPU");
  }
  // Before any stream's work, which doesn't wait for the device's own stream.
  Status zeroed = cuda_runtime::Clear(*memory, bytes, nullptr);
  if (zeroed.ok()) zeroed = cuda_runtime::Synchronize(nullptr);
  if (!zeroed.ok()) {
    cuda_runtime::Free(*memory);
    return zeroed;
  }
  return static_cast<std::byte*>(*memory);
}

}  // namespace

Result<Buffer> Buffer::Create(size_t bytes, Device device) {
  Buffer buffer;
  buffer.device_ = device;
  if (bytes == 0) return buffer;
  if (device.kind == DeviceKind::kCuda) {
    ASSIGN_OR_RETURN(buffer.data_, ZeroedOnGpu(device, bytes));
    buffer.size_ = bytes;
    return buffer;
  }
  const auto out_of_memory = [&] {
    return ResourceExhausted("no memory for " + std::to_string(bytes) + " bytes (" +
                             std::to_string(bytes >> 20) + " MiB) on " + DeviceName(device) +
                             "; ask for a smaller cache or model");
  };
  if (bytes >= kHugePage) {
    if (bytes > SIZE_MAX - 2 * kHugePage || LargerThanMachine(bytes)) return out_of_memory();
    // It begins on a huge page's border and ends where it ends: the part of a huge page behind the last whole one is of
    // small pages, so that many buffers of a few MiB don't take a third more than they hold.
    const size_t mapped = RoundUp(bytes, kPage);
    void* reserved = mmap(nullptr, mapped + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (reserved == MAP_FAILED) return out_of_memory();
    auto* begin = static_cast<std::byte*>(reserved);
    const size_t head = RoundUp(reinterpret_cast<uintptr_t>(begin), kHugePage) - reinterpret_cast<uintptr_t>(begin);
    if (head > 0) munmap(begin, head);
    begin += head;
    if (head < kHugePage) munmap(begin + mapped, kHugePage - head);
    madvise(begin, mapped, MADV_HUGEPAGE);
    buffer.data_ = begin;
    buffer.mapped_ = mapped;
  } else {
    const size_t rounded = RoundUp(bytes, kAlignment);
    void* p = std::aligned_alloc(kAlignment, rounded);
    if (p == nullptr) return out_of_memory();
    std::memset(p, 0, rounded);
    buffer.data_ = static_cast<std::byte*>(p);
  }
  buffer.size_ = bytes;
  return buffer;
}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
  if (device_.kind == DeviceKind::kCuda) {
    cuda_runtime::Free(data_);
  } else if (mapped_ != 0) {
    munmap(data_, mapped_);
  } else {
    std::free(data_);
  }
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      mapped_(std::exchange(other.mapped_, 0)),
      device_(other.device_) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this != &other) {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(mapped_, other.mapped_);
    std::swap(device_, other.device_);
  }
  return *this;
}

}  // namespace quire

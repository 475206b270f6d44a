// Buffer: owned, aligned memory of a device. Nothing else in the library calls an allocator for
// tensors. Large CPU buffers are asked of the kernel in huge pages, for a decode step touches all of them.
#pragma once

#include <cstddef>

#include "core/base/device.h"
#include "core/base/status.h"

namespace quire {

class Buffer {
 public:
  static constexpr size_t kAlignment = 64;  // a cache line, and the widest vector

  Buffer() = default;
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  // `bytes` of zeroed memory (0 is allowed and gives data() == nullptr).
  // RESOURCE_EXHAUSTED with the size asked for when the device has no room. Memory of a GPU is read and written by kernels
  // and copies (device_memory.h) only.
  static Result<Buffer> Create(size_t bytes, Device device = {});

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }  // bytes, as asked for
  Device device() const { return device_; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
  size_t mapped_ = 0;  // bytes of the mapping behind data_; 0 when it came from the heap
  Device device_;
};

}  // namespace quire

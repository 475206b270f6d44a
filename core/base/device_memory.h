// Copies between host and device, and what a device has beside Buffers: streams, events, pinned host memory. Every function
// takes a Device and does the plain thing on the CPU (memcpy, nothing to wait for), so that callers have one path.
//
// Copies are enqueued on the stream and see what was enqueued before. Ordinary host memory may be used again when a copy to
// the device returns, and is filled when one from the device does; HostBuffer's memory only after Synchronize.
#pragma once

#include <cstddef>
#include <string>

#include "core/base/device.h"
#include "core/base/status.h"

namespace quire {

// GPUs that this process sees: 0 where there is none; `why`, nullable, is then told the reason.
int CudaDeviceCount(std::string* why = nullptr);

// Makes the device that of the calling thread: before a thread's first call for it. Cheap; nothing on the CPU.
Status UseDevice(Device device);

struct DeviceInfo {
  size_t free_bytes = 0, total_bytes = 0;
  std::string name;
};
// Of a GPU, and this thread's from then on.
Result<DeviceInfo> DescribeDevice(Device device);

Status CopyToDevice(Device device, void* to, const void* from, size_t bytes, Stream stream = {});
Status CopyFromDevice(Device device, void* to, const void* from, size_t bytes, Stream stream = {});
Status CopyOnDevice(Device device, void* to, const void* from, size_t bytes, Stream stream = {});
// `rows` runs of `width` bytes, their beginnings a stride (in bytes) apart.
Status CopyRowsOnDevice(Device device, void* to, size_t to_stride, const void* from, size_t from_stride, size_t width,
                        size_t rows, Stream stream = {});
Status ClearOnDevice(Device device, void* to, size_t bytes, Stream stream = {});  // zeros
// Waits for the stream's work; what went wrong in it is returned here.
Status Synchronize(Device device, Stream stream);

// A stream of its own on a GPU; the one there is on the CPU.
class OwnedStream {
 public:
  OwnedStream() = default;
  ~OwnedStream();
  OwnedStream(OwnedStream&& other) noexcept;
  OwnedStream& operator=(OwnedStream&& other) noexcept;
  static Result<OwnedStream> Create(Device device);
  Stream get() const { return stream_; }

 private:
  Device device_;
  Stream stream_;
};

// A point in a stream's work, with its time. GPUs only: the CPU has clocks.
class OwnedEvent {
 public:
  OwnedEvent() = default;
  ~OwnedEvent();
  OwnedEvent(OwnedEvent&& other) noexcept;
  OwnedEvent& operator=(OwnedEvent&& other) noexcept;
  static Result<OwnedEvent> Create(Device device);
  Status Record(Stream stream);
  Status Wait();  // until the point is reached
  // Seconds from `earlier` to this point; both have been waited for.
  Result<double> SecondsSince(const OwnedEvent& earlier) const;

 private:
  Device device_;
  void* handle_ = nullptr;
};

// Work that was put on a stream once, to be done again by one call, with the same addresses: a CUDA graph. GPUs only.
class OwnedGraph {
 public:
  OwnedGraph() = default;
  ~OwnedGraph();
  OwnedGraph(OwnedGraph&& other) noexcept;
  OwnedGraph& operator=(OwnedGraph&& other) noexcept;
  // From here on what this thread puts on the stream is recorded, not done (cuda_runtime.h says what may be) …
  static Status Begin(Device device, Stream stream);
  // … up to here. Each Begin that went well has its End; an error of End's leaves the stream as it was before Begin.
  static Result<OwnedGraph> End(Device device, Stream stream);
  bool empty() const { return handle_ == nullptr; }
  Status Launch(Stream stream) const;

 private:
  void* handle_ = nullptr;
};

// Host memory that a GPU copies from and to at full speed and while the host goes on; ordinary memory on the CPU.
class HostBuffer {
 public:
  HostBuffer() = default;
  ~HostBuffer();
  HostBuffer(HostBuffer&& other) noexcept;
  HostBuffer& operator=(HostBuffer&& other) noexcept;
  // Contents are undefined. RESOURCE_EXHAUSTED when there is none.
  static Result<HostBuffer> Create(Device device, size_t bytes);
  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  Device device_;
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace quire

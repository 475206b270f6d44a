#include "core/base/device_memory.h"

#include <cstdlib>
#include <cstring>
#include <utility>

#include "core/base/check.h"
#include "core/base/cuda_runtime.h"

namespace quire {
namespace {

bool OnCpu(Device device) { return device.kind == DeviceKind::kCpu; }

Status Move(Device device, void* to, const void* from, size_t bytes, cuda_runtime::Way way, Stream stream) {
  if (bytes == 0) return OkStatus();
  if (!OnCpu(device)) return cuda_runtime::Copy(to, from, bytes, way, stream.handle);
  std::memcpy(to, from, bytes);
  return OkStatus();
}

}  // namespace

int CudaDeviceCount(std::string* why) {
  const Result<int> count = cuda_runtime::Devices();
  if (count.ok()) return *count;
  if (why != nullptr) *why = count.status().message();
  return 0;
}

Status UseDevice(Device device) { return OnCpu(device) ? OkStatus() : cuda_runtime::Use(device.index); }

Result<DeviceInfo> DescribeDevice(Device device) {
  CHECK(!OnCpu(device));
  ASSIGN_OR_RETURN(cuda_runtime::Info info, cuda_runtime::Describe(device.index));
  return DeviceInfo{info.free, info.total, std::move(info.name)};
}

Status CopyToDevice(Device device, void* to, const void* from, size_t bytes, Stream stream) {
  return Move(device, to, from, bytes, cuda_runtime::Way::kToDevice, stream);
}
Status CopyFromDevice(Device device, void* to, const void* from, size_t bytes, Stream stream) {
  return Move(device, to, from, bytes, cuda_runtime::Way::kFromDevice, stream);
}
Status CopyOnDevice(Device device, void* to, const void* from, size_t bytes, Stream stream) {
  return Move(device, to, from, bytes, cuda_runtime::Way::kOnDevice, stream);
}

Status CopyRowsOnDevice(Device device, void* to, size_t to_stride, const void* from, size_t from_stride, size_t width,
                        size_t rows, Stream stream) {
  if (width == 0 || rows == 0) return OkStatus();
  if (!OnCpu(device)) {
    return cuda_runtime::CopyRows(to, to_stride, from, from_stride, width, rows, cuda_runtime::Way::kOnDevice,
                                  stream.handle);
  }
  for (size_t row = 0; row < rows; ++row) {
    std::memcpy(static_cast<std::byte*>(to) + row * to_stride, static_cast<const std::byte*>(from) + row * from_stride,
                width);
  }
  return OkStatus();
}

Status ClearOnDevice(Device device, void* to, size_t bytes, Stream stream) {
  if (bytes == 0) return OkStatus();
  if (!OnCpu(device)) return cuda_runtime::Clear(to, bytes, stream.handle);
  std::memset(to, 0, bytes);
  return OkStatus();
}

Status Synchronize(Device device, Stream stream) {
  return OnCpu(device) ? OkStatus() : cuda_runtime::Synchronize(stream.handle);
}

Result<OwnedStream> OwnedStream::Create(Device device) {
  OwnedStream stream;
  stream.device_ = device;
  if (OnCpu(device)) return stream;
  RETURN_IF_ERROR(UseDevice(device));
  ASSIGN_OR_RETURN(stream.stream_.handle, cuda_runtime::CreateStream());
  return stream;
}
OwnedStream::~OwnedStream() {
  if (stream_.handle != nullptr) cuda_runtime::DestroyStream(stream_.handle);
}
OwnedStream::OwnedStream(OwnedStream&& other) noexcept { *this = std::move(other); }
OwnedStream& OwnedStream::operator=(OwnedStream&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(stream_, other.stream_);
  return *this;
}

Result<OwnedEvent> OwnedEvent::Create(Device device) {
  CHECK(!OnCpu(device));
  OwnedEvent event;
  event.device_ = device;
  RETURN_IF_ERROR(UseDevice(device));
  ASSIGN_OR_RETURN(event.handle_, cuda_runtime::CreateEvent());
  return event;
}
OwnedEvent::~OwnedEvent() {
  if (handle_ != nullptr) cuda_runtime::DestroyEvent(handle_);
}
OwnedEvent::OwnedEvent(OwnedEvent&& other) noexcept { *this = std::move(other); }
OwnedEvent& OwnedEvent::operator=(OwnedEvent&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(handle_, other.handle_);
  return *this;
}
Status OwnedEvent::Record(Stream stream) { return cuda_runtime::Record(handle_, stream.handle); }
Status OwnedEvent::Wait() { return cuda_runtime::WaitFor(handle_); }
Result<double> OwnedEvent::SecondsSince(const OwnedEvent& earlier) const {
  ASSIGN_OR_RETURN(const float milliseconds, cuda_runtime::Milliseconds(earlier.handle_, handle_));
  return static_cast<double>(milliseconds) * 1e-3;
}

Status OwnedGraph::Begin(Device device, Stream stream) {
  CHECK(!OnCpu(device));
  return cuda_runtime::BeginCapture(stream.handle);
}
Result<OwnedGraph> OwnedGraph::End(Device device, Stream stream) {
  CHECK(!OnCpu(device));
  OwnedGraph graph;
  ASSIGN_OR_RETURN(graph.handle_, cuda_runtime::EndCapture(stream.handle));
  return graph;
}
OwnedGraph::~OwnedGraph() {
  if (handle_ != nullptr) cuda_runtime::DestroyGraph(handle_);
}
OwnedGraph::OwnedGraph(OwnedGraph&& other) noexcept { *this = std::move(other); }
OwnedGraph& OwnedGraph::operator=(OwnedGraph&& other) noexcept {
  std::swap(handle_, other.handle_);
  return *this;
}
Status OwnedGraph::Launch(Stream stream) const { return cuda_runtime::LaunchGraph(handle_, stream.handle); }

Result<HostBuffer> HostBuffer::Create(Device device, size_t bytes) {
  HostBuffer buffer;
  buffer.device_ = device;
  if (bytes == 0) return buffer;
  if (OnCpu(device)) {
    buffer.data_ = static_cast<std::byte*>(std::malloc(bytes));
    if (buffer.data_ == nullptr) return ResourceExhausted("no memory for " + std::to_string(bytes) + " bytes on the host");
  } else {
    RETURN_IF_ERROR(UseDevice(device));
    ASSIGN_OR_RETURN(void* pinned, cuda_runtime::MallocHost(bytes));
    buffer.data_ = static_cast<std::byte*>(pinned);
  }
  buffer.size_ = bytes;
  return buffer;
}
HostBuffer::~HostBuffer() {
  if (data_ == nullptr) return;
  if (OnCpu(device_)) {
    std::free(data_);
  } else {
    cuda_runtime::FreeHost(data_);
  }
}
HostBuffer::HostBuffer(HostBuffer&& other) noexcept { *this = std::move(other); }
HostBuffer& HostBuffer::operator=(HostBuffer&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

}  // namespace quire

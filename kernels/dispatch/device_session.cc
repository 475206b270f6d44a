#include "kernels/device_session.h"

#include <algorithm>
#include <utility>

#include "core/base/check.h"
#include "kernels/cuda/attention_decode.h"

namespace quire {

Result<std::unique_ptr<DeviceSession>> DeviceSession::Create(Device device) {
  CHECK(device.kind == DeviceKind::kCuda);
  RETURN_IF_ERROR(UseDevice(device));
  std::unique_ptr<DeviceSession> session(new DeviceSession());
  session->device_ = device;
  ASSIGN_OR_RETURN(session->stream_, OwnedStream::Create(device));
  ASSIGN_OR_RETURN(session->matmul_, cuda::MakeMatmul(device));
  ASSIGN_OR_RETURN(session->counters_, Buffer::Create(sizeof(int32_t) * cuda::kDecodeCounters, device));
  return session;
}

Status DeviceSession::Synchronize() {
  if (status_.ok()) Keep(quire::Synchronize(device_, stream()));
  return status_;
}

Status DeviceSession::BeginCapture() {
  CHECK(!capturing_);
  RETURN_IF_ERROR(status_);
  RETURN_IF_ERROR(OwnedGraph::Begin(device_, stream()));
  capturing_ = true;
  return OkStatus();
}

Result<OwnedGraph> DeviceSession::EndCapture() {
  CHECK(capturing_);
  capturing_ = false;
  const Status kept = std::exchange(status_, OkStatus());
  Result<OwnedGraph> graph = OwnedGraph::End(device_, stream());
  RETURN_IF_ERROR(kept);
  return graph;
}

// What was there goes with the work that uses it: freeing waits for the device.
Status DeviceSession::Grow(Buffer& buffer, size_t bytes) {
  if (bytes <= buffer.size()) return OkStatus();
  const size_t wanted = std::max(bytes, buffer.size() + buffer.size() / 2);
  buffer = Buffer();
  ASSIGN_OR_RETURN(buffer, Buffer::Create(wanted, device_));
  return OkStatus();
}

Result<void*> DeviceSession::Scratch(size_t bytes) {
  RETURN_IF_ERROR(Grow(scratch_, bytes));
  return static_cast<void*>(scratch_.data());
}

Result<void*> DeviceSession::Upload(const void* data, size_t bytes) {
  // A graph would copy what lies at this address when it is launched.
  if (capturing_) return Internal("an array of the host was uploaded while a CUDA graph was captured");
  RETURN_IF_ERROR(Grow(uploads_, bytes));
  RETURN_IF_ERROR(CopyToDevice(device_, uploads_.data(), data, bytes, stream()));
  return static_cast<void*>(uploads_.data());
}

}  // namespace quire

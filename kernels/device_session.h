// DeviceSession: what a rank holds on its GPU beside tensors: the stream that all its work goes through, the library of
// matrix products, memory that calls share, and the first error. Made once a rank and passed in Context.
//
// Kernel calls return nothing, for their work is done later. Where a launch fails, the session keeps the status, leaves later
// calls out, and tells at the next Synchronize, as it does for what goes wrong in the work itself. After an error the
// session, and what was computed through it, is of no use.
//
// Not thread safe; a thread calls UseDevice before it uses the session for the first time.
#pragma once

#include <cstddef>
#include <memory>

#include "core/base/buffer.h"
#include "core/base/context.h"
#include "core/base/device_memory.h"
#include "core/base/status.h"
#include "kernels/cuda/matmul.h"

namespace quire {

class DeviceSession {
 public:
  // device: a GPU. FAILED_PRECONDITION without one or without its libraries.
  static Result<std::unique_ptr<DeviceSession>> Create(Device device);

  Device device() const { return device_; }
  Stream stream() const { return stream_.get(); }
  cuda::Matmul& matmul() { return *matmul_; }

  void Keep(const Status& status) {
    if (status_.ok() && !status.ok()) status_ = status;
  }
  bool ok() const { return status_.ok(); }
  // Waits for all work; the first error so far.
  Status Synchronize();

  // Records what goes over the stream, instead of doing it, until EndCapture: a CUDA graph of it, or what went wrong since,
  // of which the session then knows nothing any more. Between the two nothing may be allocated or uploaded.
  Status BeginCapture();
  Result<OwnedGraph> EndCapture();

  // Memory for one call: the next one that asks gets the same, after this call's work. 256-byte aligned.
  Result<void*> Scratch(size_t bytes);
  // A copy of a small array of the host, for one call likewise.
  Result<void*> Upload(const void* data, size_t bytes);
  // Counters of blocks that end, zero between kernels.
  int32_t* counters() { return reinterpret_cast<int32_t*>(counters_.data()); }
  // Device memory held now.
  size_t bytes() const { return scratch_.size() + uploads_.size() + counters_.size() + matmul_->workspace_bytes(); }

 private:
  DeviceSession() = default;
  Status Grow(Buffer& buffer, size_t bytes);

  Device device_;
  OwnedStream stream_;
  std::unique_ptr<cuda::Matmul> matmul_;
  Status status_;
  bool capturing_ = false;
  Buffer scratch_, uploads_, counters_;
};

}  // namespace quire

// The one switch between devices. An operation of kernels/*.h is a file here that calls its CPU version or enqueues its CUDA
// version; a policy does the same in its Select. Nothing above this folder asks where it runs in order to compute.
//
// kernels/cuda is called in every build: what stands behind it is nvcc's library, the emulator's in tests, or cuda_absent.cc,
// which says that there is none.
#pragma once

#include <utility>

#include "core/base/check.h"
#include "core/base/context.h"
#include "kernels/device_session.h"

namespace quire {

// cpu() runs at once; cuda(stream) returns the Status of its launch, which the session keeps.
template <typename Cpu, typename Cuda>
void Dispatch(const Context& ctx, Cpu&& cpu, Cuda&& cuda) {
  switch (ctx.device.kind) {
    case DeviceKind::kCpu: return cpu();
    case DeviceKind::kCuda:
      CHECK(ctx.session != nullptr);
      if (ctx.session->ok()) ctx.session->Keep(cuda(ctx.stream));
  }
}

// The same for what returns a value at once (sizes).
template <typename Cpu, typename Cuda>
auto DispatchValue(const Context& ctx, Cpu&& cpu, Cuda&& cuda) {
  return ctx.device.kind == DeviceKind::kCpu ? cpu() : cuda();
}

}  // namespace quire

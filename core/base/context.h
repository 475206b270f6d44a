// Context: what a kernel call needs beside its parameters. Passed, never global.
#pragma once

#include "core/base/buffer.h"
#include "core/base/device.h"
#include "core/base/progress.h"
#include "core/base/thread_pool.h"

namespace quire {

class DeviceSession;  // kernels/device_session.h

struct Context {
  Device device;
  Stream stream;
  ThreadPool* pool = nullptr;      // not owned; never null
  DeviceSession* session = nullptr;  // not owned; never null on a GPU, null on the CPU
  ProgressMark* progress = nullptr;  // not owned; null: nobody looks
  bool batch_invariant = false;    // fixed-order products: a row's bits depend on the row alone
};

}  // namespace quire

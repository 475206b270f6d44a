// What the library asks of the CUDA runtime, call by call, with errors as statuses: device memory, copies, streams and
// events. Owners are made of it in device_memory.h and buffer.h; nothing else calls it.
//
// Linked in one of three versions: cuda_runtime.cc (the CUDA toolkit's), cuda_runtime_absent.cc (a build without one: there
// is no GPU), and the emulator's in tests/kernels/cuda, whose device memory the host can't touch.
//
// Thread safe. Out of memory is RESOURCE_EXHAUSTED, no GPU or no driver FAILED_PRECONDITION, anything else INTERNAL; messages
// name the call.
#pragma once

#include <cstddef>
#include <string>

#include "core/base/status.h"

namespace quire::cuda_runtime {

// GPUs that this process sees; at least 1, else FAILED_PRECONDITION.
Result<int> Devices();
// Makes a device that of the calling thread, as every call below and kernel launches need.
Status Use(int device);

struct Info {
  size_t free = 0, total = 0;  // bytes
  std::string name;
};
Result<Info> Describe(int device);

Result<void*> Malloc(size_t bytes);  // 256-byte aligned; contents are undefined
void Free(void* p);                  // waits for what the device does
Result<void*> MallocHost(size_t bytes);  // pinned
void FreeHost(void* p);

// Enqueued on the stream (null: the device's own, which waits for all). Pinned memory may still be read or written when they
// return. One of the sides is the host's, by kind.
enum class Way { kToDevice, kFromDevice, kOnDevice };
Status Copy(void* to, const void* from, size_t bytes, Way way, void* stream);
// `rows` runs of `width` bytes, their beginnings a stride apart.
Status CopyRows(void* to, size_t to_stride, const void* from, size_t from_stride, size_t width, size_t rows, Way way,
                void* stream);
Status Clear(void* to, size_t bytes, void* stream);  // zeros

Result<void*> CreateStream();  // doesn't wait for the device's own
void DestroyStream(void* stream);
Status Synchronize(void* stream);  // also returns what went wrong in the work before
Result<void*> CreateEvent();
void DestroyEvent(void* event);
Status Record(void* event, void* stream);
Status WaitFor(void* event);
Result<float> Milliseconds(void* from, void* to);  // between two events that have happened

// What this thread puts on the stream between the two is recorded, not done: launches and copies with their arguments and
// addresses, of device and pinned memory. Meanwhile it may neither allocate, free, wait, nor copy ordinary host memory; where
// anything of it went wrong, EndCapture says so, and the stream is as before.
Status BeginCapture(void* stream);
Result<void*> EndCapture(void* stream);  // a graph that can be launched
Status LaunchGraph(void* graph, void* stream);  // does all of it, in the stream's order
void DestroyGraph(void* graph);

}  // namespace quire::cuda_runtime

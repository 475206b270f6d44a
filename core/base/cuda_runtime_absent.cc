// See cuda_runtime.h. A build without the CUDA toolkit: Devices says so, and without a device nothing else is called.
#include "core/base/check.h"
#include "core/base/cuda_runtime.h"

namespace quire::cuda_runtime {
namespace {
Status Absent() { return FailedPrecondition("this build has no CUDA back end (QUIRE_CUDA)"); }
}  // namespace

Result<int> Devices() { return Absent(); }
Status Use(int) { return Absent(); }
Result<Info> Describe(int) { return Absent(); }
Result<void*> Malloc(size_t) { return Absent(); }
void Free(void* p) { CHECK(p == nullptr); }
Result<void*> MallocHost(size_t) { return Absent(); }
void FreeHost(void* p) { CHECK(p == nullptr); }
Status Copy(void*, const void*, size_t, Way, void*) { return Absent(); }
Status CopyRows(void*, size_t, const void*, size_t, size_t, size_t, Way, void*) { return Absent(); }
Status Clear(void*, size_t, void*) { return Absent(); }
Result<void*> CreateStream() { return Absent(); }
void DestroyStream(void* stream) { CHECK(stream == nullptr); }
Status Synchronize(void*) { return Absent(); }
Result<void*> CreateEvent() { return Absent(); }
void DestroyEvent(void* event) { CHECK(event == nullptr); }
Status Record(void*, void*) { return Absent(); }
Status WaitFor(void*) { return Absent(); }
Result<float> Milliseconds(void*, void*) { return Absent(); }
Status BeginCapture(void*) { return Absent(); }
Result<void*> EndCapture(void*) { return Absent(); }
Status LaunchGraph(void*, void*) { return Absent(); }
void DestroyGraph(void* graph) { CHECK(graph == nullptr); }

}  // namespace quire::cuda_runtime

// See cuda_runtime.h. The runtime is linked statically and looks for the driver when it is first called, so a program that
// has it starts on machines without one.
#include "core/base/cuda_runtime.h"

#include <cuda_runtime_api.h>

namespace quire::cuda_runtime {
namespace {

Status Checked(cudaError_t error, const std::string& call) {
  if (error == cudaSuccess) return OkStatus();
  static_cast<void>(cudaGetLastError());  // or the next launch would report it again
  const std::string message = call + ": " + cudaGetErrorName(error) + ": " + cudaGetErrorString(error);
  switch (error) {
    case cudaErrorMemoryAllocation: return ResourceExhausted(message);
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorInitializationError: return FailedPrecondition(message);
    default: return Internal(message);
  }
}

cudaStream_t Of(void* stream) { return static_cast<cudaStream_t>(stream); }
cudaEvent_t EventOf(void* event) { return static_cast<cudaEvent_t>(event); }

cudaMemcpyKind KindOf(Way way) {
  switch (way) {
    case Way::kToDevice: return cudaMemcpyHostToDevice;
    case Way::kFromDevice: return cudaMemcpyDeviceToHost;
    case Way::kOnDevice: return cudaMemcpyDeviceToDevice;
  }
  return cudaMemcpyDefault;
}

}  // namespace

Result<int> Devices() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count > 0) return count;
  static_cast<void>(cudaGetLastError());
  return FailedPrecondition(std::string("no GPU was found") +
                            (error == cudaSuccess ? "" : std::string(" (") + cudaGetErrorString(error) + ")"));
}

Status Use(int device) { return Checked(cudaSetDevice(device), "cudaSetDevice(" + std::to_string(device) + ")"); }

Result<Info> Describe(int device) {
  RETURN_IF_ERROR(Use(device));
  Info info;
  RETURN_IF_ERROR(Checked(cudaMemGetInfo(&info.free, &info.total), "cudaMemGetInfo"));
  cudaDeviceProp properties;
  RETURN_IF_ERROR(Checked(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties"));
  info.name = properties.name;
  return info;
}

Result<void*> Malloc(size_t bytes) {
  void* p = nullptr;
  RETURN_IF_ERROR(Checked(cudaMalloc(&p, bytes), "cudaMalloc(" + std::to_string(bytes) + ")"));
  return p;
}
// What a destructor could report was reported by the calls before it.
void Free(void* p) { static_cast<void>(cudaFree(p)); }

Result<void*> MallocHost(size_t bytes) {
  void* p = nullptr;
  RETURN_IF_ERROR(Checked(cudaMallocHost(&p, bytes), "cudaMallocHost(" + std::to_string(bytes) + ")"));
  return p;
}
void FreeHost(void* p) { static_cast<void>(cudaFreeHost(p)); }

Status Copy(void* to, const void* from, size_t bytes, Way way, void* stream) {
  return Checked(cudaMemcpyAsync(to, from, bytes, KindOf(way), Of(stream)), "cudaMemcpyAsync");
}
Status CopyRows(void* to, size_t to_stride, const void* from, size_t from_stride, size_t width, size_t rows, Way way,
                void* stream) {
  return Checked(cudaMemcpy2DAsync(to, to_stride, from, from_stride, width, rows, KindOf(way), Of(stream)),
                 "cudaMemcpy2DAsync");
}
Status Clear(void* to, size_t bytes, void* stream) {
  return Checked(cudaMemsetAsync(to, 0, bytes, Of(stream)), "cudaMemsetAsync");
}

Result<void*> CreateStream() {
  cudaStream_t stream = nullptr;
  RETURN_IF_ERROR(Checked(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags"));
  return static_cast<void*>(stream);
}
void DestroyStream(void* stream) { static_cast<void>(cudaStreamDestroy(Of(stream))); }
Status Synchronize(void* stream) { return Checked(cudaStreamSynchronize(Of(stream)), "cudaStreamSynchronize"); }

Result<void*> CreateEvent() {
  cudaEvent_t event = nullptr;
  RETURN_IF_ERROR(Checked(cudaEventCreate(&event), "cudaEventCreate"));
  return static_cast<void*>(event);
}
void DestroyEvent(void* event) { static_cast<void>(cudaEventDestroy(EventOf(event))); }
Status Record(void* event, void* stream) { return Checked(cudaEventRecord(EventOf(event), Of(stream)), "cudaEventRecord"); }
Status WaitFor(void* event) { return Checked(cudaEventSynchronize(EventOf(event)), "cudaEventSynchronize"); }
Result<float> Milliseconds(void* from, void* to) {
  float milliseconds = 0;
  RETURN_IF_ERROR(Checked(cudaEventElapsedTime(&milliseconds, EventOf(from), EventOf(to)), "cudaEventElapsedTime"));
  return milliseconds;
}

// Other threads' calls don't spoil this one's capture, nor does it theirs.
Status BeginCapture(void* stream) {
  return Checked(cudaStreamBeginCapture(Of(stream), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
}
Result<void*> EndCapture(void* stream) {
  cudaGraph_t graph = nullptr;
  RETURN_IF_ERROR(Checked(cudaStreamEndCapture(Of(stream), &graph), "cudaStreamEndCapture"));
  cudaGraphExec_t executable = nullptr;
  const Status made = Checked(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
  static_cast<void>(cudaGraphDestroy(graph));
  RETURN_IF_ERROR(made);
  return static_cast<void*>(executable);
}
Status LaunchGraph(void* graph, void* stream) {
  return Checked(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), Of(stream)), "cudaGraphLaunch");
}
void DestroyGraph(void* graph) { static_cast<void>(cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph))); }

}  // namespace quire::cuda_runtime

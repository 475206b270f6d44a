// The communicator is made non-blocking, so that nothing of NCCL's ever waits for a peer on the host: every call is
// followed by looking at the communicator's state until it has been taken, with a limit where there is one. After any
// error it is aborted, which also ends the kernels that spin on the device for a lost peer.
#include "parallel/nccl_communicator.h"

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <algorithm>
#include <string>
#include <thread>
#include <utility>

#include "core/base/clock.h"
#include "parallel/collective_checks.h"
#include "parallel/group_start.h"

namespace quire {
namespace {

Status FromCuda(const char* call, cudaError_t code) {
  if (code == cudaSuccess) return OkStatus();
  const std::string message = std::string(call) + " failed: " + cudaGetErrorString(code);
  return code == cudaErrorMemoryAllocation ? ResourceExhausted(message) : Unavailable(message);
}

Status FromNccl(const char* call, ncclResult_t code, ncclComm_t comm) {
  if (code == ncclSuccess || code == ncclInProgress) return OkStatus();
  const char* detail = ncclGetLastError(comm);
  std::string message = std::string(call) + " failed: " + ncclGetErrorString(code);
  if (detail != nullptr && *detail != 0) message += std::string(" (") + detail + ")";
  return Unavailable(message + "; NCCL_DEBUG=INFO tells more, --interface names the network between the hosts");
}

ncclDataType_t TypeOf(DType dtype) {
  switch (dtype) {
    case DType::kF32: return ncclFloat32;
    case DType::kBF16: return ncclBfloat16;
    case DType::kF16: return ncclFloat16;
    case DType::kI8: return ncclInt8;
    case DType::kI32: return ncclInt32;
    case DType::kU8: return ncclUint8;
  }
  return ncclUint8;
}

cudaStream_t Cuda(Stream stream) { return static_cast<cudaStream_t>(stream.handle); }

size_t Count(TensorView view) { return static_cast<size_t>(view.elements()); }

// Device memory.
class Scratch {
 public:
  Scratch() = default;
  ~Scratch() { cudaFree(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  Status Allocate(size_t floats) {
    return FromCuda("cudaMalloc", cudaMalloc(reinterpret_cast<void**>(&data_), floats * sizeof(float)));
  }
  float* data() const { return data_; }

 private:
  float* data_ = nullptr;
};

class NcclCommunicatorImpl final : public NcclCommunicator {
 public:
  NcclCommunicatorImpl(Communicator* control, int device, const NcclOptions& options)
      : control_(control), rank_(control->rank()), size_(control->size()), device_(device), options_(options) {}

  ~NcclCommunicatorImpl() override {
    if (comm_ == nullptr) return;
    // A group that ends in order waits for its last collectives; one that doesn't is not waited for.
    ncclResult_t state = ncclCommFinalize(comm_);
    for (const double end = NowSeconds() + 5; state == ncclInProgress && NowSeconds() < end;) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      if (ncclCommGetAsyncError(comm_, &state) != ncclSuccess) state = ncclSystemError;
    }
    state == ncclSuccess ? ncclCommDestroy(comm_) : ncclCommAbort(comm_);
  }

  // This rank's part of the start: device, connections, scratch.
  Status Open(const ncclUniqueId& id) {
    RETURN_IF_ERROR(FromCuda("cudaSetDevice", cudaSetDevice(device_)));
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    RETURN_IF_ERROR(Taken("ncclCommInitRankConfig", ncclCommInitRankConfig(&comm_, size_, id, rank_, &config),
                          options_.start_limit));
    if (options_.rank_order_sum == nullptr) return OkStatus();
    if (options_.rank_order_piece < 1) return InvalidArgument("NcclOptions::rank_order_piece must be at least 1");
    return scratch_.Allocate(static_cast<size_t>(options_.rank_order_piece) * size_);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  Status AllReduce(TensorView data, Stream stream) override {
    RETURN_IF_ERROR(internal::CheckSummable("AllReduce", data));
    RETURN_IF_ERROR(Ready("AllReduce", data));
    if (data.elements() == 0 || size_ == 1) return OkStatus();
    auto* x = data.As<float>();
    if (options_.rank_order_sum == nullptr) {
      return Taken("ncclAllReduce", ncclAllReduce(x, x, Count(data), ncclFloat32, ncclSum, comm_, Cuda(stream)));
    }
    for (int64_t begin = 0; begin < data.elements(); begin += options_.rank_order_piece) {
      const int64_t n = std::min(options_.rank_order_piece, data.elements() - begin);
      RETURN_IF_ERROR(Taken("ncclAllGather", ncclAllGather(x + begin, scratch_.data(), static_cast<size_t>(n), ncclFloat32,
                                                           comm_, Cuda(stream))));
      RETURN_IF_ERROR(options_.rank_order_sum(x + begin, scratch_.data(), n, size_, stream));
    }
    return OkStatus();
  }

  Status AllGather(TensorView send, TensorView recv, Stream stream) override {
    RETURN_IF_ERROR(internal::CheckAllGather(send, recv, size_));
    RETURN_IF_ERROR(Ready("AllGather", send));
    RETURN_IF_ERROR(Ready("AllGather", recv));
    if (send.elements() == 0) return OkStatus();
    return Taken("ncclAllGather",
                 ncclAllGather(send.data, recv.data, Count(send), TypeOf(send.dtype), comm_, Cuda(stream)));
  }

  // A broadcast of each rank's part, all in one launch.
  Status AllGatherV(TensorView send, TensorView recv, std::span<const int64_t> counts, Stream stream) override {
    RETURN_IF_ERROR(internal::CheckAllGatherV(send, recv, counts, rank_, size_));
    RETURN_IF_ERROR(Ready("AllGatherV", send));
    RETURN_IF_ERROR(Ready("AllGatherV", recv));
    if (recv.elements() == 0) return OkStatus();
    return Grouped("ncclBroadcast", [&]() -> ncclResult_t {
      auto* to = static_cast<std::byte*>(recv.data);
      for (int r = 0; r < size_; ++r) {
        const ncclResult_t code =
            counts[r] == 0 ? ncclSuccess
                           : ncclBroadcast(r == rank_ ? send.data : to, to, static_cast<size_t>(counts[r]),
                                           TypeOf(send.dtype), r, comm_, Cuda(stream));
        if (code != ncclSuccess && code != ncclInProgress) return code;
        to += counts[r] * ElementSize(send.dtype);
      }
      return ncclSuccess;
    });
  }

  Status ReduceScatter(TensorView send, TensorView recv, Stream stream) override {
    RETURN_IF_ERROR(internal::CheckReduceScatter(send, recv, size_));
    RETURN_IF_ERROR(Ready("ReduceScatter", send));
    RETURN_IF_ERROR(Ready("ReduceScatter", recv));
    const int64_t total = recv.elements();
    if (total == 0) return OkStatus();
    if (options_.rank_order_sum == nullptr) {
      return Taken("ncclReduceScatter", ncclReduceScatter(send.data, recv.data, Count(recv), ncclFloat32, ncclSum, comm_,
                                                          Cuda(stream)));
    }
    // Every rank sends each other one its slice, piece by piece, and sums what it gets.
    const auto* x = send.As<float>();
    for (int64_t begin = 0; begin < total; begin += options_.rank_order_piece) {
      const auto n = static_cast<size_t>(std::min(options_.rank_order_piece, total - begin));
      RETURN_IF_ERROR(Grouped("ncclSend and ncclRecv", [&]() -> ncclResult_t {
        for (int r = 0; r < size_; ++r) {
          ncclResult_t code = ncclSend(x + r * total + begin, n, ncclFloat32, r, comm_, Cuda(stream));
          if (code == ncclSuccess || code == ncclInProgress) {
            code = ncclRecv(scratch_.data() + static_cast<int64_t>(n) * r, n, ncclFloat32, r, comm_, Cuda(stream));
          }
          if (code != ncclSuccess && code != ncclInProgress) return code;
        }
        return ncclSuccess;
      }));
      RETURN_IF_ERROR(options_.rank_order_sum(recv.As<float>() + begin, scratch_.data(), static_cast<int64_t>(n), size_,
                                              stream));
    }
    return OkStatus();
  }

  Status Broadcast(TensorView data, int root, Stream stream) override {
    RETURN_IF_ERROR(internal::CheckRoot(root, size_));
    RETURN_IF_ERROR(Ready("Broadcast", data));
    if (data.elements() == 0) return OkStatus();
    return Taken("ncclBroadcast", ncclBroadcast(data.data, data.data, Count(data), TypeOf(data.dtype), root, comm_,
                                                Cuda(stream)));
  }

  Status Send(TensorView data, int to, Stream stream) override {
    RETURN_IF_ERROR(internal::CheckPeer("Send to", to, rank_, size_));
    RETURN_IF_ERROR(Ready("Send", data));
    if (data.elements() == 0) return OkStatus();
    return Taken("ncclSend", ncclSend(data.data, Count(data), TypeOf(data.dtype), to, comm_, Cuda(stream)));
  }

  Status Recv(TensorView data, int from, Stream stream) override {
    RETURN_IF_ERROR(internal::CheckPeer("Recv from", from, rank_, size_));
    RETURN_IF_ERROR(Ready("Recv", data));
    if (data.elements() == 0) return OkStatus();
    return Taken("ncclRecv", ncclRecv(data.data, Count(data), TypeOf(data.dtype), from, comm_, Cuda(stream)));
  }

  // A meeting of the hosts; what is enqueued on streams is not waited for.
  Status Barrier() override {
    RETURN_IF_ERROR(failure_);
    return control_->Barrier();
  }

  bool StaysOnStream() const override { return true; }

  Status Synchronize(Stream stream) override {
    RETURN_IF_ERROR(failure_);
    const double begin = NowSeconds(), limit = static_cast<double>(options_.wait_limit.count()) / 1000;
    for (int looks = 0;; ++looks) {
      const cudaError_t done = cudaStreamQuery(Cuda(stream));
      if (done == cudaSuccess) return OkStatus();
      if (done != cudaErrorNotReady) return Fail(FromCuda("cudaStreamQuery", done));
      // NCCL is asked less often than the stream: a step's wait is some hundred microseconds.
      if (looks % 64 == 63) {
        ncclResult_t state = ncclSuccess;
        const ncclResult_t asked = ncclCommGetAsyncError(comm_, &state);
        if (Status s = FromNccl("a collective", asked == ncclSuccess ? state : asked, comm_); !s.ok()) return Fail(s);
        if (limit > 0 && NowSeconds() - begin > limit) {
          return Fail(Unavailable("rank " + std::to_string(rank_) + " waited " + std::to_string(options_.wait_limit.count()) +
                                  " ms for the collectives on its stream: a peer doesn't take part"));
        }
        std::this_thread::yield();
      }
    }
  }

 private:
  // Device memory of this rank's GPU, and a group that is whole.
  Status Ready(const char* call, TensorView view) {
    RETURN_IF_ERROR(failure_);
    const Device here{DeviceKind::kCuda, device_};
    if (view.device == here || view.elements() == 0) return OkStatus();
    return InvalidArgument(std::string(call) + " over NCCL takes memory of " + DeviceName(here) + ", got a tensor on " +
                           DeviceName(view.device) + "; host data go over the group's own communicator");
  }

  // The first failure is kept, and ends what still runs on the device.
  Status Fail(Status why) {
    if (!failure_.ok()) return failure_;
    failure_ = std::move(why);
    if (comm_ != nullptr) ncclCommAbort(comm_);
    comm_ = nullptr;
    return failure_;
  }

  // Waits until NCCL has taken a call, at most `limit` (0: as long as it takes: other ranks may be late for the first
  // call that connects them, which the group's monitor looks after).
  Status Taken(const char* call, ncclResult_t code, std::chrono::milliseconds limit = {}) {
    const double begin = NowSeconds();
    while (code == ncclInProgress) {
      if (const ncclResult_t asked = ncclCommGetAsyncError(comm_, &code); asked != ncclSuccess) code = asked;
      if (code != ncclInProgress) break;
      if (limit.count() > 0 && NowSeconds() - begin > static_cast<double>(limit.count()) / 1000) {
        return Fail(Unavailable(std::string(call) + " has not ended in " + std::to_string(limit.count()) +
                                " ms: a rank is missing, or the hosts' GPUs can't reach each other; --interface names the "
                                "network between them, NCCL_DEBUG=INFO tells more"));
      }
      std::this_thread::yield();
    }
    if (Status s = FromNccl(call, code, comm_); !s.ok()) return Fail(std::move(s));
    return OkStatus();
  }

  // Several calls as one launch.
  template <typename Calls>
  Status Grouped(const char* call, Calls calls) {
    if (Status s = FromNccl("ncclGroupStart", ncclGroupStart(), comm_); !s.ok()) return Fail(std::move(s));
    const ncclResult_t inside = calls();
    const ncclResult_t end = ncclGroupEnd();
    return Taken(call, inside != ncclSuccess ? inside : end);
  }

  Communicator* control_;
  const int rank_, size_, device_;
  const NcclOptions options_;
  ncclComm_t comm_ = nullptr;  // null before the start and after a failure
  Scratch scratch_;
  Status failure_;
};

// The GPU this rank is to use.
Result<int> ChooseDevice(const GroupTopology& topology, int wanted) {
  int count = 0;
  if (const cudaError_t code = cudaGetDeviceCount(&count); code != cudaSuccess || count == 0) {
    return FailedPrecondition(std::string("this host shows no GPU to NCCL") +
                              (code == cudaSuccess ? "" : std::string(" (") + cudaGetErrorString(code) + ")") +
                              "; use --device cpu");
  }
  const int device = wanted >= 0 ? wanted : topology.self().local_rank;
  if (device < count) return device;
  return FailedPrecondition("it is to use GPU " + std::to_string(device) + " of its host, which shows " +
                            std::to_string(count) + " for " + std::to_string(topology.self().local_size) +
                            " ranks; start at most one rank a GPU, or look at CUDA_VISIBLE_DEVICES");
}

}  // namespace

bool HasNccl() { return true; }

Result<std::unique_ptr<NcclCommunicator>> MakeNcclCommunicator(Communicator* control, const GroupTopology& topology,
                                                               const NcclOptions& options) {
  const Result<int> device = ChooseDevice(topology, options.device);
  RETURN_IF_ERROR(AgreeOn(*control, topology, Phase::kLoad, device.status()));
  ncclUniqueId id{};
  Status local;
  if (control->rank() == 0) local = FromNccl("ncclGetUniqueId", ncclGetUniqueId(&id), nullptr);
  RETURN_IF_ERROR(AgreeOn(*control, topology, Phase::kLoad, local));
  RETURN_IF_ERROR(control->Broadcast({&id, DType::kU8, {sizeof(id)}, {}}, 0));
  auto comm = std::make_unique<NcclCommunicatorImpl>(control, *device, options);
  RETURN_IF_ERROR(AgreeOn(*control, topology, Phase::kLoad, comm->Open(id)));
  return std::unique_ptr<NcclCommunicator>(std::move(comm));
}

}  // namespace quire

#include "parallel/device_communicator.h"

#include <algorithm>
#include <utility>

#include "core/base/device_memory.h"

namespace quire {
namespace {

bool OnHost(const TensorView& view) { return view.device.kind == DeviceKind::kCpu; }

// A tensor's copy in host memory, which grows to the largest seen. A later copy into it waits in the stream for the copy out of
// it, so the memory is free again when the stream has come that far.
class Stage {
 public:
  // The tensor as one of the host, contents undefined.
  Result<TensorView> Of(const TensorView& view) {
    const auto bytes = static_cast<size_t>(view.bytes());
    if (memory_.size() < bytes) {
      ASSIGN_OR_RETURN(memory_, HostBuffer::Create(view.device, std::max(bytes, memory_.size() * 3 / 2)));
    }
    TensorView host = view;
    host.data = memory_.data();
    host.device = {};
    return host;
  }
  // The same with the tensor's contents, once the stream is waited for.
  Result<TensorView> Fetch(const TensorView& view, Stream stream) {
    ASSIGN_OR_RETURN(const TensorView host, Of(view));
    RETURN_IF_ERROR(CopyFromDevice(view.device, host.data, view.data, static_cast<size_t>(view.bytes()), stream));
    return host;
  }

 private:
  HostBuffer memory_;
};

class DeviceCommunicator final : public Communicator {
 public:
  DeviceCommunicator(Communicator* host, std::unique_ptr<Communicator> gpu) : host_(host), gpu_(std::move(gpu)) {}

  int rank() const override { return host_->rank(); }
  int node_leader() const override { return host_->node_leader(); }
  int size() const override { return host_->size(); }

  Status AllReduce(TensorView data, Stream stream) override {
    if (OnHost(data)) return host_->AllReduce(data, {});
    if (gpu_ != nullptr) return gpu_->AllReduce(data, stream);
    return InPlace(data, stream, [&](TensorView host) { return host_->AllReduce(host, {}); });
  }
  Status AllGather(TensorView send, TensorView recv, Stream stream) override {
    if (OnHost(send)) return host_->AllGather(send, recv, {});
    if (gpu_ != nullptr) return gpu_->AllGather(send, recv, stream);
    return Across(send, recv, stream, [&](TensorView from, TensorView to) { return host_->AllGather(from, to, {}); });
  }
  Status AllGatherV(TensorView send, TensorView recv, std::span<const int64_t> counts, Stream stream) override {
    if (OnHost(send)) return host_->AllGatherV(send, recv, counts, {});
    if (gpu_ != nullptr) return gpu_->AllGatherV(send, recv, counts, stream);
    return Across(send, recv, stream,
                  [&](TensorView from, TensorView to) { return host_->AllGatherV(from, to, counts, {}); });
  }
  Status ReduceScatter(TensorView send, TensorView recv, Stream stream) override {
    if (OnHost(send)) return host_->ReduceScatter(send, recv, {});
    if (gpu_ != nullptr) return gpu_->ReduceScatter(send, recv, stream);
    return Across(send, recv, stream, [&](TensorView from, TensorView to) { return host_->ReduceScatter(from, to, {}); });
  }
  Status Broadcast(TensorView data, int root, Stream stream) override {
    if (OnHost(data)) return host_->Broadcast(data, root, {});
    if (gpu_ != nullptr) return gpu_->Broadcast(data, root, stream);
    return InPlace(data, stream, [&](TensorView host) { return host_->Broadcast(host, root, {}); });
  }
  Status Send(TensorView data, int to, Stream stream) override {
    if (OnHost(data)) return host_->Send(data, to, {});
    if (gpu_ != nullptr) return gpu_->Send(data, to, stream);
    ASSIGN_OR_RETURN(const TensorView host, send_.Fetch(data, stream));
    RETURN_IF_ERROR(Synchronize(data.device, stream));
    return host_->Send(host, to, {});
  }
  Status Recv(TensorView data, int from, Stream stream) override {
    if (OnHost(data)) return host_->Recv(data, from, {});
    if (gpu_ != nullptr) return gpu_->Recv(data, from, stream);
    RETURN_IF_ERROR(Synchronize(data.device, stream));  // what was received before may still be on its way
    ASSIGN_OR_RETURN(const TensorView host, recv_.Of(data));
    RETURN_IF_ERROR(host_->Recv(host, from, {}));
    return CopyToDevice(data.device, data.data, host.data, static_cast<size_t>(data.bytes()), stream);
  }
  Status Barrier() override { return host_->Barrier(); }
  bool StaysOnStream() const override { return gpu_ != nullptr && gpu_->StaysOnStream(); }
  void Abort(const Status& why) override {
    if (gpu_ != nullptr) gpu_->Abort(why);
    host_->Abort(why);
  }

 private:
  template <typename Call>
  Status InPlace(const TensorView& data, Stream stream, Call&& call) {
    ASSIGN_OR_RETURN(const TensorView host, send_.Fetch(data, stream));
    RETURN_IF_ERROR(Synchronize(data.device, stream));
    RETURN_IF_ERROR(call(host));
    return CopyToDevice(data.device, data.data, host.data, static_cast<size_t>(data.bytes()), stream);
  }
  template <typename Call>
  Status Across(const TensorView& send, const TensorView& recv, Stream stream, Call&& call) {
    ASSIGN_OR_RETURN(const TensorView from, send_.Fetch(send, stream));
    RETURN_IF_ERROR(Synchronize(send.device, stream));
    ASSIGN_OR_RETURN(const TensorView to, recv_.Of(recv));
    RETURN_IF_ERROR(call(from, to));
    return CopyToDevice(recv.device, recv.data, to.data, static_cast<size_t>(recv.bytes()), stream);
  }

  Communicator* host_;
  std::unique_ptr<Communicator> gpu_;
  Stage send_, recv_;
};

}  // namespace

std::unique_ptr<Communicator> MakeDeviceCommunicator(Communicator* host, std::unique_ptr<Communicator> gpu) {
  return std::make_unique<DeviceCommunicator>(host, std::move(gpu));
}

}  // namespace quire

// The communicator of a group of one: sums are the data themselves, gathers copy.
#include <cstring>

#include "parallel/collective_checks.h"
#include "parallel/communicator.h"

namespace quire {
namespace {

Status Copy(TensorView from, TensorView to) {
  if (from.data != to.data && from.bytes() > 0) std::memcpy(to.data, from.data, static_cast<size_t>(from.bytes()));
  return OkStatus();
}

class SelfCommunicator final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }

  Status AllReduce(TensorView data, Stream) override { return internal::CheckSummable("AllReduce", data); }
  Status AllGather(TensorView send, TensorView recv, Stream) override {
    RETURN_IF_ERROR(internal::CheckAllGather(send, recv, 1));
    return Copy(send, recv);
  }
  Status AllGatherV(TensorView send, TensorView recv, std::span<const int64_t> counts, Stream) override {
    RETURN_IF_ERROR(internal::CheckAllGatherV(send, recv, counts, 0, 1));
    return Copy(send, recv);
  }
  Status ReduceScatter(TensorView send, TensorView recv, Stream) override {
    RETURN_IF_ERROR(internal::CheckReduceScatter(send, recv, 1));
    return Copy(send, recv);
  }
  Status Broadcast(TensorView, int root, Stream) override { return internal::CheckRoot(root, 1); }
  Status Send(TensorView, int to, Stream) override { return internal::CheckPeer("Send to", to, 0, 1); }
  Status Recv(TensorView, int from, Stream) override { return internal::CheckPeer("Recv from", from, 0, 1); }
  Status Barrier() override { return OkStatus(); }
};

}  // namespace

std::unique_ptr<Communicator> MakeSelfCommunicator() { return std::make_unique<SelfCommunicator>(); }

}  // namespace quire

#include "parallel/watched_communicator.h"

#include <utility>

namespace quire {
namespace {

class WatchedCommunicator final : public Communicator {
 public:
  WatchedCommunicator(std::unique_ptr<Communicator> inner, ProgressMark* mark) : inner_(std::move(inner)), mark_(mark) {}

  int rank() const override { return inner_->rank(); }
  int node_leader() const override { return inner_->node_leader(); }
  int size() const override { return inner_->size(); }

  Status AllReduce(TensorView data, Stream stream) override {
    const Inside inside(mark_);
    return inner_->AllReduce(data, stream);
  }
  Status AllGather(TensorView send, TensorView recv, Stream stream) override {
    const Inside inside(mark_);
    return inner_->AllGather(send, recv, stream);
  }
  Status AllGatherV(TensorView send, TensorView recv, std::span<const int64_t> counts, Stream stream) override {
    const Inside inside(mark_);
    return inner_->AllGatherV(send, recv, counts, stream);
  }
  Status ReduceScatter(TensorView send, TensorView recv, Stream stream) override {
    const Inside inside(mark_);
    return inner_->ReduceScatter(send, recv, stream);
  }
  Status Broadcast(TensorView data, int root, Stream stream) override {
    const Inside inside(mark_);
    return inner_->Broadcast(data, root, stream);
  }
  Status Send(TensorView data, int to, Stream stream) override {
    const Inside inside(mark_);
    return inner_->Send(data, to, stream);
  }
  Status Recv(TensorView data, int from, Stream stream) override {
    const Inside inside(mark_);
    return inner_->Recv(data, from, stream);
  }
  Status Barrier() override {
    const Inside inside(mark_);
    return inner_->Barrier();
  }
  void Abort(const Status& why) override { inner_->Abort(why); }

 private:
  struct Inside {
    explicit Inside(ProgressMark* m) : mark(m) { mark->BeginCollective(); }
    ~Inside() { mark->EndCollective(); }
    ProgressMark* mark;
  };

  std::unique_ptr<Communicator> inner_;
  ProgressMark* mark_;
};

}  // namespace

std::unique_ptr<Communicator> WatchCommunicator(std::unique_ptr<Communicator> inner, ProgressMark* mark) {
  return std::make_unique<WatchedCommunicator>(std::move(inner), mark);
}

}  // namespace quire

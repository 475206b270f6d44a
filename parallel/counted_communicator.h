// A communicator that counts the collectives of another one and the seconds spent in them: what statistics and tests
// look at. It changes nothing else.
#pragma once

#include <cstdint>

#include "parallel/communicator.h"

namespace quire {

// Sums since the start, of one rank. Seconds are wall time inside the calls, waiting for the other ranks included. What a CUDA
// graph does again is not counted again.
struct CollectiveStats {
  int64_t all_reduces = 0, all_gathers = 0, broadcasts = 0;
  int64_t others = 0;  // reduce-scatters, sends, receives, barriers
  double all_reduce_seconds = 0, all_gather_seconds = 0, broadcast_seconds = 0;

  int64_t calls() const { return all_reduces + all_gathers + broadcasts + others; }
};

class CountedCommunicator final : public Communicator {
 public:
  // inner: not owned, not null.
  explicit CountedCommunicator(Communicator* inner) : inner_(inner) {}

  int rank() const override { return inner_->rank(); }
  int node_leader() const override { return inner_->node_leader(); }
  int size() const override { return inner_->size(); }
  Status AllReduce(TensorView data, Stream stream) override;
  Status AllGather(TensorView send, TensorView recv, Stream stream) override;
  Status AllGatherV(TensorView send, TensorView recv, std::span<const int64_t> counts, Stream stream) override;
  Status ReduceScatter(TensorView send, TensorView recv, Stream stream) override;
  Status Broadcast(TensorView data, int root, Stream stream) override;
  Status Send(TensorView data, int to, Stream stream) override;
  Status Recv(TensorView data, int from, Stream stream) override;
  Status Barrier() override;
  bool StaysOnStream() const override { return inner_->StaysOnStream(); }
  void Abort(const Status& why) override { inner_->Abort(why); }

  const CollectiveStats& stats() const { return stats_; }

 private:
  Communicator* inner_;
  CollectiveStats stats_;
};

}  // namespace quire

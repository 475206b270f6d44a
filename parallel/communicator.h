// Communicator: the collectives of a tensor-parallel group. Kernels and model never see which implementation
// serves them. Collectives are called by all ranks in the same order. Not thread safe.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "core/base/device.h"
#include "core/base/status.h"
#include "core/base/tensor.h"

namespace quire {

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  // The lowest rank that shares this rank's node, as the transport knows it (MPI: MPI_Comm_split_type); −1 where it does
  // not: GatherTopology then goes by what the ranks say of their hosts.
  virtual int node_leader() const { return -1; }

  // data (F32) = sum over ranks, in place. Sums in rank order, so every rank gets the same bits.
  virtual Status AllReduce(TensorView data, Stream stream = {}) = 0;
  // recv = the ranks' sends one behind the other; recv.elements() == size() * send.elements().
  virtual Status AllGather(TensorView send, TensorView recv, Stream stream = {}) = 0;
  // Rank r sends counts[r] elements; recv holds their sum. counts.size() == size().
  virtual Status AllGatherV(TensorView send, TensorView recv, std::span<const int64_t> counts, Stream stream = {}) = 0;
  // recv = this rank's part of the sum; send.elements() == size() * recv.elements().
  virtual Status ReduceScatter(TensorView send, TensorView recv, Stream stream = {}) = 0;
  virtual Status Broadcast(TensorView data, int root, Stream stream = {}) = 0;
  virtual Status Send(TensorView data, int to, Stream stream = {}) = 0;
  virtual Status Recv(TensorView data, int from, Stream stream = {}) = 0;
  virtual Status Barrier() = 0;

  // Whether collectives of a GPU's tensors are enqueued on the stream without the host's help, so that a CUDA graph can hold
  // them.
  virtual bool StaysOnStream() const { return false; }

  // Ends the group for a reason found outside a collective: the others must not wait for a rank that can't go on.
  // Threads: every rank's current or next collective returns `why`. MPI: `why` goes to stderr and the job ends. A
  // group of one has nobody to tell.
  virtual void Abort(const Status& why) { static_cast<void>(why); }
};

// The group of one: collectives copy, Send and Recv are INVALID_ARGUMENT.
std::unique_ptr<Communicator> MakeSelfCommunicator();

}  // namespace quire

// Collectives between GPUs by NCCL: one rank a GPU, calls enqueued on the stream they are given, device memory only. No
// NCCL or CUDA header is needed to use this; a build without NCCL has the same functions, which then say so.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>

#include "core/base/status.h"
#include "parallel/communicator.h"
#include "parallel/group_topology.h"

namespace quire {

// True when this build has NCCL.
bool HasNccl();

// out[i] = parts[0][i] + parts[1][i] + … in that order; parts: [ranks][n] floats in device memory, enqueued on `stream`.
using RankOrderSum = Status (*)(float* out, const float* parts, int64_t n, int ranks, Stream stream);

struct NcclOptions {
  // Ordinal among the GPUs this process sees; −1: this rank's place among the ranks of its node.
  int device = -1;
  // Not null: AllReduce and ReduceScatter gather the parts and sum them by this, in rank order, as every other
  // communicator does: what batch-invariant mode needs. Null: NCCL's own sums, the same bits on all ranks, but in an
  // order that depends on the size of the message.
  RankOrderSum rank_order_sum = nullptr;
  // Floats of a message that are gathered at once for it; longer ones are cut. The scratch is size() times as much.
  int64_t rank_order_piece = 1 << 18;
  std::chrono::milliseconds start_limit{60000};  // for all ranks to connect
  std::chrono::milliseconds wait_limit{0};       // in Synchronize; 0: none (a group's monitor looks after that)
};

// Calls of one communicator go to one stream at a time: sums in rank order share a scratch.
class NcclCommunicator : public Communicator {
 public:
  // Waits until what is enqueued on the stream is done, looking at NCCL's asynchronous errors meanwhile: a peer that is
  // lost is UNAVAILABLE here, where cudaStreamSynchronize would wait for ever. The communicator is then aborted, and
  // every later call returns the same error.
  virtual Status Synchronize(Stream stream) = 0;
};

// Collective over `control`, the group's communicator for host data (MPI's), which carries NCCL's id and must outlive
// what this returns: Barrier uses it. Errors are the same on all ranks and name the rank: too few GPUs, no connection.
Result<std::unique_ptr<NcclCommunicator>> MakeNcclCommunicator(Communicator* control, const GroupTopology& topology,
                                                               const NcclOptions& options = {});

}  // namespace quire

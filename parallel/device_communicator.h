// The communicator of ranks that have GPUs: a call goes by where its tensors are. Those of the host go over the group's own
// communicator, those of a GPU over NCCL, or, where there is none (ranks that share a GPU, a build without NCCL), through
// host memory and the group's own: slow, but right, and its sums are in rank order.
#pragma once

#include <memory>

#include "parallel/communicator.h"

namespace quire {

// host outlives what this returns. gpu: for device memory; null: through host memory.
std::unique_ptr<Communicator> MakeDeviceCommunicator(Communicator* host, std::unique_ptr<Communicator> gpu);

}  // namespace quire

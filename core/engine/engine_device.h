// Where a rank of an engine runs: on the CPU, or on the GPU of its host that has its local rank's number (with share_gpu,
// counted round).
#pragma once

#include <cstddef>

#include "core/base/device.h"
#include "core/base/status.h"
#include "core/engine/engine.h"
#include "parallel/communicator.h"
#include "parallel/group_topology.h"

namespace quire {

// A collective of the group's ranks, with one answer of one kind for all. auto: GPUs where every rank finds its own, else
// the CPU. FAILED_PRECONDITION for cuda where that isn't so, with what there is and how to run on the CPU.
Result<Device> ChooseDevice(const EngineOptions& options, Communicator& comm, const GroupTopology& topology);

// Of this process alone, without its group: rank `local_rank` of `local_size` on this host.
Result<Device> ChooseLocalDevice(const EngineOptions& options, int local_rank, int local_size);

// Bytes that one of `local_size` ranks of this host may still take on its GPU: total × gpu_memory_utilization less what is in
// use, by whomever, shared out among the ranks there. RESOURCE_EXHAUSTED with the numbers when nothing is left.
Result<size_t> AvailableOnGpu(Device device, double gpu_memory_utilization, int local_size);

}  // namespace quire

#include "core/engine/engine_device.h"

#include <algorithm>
#include <string>
#include <vector>

#include "core/base/device_memory.h"
#include "parallel/group_start.h"
#include "parallel/rank_numbers.h"

namespace quire {
namespace {

// The GPU of a rank; FAILED_PRECONDITION when this host doesn't have one for each of its ranks.
Result<int> FindGpu(const EngineOptions& options, int local_rank, int local_size) {
  std::string why;
  const int count = CudaDeviceCount(&why);
  if (count == 0) {
    return FailedPrecondition("--device cuda: " + why + "; run on the CPU with --device cpu, or leave the choice to --device auto");
  }
  if (local_size <= count || options.share_gpu) return local_rank % count;
  return FailedPrecondition("--device cuda: rank " + std::to_string(local_rank) + " of " + std::to_string(local_size) +
                            " on this host finds " + std::to_string(count) + (count == 1 ? " GPU" : " GPUs") +
                            "; start no more ranks a host than it has GPUs, let them share (--share-gpu, slow), or run on the "
                            "CPU with --device cpu");
}

}  // namespace

Result<Device> ChooseLocalDevice(const EngineOptions& options, int local_rank, int local_size) {
  if (options.device == "cpu") return Device{};
  const Result<int> found = FindGpu(options, local_rank, local_size);
  if (found.ok()) return Device{DeviceKind::kCuda, *found};
  if (options.device == "cuda") return found.status();
  return Device{};
}

Result<Device> ChooseDevice(const EngineOptions& options, Communicator& comm, const GroupTopology& topology) {
  const int local_rank = topology.self().local_rank;
  const Result<Device> own = ChooseLocalDevice(options, local_rank, topology.self().local_size);
  RETURN_IF_ERROR(AgreeOn(comm, topology, Phase::kLoad, own.status()));
  if (comm.size() == 1) return *own;
  const std::vector<int64_t> mine = {own->kind == DeviceKind::kCuda ? 1 : 0};
  ASSIGN_OR_RETURN(const std::vector<int64_t> all, GatherNumbers(comm, mine));
  const bool all_have = std::all_of(all.begin(), all.end(), [](int64_t n) { return n == 1; });
  return all_have ? *own : Device{};
}

Result<size_t> AvailableOnGpu(Device device, double gpu_memory_utilization, int local_size) {
  ASSIGN_OR_RETURN(const DeviceInfo info, DescribeDevice(device));
  const auto budget = static_cast<size_t>(static_cast<double>(info.total_bytes) * gpu_memory_utilization);
  const size_t used = info.total_bytes - std::min(info.total_bytes, info.free_bytes);
  const auto sharing = static_cast<size_t>(std::max(1, local_size / std::max(1, CudaDeviceCount())));
  if (budget > used) return (budget - used) / sharing;
  return ResourceExhausted(DeviceName(device) + " (" + info.name + ") has " + std::to_string(info.free_bytes) + " of " +
                           std::to_string(info.total_bytes) + " bytes free, and gpu_memory_utilization " +
                           std::to_string(gpu_memory_utilization) + " leaves none of them; end what else runs there, or raise it");
}

}  // namespace quire

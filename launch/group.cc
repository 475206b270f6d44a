// See group.h.
#include "launch/group.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/base/check.h"
#include "core/engine/group.h"
#include "parallel/group_monitor.h"
#include "parallel/group_start.h"
#include "parallel/mpi_communicator.h"
#include "parallel/network_interface.h"
#include "parallel/threads_communicator.h"
#include "parallel/watched_communicator.h"

namespace quire::launch {
namespace {

using Leader = std::function<Status(const Seat& seat)>;

// One rank's part in the group: its communicator, and the monitor that ends the job when a rank dies, stops or hangs.
struct Member {
  ProgressMark mark;
  std::unique_ptr<Communicator> comm;
  std::unique_ptr<GroupMonitor> monitor;  // goes before comm: what happens after it is no failure

  // A collective: the ranks find each other, are the same build, are watched, and sum rightly. Errors are alike on all.
  Status Join(std::unique_ptr<Communicator> inner, const GroupOptions& options) {
    comm = WatchCommunicator(std::move(inner), &mark);
    ASSIGN_OR_RETURN(const GroupTopology topology, GatherTopology(*comm));
    GroupMonitorOptions watch;
    watch.interface = options.interface;
    ASSIGN_OR_RETURN(monitor, GroupMonitor::Start(*comm, topology, &mark, watch));
    const NamedHash build = BuildIdentity();
    RETURN_IF_ERROR(CheckSameOnAllRanks(*comm, topology, Phase::kStart, {&build, 1}));
    return RunSelfTest(*comm, topology).status();
  }

  Status Follow() { return FollowLeader({.comm = comm.get(), .progress_mark = &mark}); }

  // Rank 0's part, to the end of the group. It waits for this rank, so nothing may leave unseen.
  Status Lead(const Leader& leader, bool threads) {
    mark.Enter(Phase::kIdle);
    Status status;
    try {
      status = leader(Seat(comm.get(), &mark, threads));
    } catch (const std::exception& error) {  // of a third party's, or no memory
      status = Internal(error.what());
    }
    mark.Enter(Phase::kStop);
    const Status released = ReleaseFollowers(comm.get());
    if (!released.ok()) comm->Abort(status.ok() ? released : status);  // so that nobody waits for anybody
    return status;
  }
};

Status RunThreads(const GroupOptions& options, const Leader& leader) {
  const int size = options.tensor_parallel_size;
  // Ranks idle between requests for as long as there are none, so no wait is too long.
  auto comms = MakeThreadCommunicators(size, {.timeout = std::chrono::milliseconds(0)});
  std::vector<Member> members(static_cast<size_t>(size));
  std::vector<std::thread> followers;
  for (size_t rank = 1; rank < members.size(); ++rank) {
    followers.emplace_back([&, rank] {
      // Its errors reach rank 0 through the communicator.
      Member& member = members[rank];
      if (member.Join(std::move(comms[rank]), options).ok()) static_cast<void>(member.Follow());
      member.monitor.reset();
    });
  }
  Status status = members[0].Join(std::move(comms[0]), options);
  if (status.ok()) status = members[0].Lead(leader, /*threads=*/true);
  members[0].monitor.reset();
  for (std::thread& follower : followers) follower.join();
  return status;
}

Status RunProcesses(const GroupOptions& options, const Leader& leader) {
  if (!HasMpi() && LaunchedRank() != 0) return OkStatus();  // rank 0 tells it
  RETURN_IF_ERROR(UseNetworkInterface(options.interface));
  ASSIGN_OR_RETURN(const auto environment, MpiEnvironment::Create());
  ASSIGN_OR_RETURN(auto comm, MakeMpiCommunicator());
  const int rank = comm->rank(), size = comm->size();
  internal::SetCheckRank(rank);
  Member member;
  Status status;
  if (options.tensor_parallel_size > 1 && options.tensor_parallel_size != size) {
    status = InvalidArgument("--tensor-parallel-size is " + std::to_string(options.tensor_parallel_size) +
                             ", but mpirun started " + std::to_string(size) +
                             " ranks; leave the flag out, or start as many");
  } else {
    status = member.Join(std::move(comm), options);
  }
  if (!status.ok()) return rank == 0 ? status : OkStatus();  // all ranks have the same reason: one tells it
  return rank == 0 ? member.Lead(leader, /*threads=*/false) : member.Follow();
}

}  // namespace

void Seat::Take(EngineOptions* options) const {
  options->comm = comm_;
  options->progress_mark = mark_;
  if (threads_ && options->threads > 0) options->threads = std::max(1, options->threads / ranks());
}

Status RunGroup(const GroupOptions& options, const std::function<Status(const Seat& seat)>& leader) {
  constexpr int kMostThreads = 256;
  const int size = options.tensor_parallel_size;
  if (size < 1) {
    return InvalidArgument("--tensor-parallel-size is " + std::to_string(size) + "; it must be at least 1");
  }
  if (LaunchedByMpi()) return RunProcesses(options, leader);
  if (size > kMostThreads) {
    return InvalidArgument("--tensor-parallel-size is " + std::to_string(size) + "; as threads of one process " +
                           std::to_string(kMostThreads) + " ranks are the most");
  }
  if (size > 1) return RunThreads(options, leader);
  const auto self = MakeSelfCommunicator();
  ProgressMark mark;
  return leader(Seat(self.get(), &mark, /*threads=*/false));
}

}  // namespace quire::launch

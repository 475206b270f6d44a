// RunGroup: a subcommand on one rank, on N ranks as threads of this process (-tp N), or on the ranks of an mpirun job.
// The subcommand itself runs on rank 0 alone, whatever the number of ranks: it reads files and prints once, and opens
// its engine on the whole group by Seat::Take. The other ranks follow until it returns.
#pragma once

#include <functional>
#include <string>

#include "core/base/progress.h"
#include "core/base/status.h"
#include "core/engine/engine.h"
#include "parallel/communicator.h"

namespace quire::launch {

struct GroupOptions {
  // Under mpirun: 1 (as many as there are ranks) or the number of ranks. Else: ranks as threads.
  int tensor_parallel_size = 1;
  std::string interface;  // network interface between the hosts; empty: any
};

// Rank 0's place in the group.
class Seat {
 public:
  Seat(Communicator* comm, ProgressMark* mark, bool threads) : comm_(comm), mark_(mark), threads_(threads) {}

  int ranks() const { return comm_->size(); }
  // Ranks that are threads of this process.
  bool threads() const { return threads_; }
  // Makes an engine with these options the group's: its communicator and mark. options.threads, when not 0, is divided
  // over ranks that are threads of this process, and stays as it is for each of several processes.
  void Take(EngineOptions* options) const;

 private:
  Communicator* comm_;
  ProgressMark* mark_;
  bool threads_;
};

// Runs `leader` on rank 0 and gives its status; the other ranks of an mpirun job return OK once it has returned.
// Engines that `leader` opens end before it returns. INVALID_ARGUMENT for a size that doesn't go with the job's.
//
// Not for subcommands that have no model of their own (coordinator, client): they run as they are.
Status RunGroup(const GroupOptions& options, const std::function<Status(const Seat& seat)>& leader);

}  // namespace quire::launch

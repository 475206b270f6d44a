// GroupMonitor: notices out of band that a rank of the group has died, was stopped or hangs, and ends the whole group
// with the culprit's rank, host, pid and phase on stderr. Each rank has one, with a thread of its own that reads the
// rank's ProgressMark; reports travel over TCP to rank 0's monitor (a star, authenticated by a random token that the
// group's communicator carries), and rank 0's own back to the others, who so notice when rank 0 is the culprit. Ranks
// that are threads of one process share one monitor thread and need no sockets. Who is at fault is stall_judge's to say.
//
// What the ranks owe it: the group's communicator is a WatchCommunicator over the same mark; phases are entered as
// progress.h names them; kIdle is entered whenever a rank waits for work or runs code of others (callbacks, output);
// Advance is called at least every few seconds in load, prefill, decode and broadcast.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "core/base/progress.h"
#include "core/base/status.h"
#include "parallel/communicator.h"
#include "parallel/group_topology.h"
#include "parallel/stall_judge.h"

namespace quire {

// The defaults end a group within 10 s of any fault.
struct GroupMonitorOptions {
  std::chrono::milliseconds heartbeat{200};
  std::chrono::milliseconds silence{4000};  // unheard of for so long: stopped
  std::chrono::milliseconds stall{6000};    // working without progress for so long: hangs
  std::chrono::milliseconds join{6000};     // for all ranks to join at the start
  std::string interface;                    // network interface to listen on; empty: any that reaches the others

  // Called once, on the monitor's thread, instead of ending the job. `message` is the whole sentence; failure.rank the
  // culprit. For tests, and programs that own their process. Empty: EndJob (end_job.h).
  std::function<void(const GroupFailure& failure, const std::string& message)> on_failure;
};

class GroupMonitor {
 public:
  // Collective over `comm`, which is not used after it. `mark` (not owned, not null) outlives the monitor. From its return
  // on the group is watched. UNAVAILABLE on all ranks alike where a rank could not join. A rank that doesn't even come here
  // ends the job within options.join + 2 s, named. A group of one is not watched. Honours QUIRE_FAULT (fault.h), for tests.
  static Result<std::unique_ptr<GroupMonitor>> Start(Communicator& comm, const GroupTopology& topology,
                                                     ProgressMark* mark, const GroupMonitorOptions& options = {});

  // Says goodbye: the rank's end from here on is no failure, unless others wait for it. Not collective; doesn't block for
  // more than some tenths of a second. Destroy it before MPI_Finalize, after the last collective.
  virtual ~GroupMonitor() = default;
};

namespace internal {
// The sentence about a failure, seen from any rank.
std::string DescribeFailure(const GroupFailure& failure, const GroupTopology& topology);
// Whether ranks that are threads use sockets too; for tests of these.
Result<std::unique_ptr<GroupMonitor>> StartOverSockets(Communicator& comm, const GroupTopology& topology,
                                                       ProgressMark* mark, const GroupMonitorOptions& options);
Result<std::unique_ptr<GroupMonitor>> StartInProcess(Communicator& comm, const GroupTopology& topology,
                                                     ProgressMark* mark, const GroupMonitorOptions& options);
}  // namespace internal

}  // namespace quire

// The ranks that follow rank 0: each makes the engines that rank 0 makes, from rank 0's options, and executes its
// plans.
#pragma once

#include "core/base/progress.h"
#include "core/base/status.h"
#include "core/model/decoder.h"
#include "parallel/communicator.h"

namespace quire {

struct FollowerOptions {
  Communicator* comm = nullptr;           // this rank's, not rank 0's; not owned
  ProgressMark* progress_mark = nullptr;  // not owned; may be null
  SelectionObserver* observer = nullptr;  // of this rank's selections; not owned; may be null
};

// Follows rank 0 until it calls ReleaseFollowers: returns OK then. Engines that can't be made are no error here: every
// rank is told, and rank 0 decides what is next. An error ends the group: every rank's next collective returns it with
// this rank's number (under MPI the job ends, see Communicator::Abort).
//
// The progress mark says idle while rank 0 has nothing to say, load while an engine is made, and prefill or decode
// while a plan is executed.
Status FollowLeader(const FollowerOptions& options);

// Called on rank 0 when no engine is left: the followers return. Nothing to do for a group of one.
Status ReleaseFollowers(Communicator* comm);

}  // namespace quire

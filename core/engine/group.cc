#include "core/engine/group.h"

#include <exception>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/base/check.h"
#include "core/engine/engine_options.h"
#include "core/engine/engine_rank.h"
#include "core/engine/group_channel.h"
#include "parallel/group_topology.h"

namespace quire {
namespace {

class Follower {
 public:
  explicit Follower(const FollowerOptions& options) : options_(options), channel_(options.comm) {}

  Status Run() {
    while (true) {
      Enter(Phase::kIdle);
      ASSIGN_OR_RETURN(const GroupMessage message, channel_.Receive(&payload_));
      Enter(Phase::kBroadcast);
      switch (message) {
        case GroupMessage::kOpen: RETURN_IF_ERROR(Open()); break;
        case GroupMessage::kPlan: RETURN_IF_ERROR(Step()); break;
        case GroupMessage::kClose: rank_.reset(); break;
        case GroupMessage::kRelease: rank_.reset(); return OkStatus();
      }
    }
  }

  // For messages: with host and process once an engine was made.
  std::string Name() const {
    const int rank = options_.comm->rank();
    return rank_ != nullptr ? rank_->topology.Name(rank) : "rank " + std::to_string(rank);
  }

 private:
  void Enter(Phase phase) const {
    if (options_.progress_mark != nullptr) options_.progress_mark->Enter(phase);
  }

  Status Open() {
    ASSIGN_OR_RETURN(EngineOptions options, ParseOptions(payload_));
    options.comm = options_.comm;
    options.progress_mark = options_.progress_mark;
    rank_.reset();
    auto rank = EngineRank::Create(std::move(options));
    if (!rank.ok()) return OkStatus();  // rank 0 has the same status, or the next Receive fails as well
    rank_ = std::move(rank).value();
    rank_->executor->set_observer(options_.observer);
    return OkStatus();
  }

  Status Step() {
    if (rank_ == nullptr) return FailedPrecondition("rank 0 sent a plan before there was an engine");
    ASSIGN_OR_RETURN(const StepPlan plan, StepPlan::Parse(payload_, rank_->plan.executor.limits));
    StepResult result;
    return rank_->Execute(plan, &result).WithContext("step " + std::to_string(plan.step));
  }

  FollowerOptions options_;
  GroupChannel channel_;
  std::vector<uint8_t> payload_;
  std::unique_ptr<EngineRank> rank_;
};

}  // namespace

Status FollowLeader(const FollowerOptions& options) {
  CHECK(options.comm != nullptr);
  CHECK_NE(options.comm->rank(), 0);
  Follower follower(options);
  Status status;
  try {
    status = follower.Run();
  } catch (const std::exception& error) {  // of a third party's, or no memory: the others must not wait for this rank
    status = Internal(error.what());
  }
  if (options.progress_mark != nullptr) options.progress_mark->Enter(Phase::kStop);
  if (status.ok()) return status;
  status = status.WithContext(follower.Name());
  options.comm->Abort(status);
  return status;
}

Status ReleaseFollowers(Communicator* comm) {
  if (comm == nullptr || comm->size() == 1) return OkStatus();
  return GroupChannel(comm).Send(GroupMessage::kRelease);
}

}  // namespace quire

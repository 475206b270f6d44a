// The choice between the two kinds of monitor, the sentences, and the monitor of ranks that are threads. Those over
// sockets are in group_monitor_sockets.cc.
#include "parallel/group_monitor.h"

#include <pthread.h>
#include <signal.h>

#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "core/base/clock.h"
#include "parallel/end_job.h"
#include "parallel/fault.h"

namespace quire {
namespace {

double Seconds(std::chrono::milliseconds time) { return static_cast<double>(time.count()) / 1000; }

class NoMonitor final : public GroupMonitor {};

// Shared by the ranks of one process; its thread looks at all marks. The last rank to leave ends it.
class LocalGroup {
 public:
  LocalGroup(const GroupTopology& topology, const GroupMonitorOptions& options)
      : topology_(topology),
        options_(options),
        marks_(topology.ranks.size(), nullptr),
        judge_(topology.size(), Seconds(options.silence), Seconds(options.stall), NowSeconds()),
        thread_([this] { Watch(); }) {}

  ~LocalGroup() {
    {
      std::lock_guard lock(mutex_);
      over_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  void Join(int rank, const ProgressMark* mark) {
    std::lock_guard lock(mutex_);
    marks_[rank] = mark;
  }
  void Leave(int rank) {
    std::lock_guard lock(mutex_);
    marks_[rank] = nullptr;
    judge_.Left(rank, NowSeconds());
  }

 private:
  void Watch() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, nullptr);
    const double tick = Seconds(options_.heartbeat);
    double before = NowSeconds();
    std::unique_lock lock(mutex_);
    while (!over_) {
      changed_.wait_for(lock, options_.heartbeat);
      const double now = NowSeconds();
      if (now - before > tick + 1) judge_.Excuse(now - before - tick);
      before = now;
      for (size_t r = 0; r < marks_.size(); ++r) {
        // A rank that hasn't joined yet is heard of too: nothing here can die alone.
        judge_.Heard(static_cast<int>(r), marks_[r] != nullptr ? ReportOf(*marks_[r]) : judge_.last(static_cast<int>(r)),
                     now);
      }
      const std::optional<GroupFailure> failure = judge_.Judge(now);
      if (over_ || !failure) continue;
      lock.unlock();
      const std::string message = internal::DescribeFailure(*failure, topology_);
      if (!options_.on_failure) EndJob(message);
      options_.on_failure(*failure, message);
      return;
    }
  }

  const GroupTopology topology_;
  const GroupMonitorOptions options_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<const ProgressMark*> marks_;  // [rank]; null before it joined and after it left
  StallJudge judge_;
  bool over_ = false;
  std::thread thread_;
};

class LocalMonitor final : public GroupMonitor {
 public:
  LocalMonitor(std::shared_ptr<LocalGroup> group, int rank, ProgressMark* mark,
               std::unique_ptr<internal::FaultSeam> fault)
      : group_(std::move(group)), rank_(rank), fault_(std::move(fault)) {
    group_->Join(rank, mark);
  }
  ~LocalMonitor() override { group_->Leave(rank_); }

 private:
  std::shared_ptr<LocalGroup> group_;
  int rank_;
  std::unique_ptr<internal::FaultSeam> fault_;  // null: none
};

std::string Tenths(double seconds) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f s", seconds);
  return text;
}

}  // namespace

Result<std::unique_ptr<GroupMonitor>> GroupMonitor::Start(Communicator& comm, const GroupTopology& topology,
                                                          ProgressMark* mark, const GroupMonitorOptions& options) {
  if (comm.size() == 1) return std::unique_ptr<GroupMonitor>(std::make_unique<NoMonitor>());
  if (topology.OneProcess()) return internal::StartInProcess(comm, topology, mark, options);
  return internal::StartOverSockets(comm, topology, mark, options);
}

Result<std::unique_ptr<GroupMonitor>> internal::StartInProcess(Communicator& comm, const GroupTopology& topology,
                                                               ProgressMark* mark,
                                                               const GroupMonitorOptions& options) {
  auto fault = FaultSeam::FromEnvironment(comm.rank(), mark);
  RETURN_IF_ERROR(fault.status());
  // Rank 0 makes the group; the others are told where it is and take their share of it before rank 0 goes on.
  std::shared_ptr<LocalGroup> group;
  if (comm.rank() == 0) group = std::make_shared<LocalGroup>(topology, options);
  const std::shared_ptr<LocalGroup>* address = &group;
  RETURN_IF_ERROR(comm.Broadcast({&address, DType::kU8, {sizeof(address)}, {}}, 0));
  if (comm.rank() != 0) group = *address;
  RETURN_IF_ERROR(comm.Barrier());
  return std::unique_ptr<GroupMonitor>(
      std::make_unique<LocalMonitor>(std::move(group), comm.rank(), mark, *std::move(fault)));
}

std::string internal::DescribeFailure(const GroupFailure& f, const GroupTopology& topology) {
  std::string waiting;
  for (int r : f.waiting) waiting += (waiting.empty() ? "" : ", ") + std::to_string(r);
  if (!waiting.empty()) waiting = " while rank " + waiting + (f.waiting.size() > 1 ? " wait" : " waits") + " in a collective";
  const std::string phase = std::string("phase ") + PhaseName(f.last.phase);
  const std::string end = "; the whole group ends";
  if (f.rank < 0) {
    return "all ranks wait in the same collective and none has moved for " + Tenths(f.seconds) + " (" +
           topology.Name(topology.rank) + " in " + phase + "): the network or MPI between them has stalled" + end;
  }
  const std::string who = topology.Name(f.rank);
  switch (f.kind) {
    case GroupFailure::Kind::kDied:
      return who + " died in " + phase + ", " + Tenths(f.seconds) + " after it was last heard of" + end;
    case GroupFailure::Kind::kSilent:
      return who + " is stopped or its host can't be reached: last heard of " + Tenths(f.seconds) + " ago in " + phase + end;
    case GroupFailure::Kind::kLeft:
      return who + " has left the group (last in " + phase + ")" + waiting + end;
    case GroupFailure::Kind::kStalled: break;
  }
  return who + " hangs in " + phase + ": no progress for " + Tenths(f.seconds) + waiting + end;
}

}  // namespace quire

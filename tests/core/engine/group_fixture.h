// An engine on several ranks, as threads of the test: rank 0 is the test's own thread.
#pragma once

#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "core/engine/group.h"
#include "parallel/threads_communicator.h"
#include "tests/core/engine/engine_fixture.h"

namespace quire {

class TestRanks {
 public:
  // observer, which may be empty, gives each follower's.
  explicit TestRanks(int size, const std::function<SelectionObserver*(int rank)>& observer = {})
      : comms_(MakeThreadCommunicators(size, {.timeout = std::chrono::seconds(60)})), marks_(size), ends_(size) {
    for (int rank = 1; rank < size; ++rank) {
      SelectionObserver* sees = observer ? observer(rank) : nullptr;
      threads_.emplace_back([this, rank, sees] {
        ends_[rank] = FollowLeader({.comm = comms_[rank].get(), .progress_mark = &marks_[rank], .observer = sees});
      });
    }
  }
  ~TestRanks() { Release(); }

  int size() const { return static_cast<int>(comms_.size()); }
  Communicator* leader() { return comms_[0].get(); }
  ProgressMark& mark(int rank) { return marks_[rank]; }

  EngineOptions Options(EngineOptions options) {
    options.comm = leader();
    options.progress_mark = &marks_[0];
    return options;
  }

  // Lets the followers go, and gives how each ended. Engines must be gone.
  const std::vector<Status>& Release() {
    if (!threads_.empty()) static_cast<void>(ReleaseFollowers(leader()));
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
    return ends_;
  }

 private:
  std::vector<std::unique_ptr<Communicator>> comms_;
  std::vector<ProgressMark> marks_;
  std::vector<Status> ends_;
  std::vector<std::thread> threads_;
};

}  // namespace quire

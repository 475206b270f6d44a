// A coordinator with groups as processes: what the failover tests disturb.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "quire/v1/control.pb.h"
#include "tests/launch/quire_process.h"
#include "tests/rpc/client_streams.h"

namespace quire {

class Cluster {
 public:
  // Groups register by themselves. `model` is of tests/data; `flags` go to every group; `launcher` starts each (mpirun and
  // its flags), empty: they are processes of their own.
  Cluster(int groups, const std::string& model, std::vector<std::string> flags, std::vector<std::string> launcher = {});

  const std::string& address() { return coordinator_->address(); }
  QuireProcess& coordinator() { return *coordinator_; }
  QuireProcess& group(int i) { return *groups_[static_cast<size_t>(i)]; }
  void KillGroup(int i) { group(i).Kill(); }
  void StartGroup(int i);  // a new process in its place
  void RestartCoordinator();  // SIGKILL, and another one at the same address
  bool WaitGroups(int available, double seconds = 30);
  v1::GetLoadResponse Load();
  // Waits until nothing is in flight and every page of every group is free.
  bool WaitIdle(double seconds = 10);

 private:
  const std::string model_;
  const std::vector<std::string> flags_, launcher_;
  std::unique_ptr<QuireProcess> coordinator_;
  std::vector<std::unique_ptr<QuireProcess>> groups_;
};

}  // namespace quire

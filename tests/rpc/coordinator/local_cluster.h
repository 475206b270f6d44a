// A coordinator and its groups in one process, over real sockets, the way to each group through a proxy that can be cut:
// everything but the processes' own deaths, which cluster.h has, in a fraction of the time.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "rpc/coordinator.h"
#include "tests/rpc/service_fixture.h"
#include "tests/rpc/tcp_proxy.h"

namespace quire {

class LocalCluster {
 public:
  // What a group serves, made of its engine.
  using Wrap = std::function<std::unique_ptr<Engine>(int group, std::unique_ptr<Engine>)>;
  // observers: of each group's engine; may be shorter, and its entries null.
  LocalCluster(int groups, const EngineOptions& engine, CoordinatorOptions coordinator = {},
               const std::vector<SelectionObserver*>& observers = {}, const Wrap& wrap = {});

  const std::string& address() const { return coordinator_->address(); }
  Coordinator& coordinator() { return *coordinator_; }
  TcpProxy& way(int group) { return *groups_[static_cast<size_t>(group)]->way; }

  v1::GetLoadResponse Load();               // by the coordinator
  v1::GroupLoad GroupLoad(int group);       // by the group itself
  bool WaitGroups(int available, double seconds = 20);
  // Nothing is in flight anywhere, and every page of every group is free, as the groups themselves say.
  bool GroupsEmpty();
  bool WaitEmpty(double seconds = 20) {
    return Eventually([this] { return GroupsEmpty(); }, seconds);
  }

  v1::Generation::Stub& generation() { return *generation_; }
  v1::Control::Stub& control() { return *control_; }

 private:
  struct Group {
    std::unique_ptr<GroupServer> server;
    std::unique_ptr<TcpProxy> way;
    std::unique_ptr<v1::Control::Stub> control;
  };
  void StartCoordinator();

  CoordinatorOptions options_;
  std::vector<std::unique_ptr<Group>> groups_;
  std::unique_ptr<Coordinator> coordinator_;
  std::unique_ptr<v1::Generation::Stub> generation_;
  std::unique_ptr<v1::Control::Stub> control_;
};

std::shared_ptr<grpc::Channel> ChannelTo(const std::string& address);

}  // namespace quire

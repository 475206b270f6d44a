#include "tests/rpc/coordinator/local_cluster.h"

#include <utility>

namespace quire {
namespace {

v1::GetLoadResponse Ask(v1::Control::Stub& control) {
  grpc::ClientContext context;
  context.set_deadline(In(20));
  v1::GetLoadResponse response;
  const grpc::Status status = control.GetLoad(&context, {}, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response;
}

}  // namespace

std::shared_ptr<grpc::Channel> ChannelTo(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

LocalCluster::LocalCluster(int groups, const EngineOptions& engine, CoordinatorOptions coordinator,
                           const std::vector<SelectionObserver*>& observers, const Wrap& wrap)
    : options_(std::move(coordinator)) {
  for (int i = 0; i < groups; ++i) {
    auto group = std::make_unique<Group>();
    ServeOptions serve;
    serve.listen = "127.0.0.1:0";
    serve.group = "group" + std::to_string(i);
    serve.version = "test";
    auto server = GroupServer::Start(std::move(serve));
    EXPECT_TRUE(server.ok()) << server.status().ToString();
    group->server = std::move(server).value();
    auto made = MakeEngine(engine);
    if (static_cast<size_t>(i) < observers.size()) made->set_selection_observer(observers[static_cast<size_t>(i)]);
    if (wrap) made = wrap(i, std::move(made));
    group->server->Serve(std::move(made));
    group->way = std::make_unique<TcpProxy>(group->server->address());
    group->control = v1::Control::NewStub(ChannelTo(group->server->address()));
    options_.workers.push_back(group->way->address());
    groups_.push_back(std::move(group));
  }
  options_.listen = "127.0.0.1:0";
  options_.version = "test";
  options_.name = "test";
  StartCoordinator();
}

void LocalCluster::StartCoordinator() {
  auto started = Coordinator::Start(options_);
  ASSERT_TRUE(started.ok()) << started.status().ToString();
  coordinator_ = std::move(started).value();
  const auto channel = ChannelTo(coordinator_->address());
  generation_ = v1::Generation::NewStub(channel);
  control_ = v1::Control::NewStub(channel);
  EXPECT_TRUE(WaitGroups(static_cast<int>(groups_.size())));
}

v1::GetLoadResponse LocalCluster::Load() { return Ask(*control_); }

v1::GroupLoad LocalCluster::GroupLoad(int group) {
  return Ask(*groups_[static_cast<size_t>(group)]->control).groups(0);
}

bool LocalCluster::WaitGroups(int available, double seconds) {
  return Eventually(
      [&] {
        int there = 0;
        const v1::GetLoadResponse load = Load();
        for (const v1::GroupLoad& group : load.groups()) there += group.available() ? 1 : 0;
        return there == available;
      },
      seconds);
}

bool LocalCluster::GroupsEmpty() {
  for (size_t i = 0; i < groups_.size(); ++i) {
    const v1::GroupLoad load = GroupLoad(static_cast<int>(i));
    if (load.running() != 0 || load.waiting() != 0 || load.tokens_in_flight() != 0 || load.pages_total() == 0 ||
        load.pages_free() != load.pages_total()) {
      return false;
    }
  }
  return true;
}

}  // namespace quire

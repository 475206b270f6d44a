// See cluster.h.
#include "tests/rpc/coordinator/cluster.h"

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <thread>
#include <utility>

#include "core/base/clock.h"
#include "quire/v1/control.grpc.pb.h"
#include "tests/sanitizers/sanitized.h"

namespace quire {
namespace {

void SleepMs(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

}  // namespace

Cluster::Cluster(int groups, const std::string& model, std::vector<std::string> flags, std::vector<std::string> launcher)
    : model_(model), flags_(std::move(flags)), launcher_(std::move(launcher)) {
  coordinator_ =
      std::make_unique<QuireProcess>(std::vector<std::string>{"coordinator", "--port", "0", "--name", "test"});
  EXPECT_NE(coordinator_->address(), "") << coordinator_->err();
  groups_.resize(static_cast<size_t>(groups));
  for (int i = 0; i < groups; ++i) StartGroup(i);
  EXPECT_TRUE(WaitGroups(groups));
}

void Cluster::StartGroup(int i) {
  std::vector<std::string> arguments = {"serve",  "--port", "0", "--model", std::string(QUIRE_SOURCE_DIR "/tests/data/") + model_,
                                        "--coordinator", address(), "--threads", "1", "--group-name",
                                        "group" + std::to_string(i)};
  arguments.insert(arguments.end(), flags_.begin(), flags_.end());
  auto& slot = groups_[static_cast<size_t>(i)];
  slot.reset();
  slot = std::make_unique<QuireProcess>(arguments, launcher_);
  EXPECT_NE(slot->address(), "") << slot->err();
}

void Cluster::RestartCoordinator() {
  const std::string address = coordinator_->address();
  coordinator_->Kill();
  const std::string port = address.substr(address.rfind(':') + 1);
  coordinator_ =
      std::make_unique<QuireProcess>(std::vector<std::string>{"coordinator", "--port", port, "--name", "test"});
  EXPECT_EQ(coordinator_->address(), address);
}

v1::GetLoadResponse Cluster::Load() {
  const auto stub = v1::Control::NewStub(grpc::CreateChannel(address(), grpc::InsecureChannelCredentials()));
  v1::GetLoadResponse response;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
  (void)stub->GetLoad(&context, {}, &response);
  return response;
}

bool Cluster::WaitGroups(int available, double seconds) {
  for (const double end = NowSeconds() + seconds * kSlowness; NowSeconds() < end; SleepMs(30)) {
    int there = 0;
    const v1::GetLoadResponse load = Load();
    for (const v1::GroupLoad& group : load.groups()) there += group.available() ? 1 : 0;
    if (there == available) return true;
  }
  return false;
}

bool Cluster::WaitIdle(double seconds) {
  for (const double end = NowSeconds() + seconds * kSlowness; NowSeconds() < end; SleepMs(50)) {
    const v1::GroupLoad total = Load().total();
    if (total.running() == 0 && total.waiting() == 0 && total.tokens_in_flight() == 0 && total.pages_total() > 0 &&
        total.pages_free() == total.pages_total()) {
      return true;
    }
  }
  return false;
}

}  // namespace quire

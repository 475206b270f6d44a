// Both kinds of monitor over ranks that are threads: what they see and what they leave alone. Real processes, killed and
// stopped, are in group_failure_test.cc.
#include "parallel/group_monitor.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <mutex>

#include "core/base/clock.h"
#include "parallel/fault.h"
#include "parallel/monitor_channel.h"
#include "parallel/watched_communicator.h"
#include "tests/parallel/rank_threads.h"

namespace quire {
namespace {

using namespace std::chrono_literals;
using testing::OnRanks;
enum class Monitors { kInProcess, kOverSockets };

// What the monitors of a group reported.
class Failures {
 public:
  GroupMonitorOptions Options() {
    GroupMonitorOptions options;
    options.heartbeat = 50ms;
    options.silence = 600ms;
    options.stall = 600ms;
    options.join = 2000ms;
    options.on_failure = [this](const GroupFailure& failure, const std::string& message) {
      std::lock_guard lock(mutex_);
      ranks_.push_back(failure.rank);
      message_ = message;
    };
    return options;
  }
  std::vector<int> ranks() {
    std::lock_guard lock(mutex_);
    return ranks_;
  }
  std::string message() {
    std::lock_guard lock(mutex_);
    return message_;
  }
  void Clear() {
    std::lock_guard lock(mutex_);
    ranks_.clear();
    message_.clear();
  }
  bool WaitFor(size_t count) {
    for (const double end = NowSeconds() + 5; NowSeconds() < end;) {
      if (ranks().size() >= count) return true;
      std::this_thread::sleep_for(5ms);
    }
    return false;
  }

 private:
  std::mutex mutex_;
  std::vector<int> ranks_;
  std::string message_;
};

class GroupMonitorKinds : public ::testing::TestWithParam<Monitors> {
 protected:
  // Runs `body` on three watched ranks whose monitors report to failures_.
  void Run(const std::function<void(Communicator&, ProgressMark&, std::unique_ptr<GroupMonitor>&)>& body,
           const ThreadGroupOptions& group = {}) {
    OnRanks(3, [&](std::unique_ptr<Communicator> inner) {
      ProgressMark mark;
      const auto comm = WatchCommunicator(std::move(inner), &mark);
      const auto topology = GatherTopology(*comm);
      ASSERT_TRUE(topology.ok());
      const auto start = GetParam() == Monitors::kInProcess ? internal::StartInProcess : internal::StartOverSockets;
      auto monitor = start(*comm, *topology, &mark, failures_.Options());
      ASSERT_TRUE(monitor.ok()) << monitor.status().ToString();
      body(*comm, mark, *monitor);
    }, group);
  }
  Failures failures_;
  std::atomic<bool> done_{false};
};

INSTANTIATE_TEST_SUITE_P(Kinds, GroupMonitorKinds,
                         ::testing::Values(Monitors::kInProcess, Monitors::kOverSockets),
                         [](const auto& info) { return info.index == 0 ? "InProcess" : "OverSockets"; });

TEST_P(GroupMonitorKinds, AGroupThatWorksAndRestsIsLeftAlone) {
  Run([](Communicator& comm, ProgressMark& mark, auto&) {
    std::vector<float> data(8, 1);
    const TensorView view{data.data(), DType::kF32, {8}, {}};
    mark.Enter(Phase::kLoad);
    for (int i = 0; i < 8; ++i) {  // a rank that loads slowly while the others wait for it
      if (comm.rank() != 1) break;
      std::this_thread::sleep_for(100ms);
      mark.Advance();
    }
    for (int step = 0; step < 1; ++step) {
      mark.Enter(comm.rank() == 0 ? Phase::kIdle : Phase::kBroadcast);
      if (comm.rank() == 0) std::this_thread::sleep_for(800ms);  // idle for longer than a stall
      mark.Enter(Phase::kBroadcast);
      ASSERT_TRUE(comm.Broadcast(view, 0).ok());
      mark.Enter(Phase::kDecode);
      ASSERT_TRUE(comm.AllReduce(view).ok());
    }
    mark.Enter(Phase::kStop);
  });
  EXPECT_TRUE(failures_.ranks().empty()) << failures_.message();
}

TEST_P(GroupMonitorKinds, ARankThatHangsIsNamedWhicheverItIs) {
  for (int culprit : {0, 2}) {
    failures_.Clear();
    std::atomic<bool> release{false};
    Run([&](Communicator& comm, ProgressMark& mark, auto&) {
      mark.Enter(Phase::kPrefill);
      if (comm.rank() == culprit) {
        EXPECT_TRUE(failures_.WaitFor(1));
        release = true;
      }
      ASSERT_TRUE(comm.Barrier().ok());
      while (!release) std::this_thread::sleep_for(1ms);
    });
    ASSERT_FALSE(failures_.ranks().empty());
    EXPECT_EQ(failures_.ranks().back(), culprit);
    const std::string want = "rank " + std::to_string(culprit) + " (host ";
    EXPECT_NE(failures_.message().find(want), std::string::npos) << failures_.message();
    EXPECT_NE(failures_.message().find("hangs in phase prefill"), std::string::npos) << failures_.message();
    EXPECT_NE(failures_.message().find("pid " + std::to_string(getpid())), std::string::npos) << failures_.message();
  }
}

TEST_P(GroupMonitorKinds, GoodbyesInAnyOrderAreNoDeaths) {
  for (int last : {0, 1}) {
    Run([&](Communicator& comm, ProgressMark& mark, std::unique_ptr<GroupMonitor>& monitor) {
      mark.Enter(Phase::kStop);
      ASSERT_TRUE(comm.Barrier().ok());
      if (comm.rank() == last) std::this_thread::sleep_for(800ms);
      monitor.reset();
      while (comm.rank() != last && !done_) std::this_thread::sleep_for(1ms);  // its communicator outlives the monitor
      if (comm.rank() == last) done_ = true;
    });
    done_ = false;
  }
  EXPECT_TRUE(failures_.ranks().empty()) << failures_.message();
}

TEST_P(GroupMonitorKinds, ARankThatLeftWhileOthersWaitForItIsNamed) {
  for (int culprit : {0, 1}) {
    failures_.Clear();
    Run([&](Communicator& comm, ProgressMark& mark, std::unique_ptr<GroupMonitor>& monitor) {
      mark.Enter(Phase::kDecode);
      if (comm.rank() == culprit) {
        monitor.reset();
        // The others notice it while they wait in the barrier, which this rank then joins after all.
        EXPECT_TRUE(failures_.WaitFor(1));
      }
      ASSERT_TRUE(comm.Barrier().ok());
    });
    ASSERT_FALSE(failures_.ranks().empty());
    EXPECT_EQ(failures_.ranks().back(), culprit);
    EXPECT_NE(failures_.message().find("has left the group"), std::string::npos) << failures_.message();
  }
}

TEST(GroupMonitor, AGroupOfOneIsNotWatched) {
  ProgressMark mark;
  const auto comm = MakeSelfCommunicator();
  const auto topology = GatherTopology(*comm);
  ASSERT_TRUE(topology.ok());
  EXPECT_TRUE(GroupMonitor::Start(*comm, *topology, &mark).ok());
}

TEST(GroupMonitor, AFaultThatCanNotBeReadIsRefused) {
  for (const char* fault : {"rank=0,phase=lunch,kind=kill", "rank=0,phase=load,kind=maim",
                            "rank=0,phase=load,kind=kill,after=0"}) {
    setenv("QUIRE_FAULT", fault, 1);
    ProgressMark mark;
    EXPECT_EQ(internal::FaultSeam::FromEnvironment(0, &mark).status().code(), StatusCode::kInvalidArgument) << fault;
    const auto other = internal::FaultSeam::FromEnvironment(1, &mark);
    EXPECT_TRUE(other.ok() && *other == nullptr) << fault;
  }
  unsetenv("QUIRE_FAULT");
}

// A connection to the monitor's port.
int Dial(const internal::MonitorAddress& address) {
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(address.port));
  std::memcpy(&to.sin_addr, address.host[0].bytes, 4);
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof(to)), 0);
  return fd;
}

// Tells everybody who asks for the group's monitor address.
class Eavesdropper final : public Communicator {
 public:
  Eavesdropper(std::unique_ptr<Communicator> inner, std::function<void(internal::MonitorAddress&)> tell)
      : inner_(std::move(inner)), tell_(std::move(tell)) {}
  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  Status AllReduce(TensorView data, Stream s) override { return inner_->AllReduce(data, s); }
  Status AllGather(TensorView a, TensorView b, Stream s) override { return inner_->AllGather(a, b, s); }
  Status AllGatherV(TensorView a, TensorView b, std::span<const int64_t> c, Stream s) override {
    return inner_->AllGatherV(a, b, c, s);
  }
  Status ReduceScatter(TensorView a, TensorView b, Stream s) override { return inner_->ReduceScatter(a, b, s); }
  Status Broadcast(TensorView a, int root, Stream s) override {
    const Status status = inner_->Broadcast(a, root, s);
    if (a.bytes() == sizeof(internal::MonitorAddress)) tell_(*static_cast<internal::MonitorAddress*>(a.data));
    return status;
  }
  Status Send(TensorView a, int to, Stream s) override { return inner_->Send(a, to, s); }
  Status Recv(TensorView a, int from, Stream s) override { return inner_->Recv(a, from, s); }
  Status Barrier() override { return inner_->Barrier(); }

 private:
  std::unique_ptr<Communicator> inner_;
  std::function<void(internal::MonitorAddress&)> tell_;
};

TEST(GroupMonitor, StrangersAreRefusedAndDisturbNobody) {
  Failures failures;
  std::vector<int> strangers;
  internal::MonitorAddress known;
  OnRanks(2, [&](std::unique_ptr<Communicator> inner) {
    ProgressMark mark;
    // Before rank 1 joins: one says nothing, one talks rubbish, one shows a wrong token as rank 1.
    Eavesdropper comm(std::move(inner), [&](internal::MonitorAddress& address) {
      if (address.token == internal::Token{}) ADD_FAILURE() << "the token is all zero";
      if (mark.count() == 1 && strangers.empty()) {  // on rank 1 alone
        known = address;
        for (int i = 0; i < 3; ++i) strangers.push_back(Dial(address));
        const std::string rubbish(3000, 'x');
        EXPECT_EQ(send(strangers[1], rubbish.data(), rubbish.size(), MSG_NOSIGNAL), 3000);
        internal::MonitorAddress wrong = address;
        wrong.token[3] ^= 1;
        EXPECT_FALSE(internal::Connect(wrong, 1, NowSeconds() + 0.2).ok());
      }
    });
    if (comm.rank() == 1) mark.Advance();
    const auto topology = GatherTopology(comm);
    ASSERT_TRUE(topology.ok());
    auto monitor = internal::StartOverSockets(comm, *topology, &mark, failures.Options());
    ASSERT_TRUE(monitor.ok()) << monitor.status().ToString();
    ASSERT_TRUE(comm.Barrier().ok());
    std::this_thread::sleep_for(100ms);
    if (comm.rank() == 1) {
      // The door is shut once all are there.
      sockaddr_in to{};
      to.sin_family = AF_INET;
      to.sin_port = htons(static_cast<uint16_t>(known.port));
      to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
      const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
      EXPECT_NE(connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof(to)), 0);
      close(fd);
    }
    ASSERT_TRUE(comm.Barrier().ok());
  });
  ASSERT_EQ(strangers.size(), 3u);
  for (int fd : strangers) {
    char byte;
    EXPECT_LE(recv(fd, &byte, 1, 0), 0);  // never answered, then closed
    close(fd);
  }
  EXPECT_TRUE(failures.ranks().empty()) << failures.message();
}

}  // namespace
}  // namespace quire

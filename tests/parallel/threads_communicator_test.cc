#include "parallel/threads_communicator.h"

#include <gtest/gtest.h>

#include <functional>
#include <thread>

#include "tests/parallel/communicator_contract.h"

namespace quire {
namespace {

using testing::View;

// Runs `body` on every rank of a group, each in a thread that owns its communicator.
void OnRanks(int size, const ThreadGroupOptions& options, const std::function<void(Communicator&)>& body) {
  auto group = MakeThreadCommunicators(size, options);
  std::vector<std::thread> threads;
  for (int r = 0; r < size; ++r) {
    threads.emplace_back([&body, comm = std::move(group[r])] { body(*comm); });
  }
  for (std::thread& t : threads) t.join();
}

TEST(ThreadsCommunicator, KeepsTheContract) {
  for (int size : {1, 2, 3, 4, 7}) {
    OnRanks(size, {}, [&](Communicator& comm) { EXPECT_EQ(testing::CheckContract(comm), "") << size; });
  }
}

TEST(SelfCommunicator, KeepsTheContract) {
  EXPECT_EQ(testing::CheckContract(*MakeSelfCommunicator()), "");
}

TEST(ThreadsCommunicator, AMissingRankIsNamed) {
  ThreadGroupOptions options;
  options.timeout = std::chrono::milliseconds(100);
  auto group = MakeThreadCommunicators(3, options);
  std::vector<float> data(4);
  std::thread other([&] { EXPECT_EQ(group[0]->Barrier().code(), StatusCode::kUnavailable); });
  const Status status = group[2]->Barrier();
  other.join();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_NE(status.message().find("for rank 1"), std::string::npos) << status.message();
}

TEST(ThreadsCommunicator, ARankThatLeftFailsThePeersAtOnce) {
  auto group = MakeThreadCommunicators(2, {});
  group[1].reset();
  std::vector<float> data(4);
  const Status status = group[0]->AllReduce(View(data));
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_NE(status.message().find("rank 1 has left"), std::string::npos) << status.message();
}

TEST(ThreadsCommunicator, DifferentCallsAreToldNotMixed) {
  OnRanks(2, {}, [](Communicator& comm) {
    std::vector<float> data(4);
    const Status status = comm.rank() == 0 ? comm.AllReduce(View(data)) : comm.Broadcast(View(data), 0);
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
    EXPECT_NE(status.message().find("AllReduce"), std::string::npos);
    EXPECT_NE(status.message().find("Broadcast"), std::string::npos);
  });
}

}  // namespace
}  // namespace quire

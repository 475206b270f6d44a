#include "parallel/communicator.h"

#include <gtest/gtest.h>

#include <array>
#include <vector>

namespace quire {
namespace {

TensorView View(std::vector<float>& data) {
  return {data.data(), DType::kF32, {static_cast<int64_t>(data.size())}, {}};
}

TEST(SelfCommunicator, IsRankZeroOfOne) {
  const auto comm = MakeSelfCommunicator();
  EXPECT_EQ(comm->rank(), 0);
  EXPECT_EQ(comm->size(), 1);
  EXPECT_TRUE(comm->Barrier().ok());
}

TEST(SelfCommunicator, SumsAndBroadcastsLeaveTheDataAlone) {
  const auto comm = MakeSelfCommunicator();
  std::vector<float> data = {1.5f, -2.0f, 3.25f};
  const std::vector<float> before = data;
  EXPECT_TRUE(comm->AllReduce(View(data)).ok());
  EXPECT_TRUE(comm->Broadcast(View(data), 0).ok());
  EXPECT_EQ(data, before);
}

TEST(SelfCommunicator, GathersAndScattersCopy) {
  const auto comm = MakeSelfCommunicator();
  std::vector<float> send = {1, 2, 3};
  const std::array<int64_t, 1> counts = {3};
  std::vector<float> a(3), b(3), c(3);
  EXPECT_TRUE(comm->AllGather(View(send), View(a)).ok());
  EXPECT_TRUE(comm->AllGatherV(View(send), View(b), counts).ok());
  EXPECT_TRUE(comm->ReduceScatter(View(send), View(c)).ok());
  EXPECT_EQ(a, send);
  EXPECT_EQ(b, send);
  EXPECT_EQ(c, send);
  EXPECT_TRUE(comm->AllGather(View(send), View(send)).ok());  // in place
  EXPECT_EQ(send, a);
}

TEST(SelfCommunicator, RefusesPeersAndBuffersThatDontFit) {
  const auto comm = MakeSelfCommunicator();
  std::vector<float> data = {1, 2}, longer(3);
  const std::array<int64_t, 1> wrong = {3};
  const auto invalid = [](const Status& s) { return s.code() == StatusCode::kInvalidArgument; };
  EXPECT_TRUE(invalid(comm->Send(View(data), 0)));
  EXPECT_TRUE(invalid(comm->Recv(View(data), 1)));
  EXPECT_TRUE(invalid(comm->Broadcast(View(data), 1)));
  EXPECT_TRUE(invalid(comm->AllGather(View(data), View(longer))));
  EXPECT_TRUE(invalid(comm->AllGatherV(View(data), View(longer), wrong)));
  EXPECT_TRUE(invalid(comm->ReduceScatter(View(longer), View(data))));
  TensorView half = View(data);
  half.dtype = DType::kBF16;
  EXPECT_TRUE(invalid(comm->AllReduce(half)));
}

}  // namespace
}  // namespace quire

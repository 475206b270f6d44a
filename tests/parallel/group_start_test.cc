#include "parallel/group_start.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "parallel/build_id.h"
#include "parallel/hash.h"
#include "tests/parallel/rank_threads.h"

namespace quire {
namespace {

using testing::OnRanks;

// Every rank's message for lists that `items` makes.
std::vector<Status> Compare(int size, const std::function<std::vector<NamedHash>(int rank)>& items) {
  std::vector<Status> results(size);
  OnRanks(size, [&](std::unique_ptr<Communicator> comm) {
    const auto topology = GatherTopology(*comm);
    ASSERT_TRUE(topology.ok());
    results[comm->rank()] = CheckSameOnAllRanks(*comm, *topology, Phase::kStart, items(comm->rank()));
  });
  return results;
}

TEST(GroupTopology, ThreadsShareOneProcessAndNode) {
  OnRanks(3, [](std::unique_ptr<Communicator> comm) {
    const auto topology = GatherTopology(*comm);
    ASSERT_TRUE(topology.ok());
    EXPECT_EQ(topology->rank, comm->rank());
    EXPECT_EQ(topology->size(), 3);
    EXPECT_TRUE(topology->OneProcess());
    EXPECT_TRUE(topology->OneNetwork());
    EXPECT_EQ(topology->nodes(), 1);
    EXPECT_EQ(topology->self().local_rank, comm->rank());
    EXPECT_EQ(topology->self().local_size, 3);
    EXPECT_EQ(topology->self().pid, getpid());
    EXPECT_NE(topology->Name(2).find("rank 2 (host "), std::string::npos);
  });
}

TEST(GroupTopology, LocalRanksCountWithinEachNode) {
  std::vector<RankPlace> places(5);
  const uint64_t nodes[] = {7, 8, 7, 8, 7};
  for (int r = 0; r < 5; ++r) places[r].node = nodes[r];
  internal::NumberWithinNodes(&places);
  const int local_rank[] = {0, 0, 1, 1, 2}, local_size[] = {3, 2, 3, 2, 3};
  for (int r = 0; r < 5; ++r) {
    EXPECT_EQ(places[r].local_rank, local_rank[r]) << r;
    EXPECT_EQ(places[r].local_size, local_size[r]) << r;
  }
  GroupTopology topology{0, places};
  EXPECT_EQ(topology.nodes(), 2);
}

TEST(BuildHash, IsTheSameEachTimeAndNotNothing) {
  EXPECT_EQ(BuildHash(), BuildHash());
  EXPECT_NE(BuildHash(), 1u);  // what it starts from
  EXPECT_NE(HashBytes("a"), HashBytes("b"));
  EXPECT_NE(HashBytes("ab"), HashBytes("b", HashBytes("b")));
}

TEST(CheckSameOnAllRanks, EqualListsPass) {
  for (const Status& status : Compare(3, [](int) {
         return std::vector<NamedHash>{BuildIdentity(), ConfigIdentity(5), WeightIndexIdentity(6)};
       })) {
    EXPECT_TRUE(status.ok()) << status.ToString();
  }
}

TEST(CheckSameOnAllRanks, TheRankAndTheItemThatDifferAreNamedOnAllRanks) {
  const auto results = Compare(4, [](int rank) {
    return std::vector<NamedHash>{BuildIdentity(), ConfigIdentity(rank == 2 ? 50 : 5), WeightIndexIdentity(6)};
  });
  for (const Status& status : results) {
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
    EXPECT_EQ(status.message(), results[0].message());
    EXPECT_NE(status.message().find("another configuration"), std::string::npos) << status.message();
    EXPECT_NE(status.message().find("rank 2 (host "), std::string::npos) << status.message();
    EXPECT_EQ(status.message().find("rank 1"), std::string::npos) << status.message();
    EXPECT_EQ(status.message().find("weight index"), std::string::npos) << status.message();
    EXPECT_NE(status.message().find("0000000000000032"), std::string::npos) << status.message();
  }
}

TEST(CheckSameOnAllRanks, SeveralItemsAreNamedAtOnce) {
  const Status status = Compare(3, [](int rank) {
    return std::vector<NamedHash>{{"build", rank == 0 ? 1u : 2u, "x"}, {"weight index", rank == 1 ? 1u : 2u, "y"}};
  })[2];
  EXPECT_NE(status.message().find("another build"), std::string::npos) << status.message();
  EXPECT_NE(status.message().find("another weight index"), std::string::npos) << status.message();
}

TEST(CheckSameOnAllRanks, ListsOfAnotherLengthAreAnotherBuild) {
  const Status status = Compare(3, [](int rank) {
    return std::vector<NamedHash>(rank == 1 ? 1 : 2, NamedHash{"build", 1, ""});
  })[0];
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("rank 1"), std::string::npos) << status.message();
}

TEST(CheckSameOnAllRanks, TheFaultForTestsFakesAnotherBuild) {
  setenv("QUIRE_FAULT", "rank=1,kind=build", 1);
  const Status status = Compare(3, [](int) { return std::vector<NamedHash>{BuildIdentity()}; })[0];
  unsetenv("QUIRE_FAULT");
  EXPECT_NE(status.message().find("another build"), std::string::npos) << status.message();
  EXPECT_NE(status.message().find("rank 1"), std::string::npos) << status.message();
}

TEST(AgreeOn, TheLowestFailingRanksReasonIsEverybodys) {
  OnRanks(4, [](std::unique_ptr<Communicator> comm) {
    const auto topology = GatherTopology(*comm);
    ASSERT_TRUE(topology.ok());
    EXPECT_TRUE(AgreeOn(*comm, *topology, Phase::kLoad, OkStatus()).ok());
    Status local;
    if (comm->rank() == 1) local = NotFound("model.gguf isn't there");
    if (comm->rank() == 3) local = ResourceExhausted("no memory");
    const Status status = AgreeOn(*comm, *topology, Phase::kLoad, local);
    EXPECT_EQ(status.code(), StatusCode::kNotFound);
    EXPECT_EQ(status.message(), topology->Name(1) + " in phase load: model.gguf isn't there (1 more ranks failed)");
    const Status again = AgreeOn(*comm, *topology, Phase::kLoad,
                                 comm->rank() == 3 ? Internal(std::string(9000, 'x')) : OkStatus());
    EXPECT_EQ(again.code(), StatusCode::kInternal);
    EXPECT_EQ(again.message().size(), topology->Name(3).size() + std::strlen(" in phase load: ") + 4000);
  });
}

TEST(AgreeOn, AGroupOfOneKeepsItsStatus) {
  const auto comm = MakeSelfCommunicator();
  EXPECT_EQ(AgreeOn(*comm, GroupTopology{0, {RankPlace{}}}, Phase::kLoad, NotFound("x")).message(), "x");
}

TEST(SmallestOfRanks, IsTheSmallest) {
  OnRanks(3, [](std::unique_ptr<Communicator> comm) {
    const auto smallest = SmallestOfRanks(*comm, (int64_t{1} << 40) + (comm->rank() == 1 ? -1 : comm->rank()));
    ASSERT_TRUE(smallest.ok());
    EXPECT_EQ(*smallest, (int64_t{1} << 40) - 1);
  });
}

TEST(SelfTest, MeasuresSumsThatAreRight) {
  OnRanks(3, [](std::unique_ptr<Communicator> comm) {
    const auto topology = GatherTopology(*comm);
    ASSERT_TRUE(topology.ok());
    const auto report = RunSelfTest(*comm, *topology);
    ASSERT_TRUE(report.ok()) << report.status().ToString();
    EXPECT_GT(report->latency_seconds, 0);
    EXPECT_GT(report->bytes_per_second, 0);
  });
}

// Changes one element of one sum on one rank.
class Flawed final : public Communicator {
 public:
  Flawed(std::unique_ptr<Communicator> inner, int at) : inner_(std::move(inner)), at_(at) {}
  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  Status AllReduce(TensorView data, Stream s) override {
    const Status status = inner_->AllReduce(data, s);
    if (at_-- == 0) data.As<float>()[data.elements() - 1] += 1;
    return status;
  }
  Status AllGather(TensorView a, TensorView b, Stream s) override { return inner_->AllGather(a, b, s); }
  Status AllGatherV(TensorView a, TensorView b, std::span<const int64_t> c, Stream s) override {
    return inner_->AllGatherV(a, b, c, s);
  }
  Status ReduceScatter(TensorView a, TensorView b, Stream s) override { return inner_->ReduceScatter(a, b, s); }
  Status Broadcast(TensorView a, int root, Stream s) override { return inner_->Broadcast(a, root, s); }
  Status Send(TensorView a, int to, Stream s) override { return inner_->Send(a, to, s); }
  Status Recv(TensorView a, int from, Stream s) override { return inner_->Recv(a, from, s); }
  Status Barrier() override { return inner_->Barrier(); }

 private:
  std::unique_ptr<Communicator> inner_;
  int at_;
};

TEST(SelfTest, AWrongSumOnOneRankEndsAllWithItsName) {
  OnRanks(3, [](std::unique_ptr<Communicator> inner) {
    const int at = inner->rank() == 1 ? 2 : -1;  // its third sum
    Flawed comm(std::move(inner), at);
    const auto topology = GatherTopology(comm);
    ASSERT_TRUE(topology.ok());
    const auto report = RunSelfTest(comm, *topology);
    EXPECT_EQ(report.status().code(), StatusCode::kDataLoss);
    EXPECT_EQ(report.status().message().find(topology->Name(1)), 0u) << report.status().message();
    EXPECT_NE(report.status().message().find("--interface"), std::string::npos);
    EXPECT_TRUE(comm.Barrier().ok());  // the group is whole: nobody was left alone in a sum
  });
}

}  // namespace
}  // namespace quire

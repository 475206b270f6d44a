// What ranks tell each other, what is counted of it, and how a rank ends a group from outside a collective.
#include "parallel/rank_numbers.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "parallel/counted_communicator.h"
#include "parallel/threads_communicator.h"

namespace quire {
namespace {

// Runs f(rank, communicator) on a thread for each rank.
template <typename F>
void OnRanks(int size, F&& f, const ThreadGroupOptions& options = {}) {
  auto comms = MakeThreadCommunicators(size, options);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) threads.emplace_back([&, rank] { f(rank, *comms[rank]); });
  for (std::thread& thread : threads) thread.join();
}

TEST(RankNumbers, EveryRankGetsAllInRankOrder) {
  OnRanks(3, [](int rank, Communicator& comm) {
    const int64_t mine[] = {rank, int64_t{1} << (40 + rank), -rank};
    const auto all = GatherNumbers(comm, mine);
    ASSERT_TRUE(all.ok());
    EXPECT_EQ(*all, (std::vector<int64_t>{0, int64_t{1} << 40, 0, 1, int64_t{1} << 41, -1, 2, int64_t{1} << 42, -2}));
  });
}

TEST(RankNumbers, RanksOfANodeDivideItsProcessorsAndBoundOnesKeepTheirs) {
  cpu_set_t set;
  CPU_ZERO(&set);
  ASSERT_EQ(sched_getaffinity(0, sizeof(set), &set), 0);
  const int processors = CPU_COUNT(&set);
  for (const int size : {1, 2, 5}) {
    OnRanks(size, [&](int, Communicator& comm) {
      const auto topology = GatherTopology(comm);
      ASSERT_TRUE(topology.ok());
      const auto share = ShareOfProcessors(comm, *topology);
      ASSERT_TRUE(share.ok());
      EXPECT_EQ(*share, std::max(1, processors / size));
    });
  }
  if (processors < 2) return;
  // Rank 0 may use all, rank 1 is bound to one: that one is shared, the others are rank 0's.
  OnRanks(2, [&](int rank, Communicator& comm) {
    if (rank == 1) {
      cpu_set_t one;
      CPU_ZERO(&one);
      for (int i = 0; i < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++i) {
        if (CPU_ISSET(i, &set)) CPU_SET(i, &one);
      }
      ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
    }
    const auto topology = GatherTopology(comm);
    ASSERT_TRUE(topology.ok());
    const auto share = ShareOfProcessors(comm, *topology);
    ASSERT_TRUE(share.ok());
    EXPECT_EQ(*share, rank == 0 ? processors - 1 : 1);
  });
}

TEST(CountedCommunicator, CountsCallsByKindAndTheirSeconds) {
  OnRanks(2, [](int rank, Communicator& comm) {
    CountedCommunicator counted(&comm);
    std::vector<float> a(4, 1.0f), b(8);
    if (rank == 1) std::this_thread::sleep_for(std::chrono::milliseconds(30));
    EXPECT_TRUE(counted.AllReduce({a.data(), DType::kF32, {4}, {}}, {}).ok());
    EXPECT_EQ(a[3], 2.0f);
    EXPECT_TRUE(counted.AllGather({a.data(), DType::kF32, {4}, {}}, {b.data(), DType::kF32, {8}, {}}, {}).ok());
    const std::vector<int64_t> counts = {4, 4};
    EXPECT_TRUE(
        counted.AllGatherV({a.data(), DType::kF32, {4}, {}}, {b.data(), DType::kF32, {8}, {}}, counts, {}).ok());
    EXPECT_TRUE(counted.Broadcast({a.data(), DType::kF32, {4}, {}}, 0, {}).ok());
    EXPECT_TRUE(counted.Barrier().ok());
    const CollectiveStats& stats = counted.stats();
    EXPECT_EQ(stats.all_reduces, 1);
    EXPECT_EQ(stats.all_gathers, 2);
    EXPECT_EQ(stats.broadcasts, 1);
    EXPECT_EQ(stats.others, 1);
    EXPECT_EQ(stats.calls(), 5);
    if (rank == 0) {
      EXPECT_GT(stats.all_reduce_seconds, 0.02);  // it waited for rank 1
    }
  });
}

TEST(ThreadsCommunicator, AbortGivesItsReasonToThoseThatWaitAndThoseThatCome) {
  const Status why = ResourceExhausted("rank 1: no memory");
  OnRanks(3,
          [&](int rank, Communicator& comm) {
            if (rank == 1) {
              std::this_thread::sleep_for(std::chrono::milliseconds(20));  // rank 0 sleeps in its barrier by then
              comm.Abort(why);
              comm.Abort(Internal("a later reason"));
            }
            if (rank == 2) std::this_thread::sleep_for(std::chrono::milliseconds(50));
            const Status status = comm.Barrier();
            EXPECT_EQ(status.code(), why.code());
            EXPECT_EQ(status.message(), why.message());
          },
          {.timeout = std::chrono::milliseconds(0)});
}

// More ranks than processors: whoever waits gives way, so that a long wait costs next to no processor time.
TEST(ThreadsCommunicator, RanksThatWaitLongDontHoldAProcessor) {
  std::atomic<double> used{0};
  OnRanks(4, [&](int rank, Communicator& comm) {
    if (rank == 0) std::this_thread::sleep_for(std::chrono::milliseconds(300));
    timespec begin, end;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &begin);
    EXPECT_TRUE(comm.Barrier().ok());
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
    used =
        used + static_cast<double>(end.tv_sec - begin.tv_sec) + 1e-9 * static_cast<double>(end.tv_nsec - begin.tv_nsec);
  });
  EXPECT_LT(used.load(), 0.1);
}

}  // namespace
}  // namespace quire

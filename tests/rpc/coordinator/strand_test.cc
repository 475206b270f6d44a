#include "rpc/coordinator/strand.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace quire::rpc {
namespace {

TEST(Strand, JobsOfManyThreadsNeverOverlapAndNoneIsLost) {
  Strand strand;
  int64_t count = 0;  // not atomic: the strand is what keeps it right
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 5000; ++i) strand.Post([&] { ++count; });
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(strand.View([&] { return count; }), 20000);
}

TEST(Strand, AJobThatPostsIsFollowedNotInterrupted) {
  Strand strand;
  std::vector<int> order;
  strand.Post([&] {
    strand.Post([&] { order.push_back(2); });
    order.push_back(1);
  });
  EXPECT_EQ(order, (std::vector<int>{1, 2}));
}

}  // namespace
}  // namespace quire::rpc

#include "core/base/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace quire {
namespace {

TEST(ThreadPool, RunsEveryTaskOnce) {
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (int64_t tasks : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> seen(static_cast<size_t>(tasks));
      std::atomic<bool> worker_ok{true};
      pool.ParallelFor(tasks, [&](int64_t task, int worker) {
        seen[static_cast<size_t>(task)]++;
        if (worker < 0 || worker >= threads) worker_ok = false;
      });
      for (auto& s : seen) EXPECT_EQ(s.load(), 1);
      EXPECT_TRUE(worker_ok);
    }
  }
}

TEST(ThreadPool, ManyShortCallsSurviveSleepingWorkers) {
  ThreadPool pool(3);
  std::atomic<int64_t> sum{0};
  for (int call = 0; call < 2000; ++call) {
    pool.ParallelFor(5, [&](int64_t task, int) { sum += task; });
    if (call % 500 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_EQ(sum.load(), 2000 * 10);
}

}  // namespace
}  // namespace quire

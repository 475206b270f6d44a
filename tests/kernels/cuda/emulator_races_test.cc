// Under ThreadSanitizer, with a thread of the system per CUDA thread: barriers order memory, shuffles don't, and a race is
// reported. The kernels' own races are looked for in kernel_races_test.cc.
#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>
#include <thread>

#include "kernels/cuda/simt.h"
#include "tests/kernels/cuda/emulator/options.h"

namespace quire {
namespace {

using Body = std::function<void()>;
struct BodyParams {
  const Body* body;
};
struct BodyKernel {
  using Params = BodyParams;
  static constexpr const char* kName = "body";
  static constexpr int kMaxThreads = 1024;
  static constexpr int kMinBlocks = 1;
  static void Run(const Params& p) { (*p.body)(); }
};

void RunBody(int threads, const Body& body) {
  emulator::Options options;
  options.os_threads = true;
  const emulator::ScopedOptions scoped(options);
  simt::LaunchShape shape;
  shape.grid_x = 2;
  shape.threads = threads;
  shape.shared_bytes = static_cast<size_t>(threads) * sizeof(int);
  if (!simt::Launch<BodyKernel>(shape, Stream{}, {&body}).ok()) std::abort();
}

int* Ints() { return reinterpret_cast<int*>(simt::SharedBytes()); }

// Each thread writes its word, `order` comes in between, each reads another thread's.
Body Exchange(const std::function<void()>& order) {
  return [order] {
    const int other = (simt::ThreadIndex() + simt::BlockThreads() / 2 + 5) % simt::BlockThreads();
    for (int round = 0; round < 3; ++round) {
      Ints()[simt::ThreadIndex()] = round;
      order();
      if (Ints()[other] != round) simt::AtomicAdd(Ints() + other, 1);
      order();
    }
  };
}

// Ends with ThreadSanitizer's exit code when it has something to report.
#define EXPECT_RACE(threads, body)                       \
  EXPECT_EXIT(                                           \
      {                                                  \
        RunBody(threads, body);                          \
        std::exit(0);                                    \
      },                                                 \
      testing::ExitedWithCode(66), "data race")
#define EXPECT_NO_RACE(threads, body)                    \
  EXPECT_EXIT(                                           \
      {                                                  \
        RunBody(threads, body);                          \
        std::exit(0);                                    \
      },                                                 \
      testing::ExitedWithCode(0), "")

class EmulatorRacesDeathTest : public testing::Test {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

TEST_F(EmulatorRacesDeathTest, ABarrierOrdersAndItsAbsenceIsARace) {
  EXPECT_NO_RACE(64, Exchange([] { simt::SyncThreads(); }));
  EXPECT_NO_RACE(64, Exchange([] { simt::NamedBarrierSync(2, 64); }));
  EXPECT_RACE(64, Exchange([] {}));
}

// One thread publishes by an atomic, another waits for it: a race without fences.
Body Publish(bool fences) {
  return [fences] {
    auto* flag = Ints() + 1;
    if (simt::ThreadIndex() == 0) {
      Ints()[0] = 7;
      if (fences) simt::ThreadFence();
      simt::AtomicExchange(flag, 1);
    } else if (simt::ThreadIndex() == 32) {
      while (simt::AtomicAdd(flag, 0) != 1) std::this_thread::yield();
      if (fences) simt::ThreadFence();
      if (Ints()[0] != 7) std::abort();
    }
  };
}

TEST_F(EmulatorRacesDeathTest, FencesOrderWhatAnAtomicPublishes) {
  EXPECT_NO_RACE(64, Publish(true));
  EXPECT_RACE(64, Publish(false));
}

TEST_F(EmulatorRacesDeathTest, AWarpBarrierOrdersItsWarpOnly) {
  EXPECT_NO_RACE(32, Exchange([] { simt::SyncWarp(); }));
  EXPECT_RACE(64, Exchange([] { simt::SyncWarp(); }));
}

TEST_F(EmulatorRacesDeathTest, ShufflesAndVotesOrderNothing) {
  EXPECT_RACE(32, Exchange([] { simt::ShuffleXor(simt::kFullMask, 1, 1); }));
  EXPECT_RACE(32, Exchange([] { simt::Ballot(simt::kFullMask, true); }));
}

TEST_F(EmulatorRacesDeathTest, AnAsyncCopyIsItsOwnThreadsUntilABarrier) {
  static const int global[32] = {};
  const auto copy = [](bool barrier) {
    return Body([barrier] {
      simt::CpAsync<4>(Ints() + simt::Lane(), global + simt::Lane());
      simt::CpAsyncCommit();
      simt::CpAsyncWait<0>();
      if (barrier) simt::SyncWarp();
      volatile int sink = Ints()[31 - simt::Lane()];
      (void)sink;
    });
  };
  EXPECT_NO_RACE(32, copy(true));
  EXPECT_RACE(32, copy(false));
}

}  // namespace
}  // namespace quire

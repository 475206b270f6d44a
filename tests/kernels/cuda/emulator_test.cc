// The emulator itself: what it computes, and that every broken rule is reported with its thread and line. Kernels here are
// small on purpose; those that break a rule do it in one line.
#include <gtest/gtest.h>

#include <functional>
#include <random>
#include <set>
#include <vector>

#include "kernels/cuda/simt.h"
#include "tests/kernels/cuda/emulator/options.h"

namespace quire {
namespace {

using emulator::Options;
using emulator::ScopedOptions;

// A kernel made of a lambda.
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

void RunBody(int blocks, int threads, size_t shared, const Body& body) {
  simt::LaunchShape shape;
  shape.grid_x = blocks;
  shape.threads = threads;
  shape.shared_bytes = shared;
  ASSERT_TRUE(simt::Launch<BodyKernel>(shape, Stream{}, {&body}).ok());
}

// The message of the error that the launch ends with; "" when there is none.
std::string ErrorOf(int threads, size_t shared, const Body& body, bool os_threads = false) {
  Options options;
  options.os_threads = os_threads;
  const ScopedOptions scoped(options);
  try {
    RunBody(1, threads, shared, body);
  } catch (const emulator::Error& e) {
    return e.what();
  }
  return "";
}

#define EXPECT_MENTIONS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

std::string HereAt(int line) { return "emulator_test.cc:" + std::to_string(line); }

// Both ways of running threads, and several orders.
void ForEachMode(const std::function<void()>& test) {
  for (const uint64_t seed : {1, 2, 3}) {
    Options options;
    options.seed = seed;
    const ScopedOptions scoped(options);
    test();
  }
  Options options;
  options.os_threads = true;
  const ScopedOptions scoped(options);
  test();
}

TEST(Emulator, RunsEveryThreadOfEveryBlockOnce) {
  ForEachMode([] {
    std::vector<int> seen(3 * 5 * 2 * 64, 0);
    const Body body = [&] {
      const int block = (simt::BlockZ() * simt::GridY() + simt::BlockY()) * simt::GridX() + simt::BlockX();
      ++seen[static_cast<size_t>(block * simt::BlockThreads() + simt::ThreadIndex())];
    };
    simt::LaunchShape shape;
    shape.grid_x = 3;
    shape.grid_y = 5;
    shape.grid_z = 2;
    shape.threads = 64;
    ASSERT_TRUE(simt::Launch<BodyKernel>(shape, Stream{}, {&body}).ok());
    EXPECT_EQ(seen, std::vector<int>(seen.size(), 1));
    shape.grid_y = 0;
    ASSERT_TRUE(simt::Launch<BodyKernel>(shape, Stream{}, {&body}).ok());
    EXPECT_EQ(seen, std::vector<int>(seen.size(), 1));
  });
}

TEST(Emulator, SharedMemoryIsOfTheBlockAndStartsPoisoned) {
  ForEachMode([] {
    std::vector<int> sums(4, 0);
    RunBody(4, 96, 96 * sizeof(int), [&] {
      auto* values = reinterpret_cast<int*>(simt::SharedBytes());
      const bool poisoned = values[simt::ThreadIndex()] == -1;
      values[simt::ThreadIndex()] = poisoned ? simt::ThreadIndex() + simt::BlockX() : 1000000;
      simt::SyncThreads();
      if (simt::ThreadIndex() != 0) return;
      for (int i = 0; i < 96; ++i) sums[static_cast<size_t>(simt::BlockX())] += values[i];
    });
    for (int b = 0; b < 4; ++b) EXPECT_EQ(sums[static_cast<size_t>(b)], 95 * 96 / 2 + 96 * b);
  });
}

TEST(Emulator, ShufflesVotesAndReductions) {
  ForEachMode([] {
    std::vector<std::string> wrong;
    RunBody(1, 64, 0, [&] {
      const int lane = simt::Lane(), base = 32 * simt::Warp();
      const int up = simt::ShuffleUp(simt::kFullMask, base + lane, 3);
      const int down = simt::ShuffleDown(simt::kFullMask, base + lane, 5);
      const int turned = simt::ShuffleXor(simt::kFullMask, base + lane, 9);
      const double wide = simt::ShuffleIndex(simt::kFullMask, 0.5 + lane, 7);
      const uint32_t odd = simt::Ballot(simt::kFullMask, lane % 2 == 1);
      const uint32_t mates = simt::MatchAny(simt::kFullMask, static_cast<uint32_t>(lane % 3));
      const uint32_t sum = simt::ReduceAdd(simt::kFullMask, static_cast<uint32_t>(lane));
      const uint32_t least = simt::ReduceMin(simt::kFullMask, static_cast<uint32_t>(lane + 4));
      const uint32_t most = simt::ReduceMax(simt::kFullMask, static_cast<uint32_t>(lane + 4));
      const bool any = simt::Any(simt::kFullMask, lane == 31), all = simt::All(simt::kFullMask, lane < 31);
      const int scan = simt::WarpInclusiveSum(lane);
      const float total = simt::WarpSum(static_cast<float>(lane)), max = simt::WarpMax(lane == 3 ? NAN : -1.0f * lane);
      int half = -1;
      if (lane >= 16) half = simt::ShuffleIndex(0xffff0000u, lane, 20);
      uint32_t expected_mates = 0;
      for (int l = lane % 3; l < 32; l += 3) expected_mates |= 1u << l;
      const bool ok = up == base + (lane >= 3 ? lane - 3 : lane) && down == base + (lane < 27 ? lane + 5 : lane) &&
                      turned == base + (lane ^ 9) && wide == 7.5 && odd == 0xaaaaaaaau && mates == expected_mates &&
                      sum == 31 * 16 && least == 4 && most == 35 && any && !all && scan == lane * (lane + 1) / 2 &&
                      total == 31 * 16 && max == 0 && half == (lane >= 16 ? 20 : -1);
      if (!ok) simt::Shared<char>();  // no shared memory: an error
    });
  });
}

TEST(Emulator, AtomicsAndNamedBarriers) {
  ForEachMode([] {
    int count = 0, most = 0;
    float sum = 0;
    std::vector<int> got(32, 0);
    RunBody(2, 128, 32 * sizeof(int), [&] {
      simt::AtomicAdd(&count, 1);
      simt::AtomicAdd(&sum, 0.5f);
      simt::AtomicMax(&most, simt::ThreadIndex());
      auto* values = reinterpret_cast<int*>(simt::SharedBytes());
      // Warp 0 produces, warp 2 consumes; warps 1 and 3 go their way.
      if (simt::Warp() == 0) {
        values[simt::Lane()] = simt::Lane() * 3;
        simt::NamedBarrierArrive(4, 64);
      } else if (simt::Warp() == 2) {
        simt::NamedBarrierSync(4, 64);
        got[static_cast<size_t>(simt::Lane())] = values[31 - simt::Lane()];
      }
    });
    EXPECT_EQ(count, 256);
    EXPECT_EQ(sum, 128.0f);
    EXPECT_EQ(most, 127);
    for (int i = 0; i < 32; ++i) EXPECT_EQ(got[static_cast<size_t>(i)], (31 - i) * 3);
  });
}

TEST(Emulator, AThreadThatMissesABarrierIsReported) {
  for (const bool os : {false, true}) {
    int line = 0;
    const std::string stays = ErrorOf(64, 0, [&] {
      line = __LINE__ + 1;
      if (simt::ThreadIndex() != 37) simt::SyncThreads();
    }, os);
    EXPECT_MENTIONS(stays, HereAt(line));
    EXPECT_MENTIONS(stays, "SyncThreads");
    const std::string waits = ErrorOf(64, 0, [&] {
      if (simt::ThreadIndex() < 32) {
        simt::NamedBarrierSync(3, 64);
      } else {
        simt::NamedBarrierSync(5, 64);
      }
    }, os);
    EXPECT_MENTIONS(waits, "threads 0-31 wait for barrier 3");
    EXPECT_MENTIONS(waits, "threads 32-63 wait for barrier 5");
    const std::string two = ErrorOf(64, 0, [&] {
      if (simt::ThreadIndex() < 32) {
        simt::SyncThreads();
      } else {
        simt::SyncThreads();
      }
    }, os);
    EXPECT_MENTIONS(two, "different barriers meet");
    const std::string sizes = ErrorOf(64, 0, [&] { simt::NamedBarrierSync(3, simt::ThreadIndex() < 32 ? 64 : 32); }, os);
    EXPECT_MENTIONS(sizes, "barrier 3");
  }
}

TEST(Emulator, DivergentWarpOperationsAreReported) {
  for (const bool os : {false, true}) {
    int line = 0;
    const std::string left = ErrorOf(32, 0, [&] {
      if (simt::Lane() == 5) return;
      line = __LINE__ + 1;
      simt::ShuffleXor(simt::kFullMask, 1, 1);
    }, os);
    EXPECT_MENTIONS(left, HereAt(line));
    const std::string two = ErrorOf(32, 0, [&] {
      if (simt::Lane() < 16) {
        simt::ShuffleXor(simt::kFullMask, 1, 1);
      } else {
        simt::ShuffleXor(simt::kFullMask, 1, 1);
      }
    }, os);
    EXPECT_MENTIONS(two, "divergent warp");
    const std::string masks = ErrorOf(32, 0, [&] { simt::Ballot(simt::Lane() < 16 ? 0xffffu : simt::kFullMask, true); }, os);
    EXPECT_MENTIONS(masks, "Ballot");
    EXPECT_MENTIONS(ErrorOf(32, 0, [&] { simt::Ballot(2, true); }, os), "isn't in its own mask");
    const std::string outside = ErrorOf(32, 0, [&] {
      if (simt::Lane() < 16) simt::ShuffleIndex(0xffffu, 1, 20);
    }, os);
    EXPECT_MENTIONS(outside, "outside its mask");
  }
}

TEST(Emulator, MisalignedAndForeignAddressesAreReported) {
  alignas(16) float data[8] = {};
  int line = 0;
  const std::string misaligned = ErrorOf(32, 0, [&] {
    line = __LINE__ + 1;
    if (simt::Lane() == 9) simt::Load<simt::U32x4>(data + 1);
  });
  EXPECT_MENTIONS(misaligned, "thread 9 at");
  EXPECT_MENTIONS(misaligned, HereAt(line));
  EXPECT_MENTIONS(ErrorOf(32, 64, [&] { simt::CpAsync<16>(data, data); }), "outside the block's 64 bytes");
  EXPECT_MENTIONS(ErrorOf(32, 64, [&] { simt::CpAsync<16>(simt::SharedBytes(), simt::SharedBytes() + 16); }),
                  "reads shared memory");
  EXPECT_MENTIONS(ErrorOf(32, 64, [&] { simt::CpAsync<8>(simt::SharedBytes() + 4, data); }), "misaligned");
  EXPECT_MENTIONS(ErrorOf(32, 64, [&] { simt::Shared<double[9]>(); }), "outside the block's 64 bytes");
  uint32_t r[1];
  EXPECT_MENTIONS(ErrorOf(32, 64, [&] { simt::LdMatrix<1>(r, data); }), "outside the block's 64 bytes");
}

TEST(Emulator, LaunchesThatNoGpuTakesAreRefused) {
  EXPECT_MENTIONS(ErrorOf(48, 0, [] {}), "multiple of 32");
  EXPECT_MENTIONS(ErrorOf(2048, 0, [] {}), "at most 1024");
  EXPECT_MENTIONS(ErrorOf(32, 228 * 1024, [] {}), "shared memory");
}

TEST(Emulator, AsyncCopiesArriveAtTheWaitAndNotBefore) {
  ForEachMode([] {
    std::vector<float> in(64), before(32), after(32), zeros(32), last(32);
    for (size_t i = 0; i < 64; ++i) in[i] = static_cast<float>(i);
    RunBody(1, 32, 96 * sizeof(float), [&] {
      const auto lane = static_cast<size_t>(simt::Lane());
      auto* s = reinterpret_cast<float*>(simt::SharedBytes());
      s[lane] = -5;
      simt::CpAsync<4>(s + lane, &in[lane]);
      simt::CpAsyncCommit();
      simt::CpAsync<4>(s + 32 + lane, &in[32 + lane]);
      simt::CpAsyncOrZero<4>(s + 64 + lane, &in[lane], lane % 2 == 0);
      simt::CpAsyncCommit();
      before[lane] = s[lane];
      simt::CpAsyncWait<1>();
      after[lane] = s[lane];
      last[lane] = s[32 + lane];
      simt::CpAsyncWait<0>();
      zeros[lane] = s[64 + lane];
      if (s[32 + lane] != 32.0f + static_cast<float>(lane)) zeros[lane] = -1;
    });
    for (size_t i = 0; i < 32; ++i) {
      EXPECT_TRUE(std::isnan(before[i])) << i;
      EXPECT_EQ(after[i], in[i]);
      EXPECT_TRUE(std::isnan(last[i])) << i;
      EXPECT_EQ(zeros[i], i % 2 == 0 ? in[i] : 0);
    }
  });
  alignas(16) float data[4] = {};
  EXPECT_MENTIONS(ErrorOf(32, 512, [&] {
                    simt::CpAsync<16>(simt::SharedBytes() + 16 * simt::Lane(), data);
                    simt::CpAsyncCommit();
                  }),
                  "asynchronous copies not waited for");
}

// Products of matrices laid out by hand, element by element, against a plain triple loop.
template <typename T>
void CheckMma() {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  float a[16][16], b[16][8], c[16][8];
  for (auto& row : a) for (float& x : row) x = ToFloat(FromFloat<T>(normal(random)));
  for (auto& row : b) for (float& x : row) x = ToFloat(FromFloat<T>(normal(random)));
  for (auto& row : c) for (float& x : row) x = normal(random);
  float got[16][8];
  RunBody(1, 32, 0, [&] {
    const int g = simt::Lane() / 4, t = simt::Lane() % 4;
    const uint32_t fa[4] = {simt::PackPair<T>(a[g][2 * t], a[g][2 * t + 1]), simt::PackPair<T>(a[g + 8][2 * t], a[g + 8][2 * t + 1]),
                            simt::PackPair<T>(a[g][2 * t + 8], a[g][2 * t + 9]),
                            simt::PackPair<T>(a[g + 8][2 * t + 8], a[g + 8][2 * t + 9])};
    const uint32_t fb[2] = {simt::PackPair<T>(b[2 * t][g], b[2 * t + 1][g]), simt::PackPair<T>(b[2 * t + 8][g], b[2 * t + 9][g])};
    float d[4] = {c[g][2 * t], c[g][2 * t + 1], c[g + 8][2 * t], c[g + 8][2 * t + 1]};
    simt::MmaM16N8K16<T>(d, fa, fb);
    got[g][2 * t] = d[0];
    got[g][2 * t + 1] = d[1];
    got[g + 8][2 * t] = d[2];
    got[g + 8][2 * t + 1] = d[3];
  });
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      double sum = c[i][j];
      for (int k = 0; k < 16; ++k) sum += double{a[i][k]} * b[k][j];
      EXPECT_NEAR(got[i][j], sum, 1e-6) << i << ", " << j;
    }
  }
}
TEST(Emulator, MmaFollowsTheDocumentedFragments) {
  CheckMma<BF16>();
  CheckMma<F16>();
}

TEST(Emulator, MatrixLoadsFollowTheDocumentedFragments) {
  ForEachMode([] {
    std::vector<uint32_t> plain(4 * 32), turned(4 * 32), two(2 * 32);
    RunBody(1, 32, 4 * 8 * 8 * 2, [&] {
      auto* s = reinterpret_cast<uint16_t*>(simt::SharedBytes());
      for (int i = simt::Lane(); i < 256; i += 32) s[i] = static_cast<uint16_t>(i);  // matrix · 64 + row · 8 + column
      simt::SyncWarp();
      const auto lane = static_cast<size_t>(simt::Lane());
      uint32_t r4[4], t4[4], r2[2];
      simt::LdMatrix<4>(r4, s + 8 * lane);
      simt::LdMatrixTranspose<4>(t4, s + 8 * lane);
      simt::LdMatrix<2>(r2, lane < 16 ? s + 8 * (15 - lane) : nullptr);
      for (size_t j = 0; j < 4; ++j) plain[j * 32 + lane] = r4[j], turned[j * 32 + lane] = t4[j];
      for (size_t j = 0; j < 2; ++j) two[j * 32 + lane] = r2[j];
    });
    for (uint32_t l = 0; l < 32; ++l) {
      const uint32_t g = l / 4, t = l % 4;
      for (uint32_t j = 0; j < 4; ++j) {
        EXPECT_EQ(plain[j * 32 + l], (64 * j + 8 * g + 2 * t) | (64 * j + 8 * g + 2 * t + 1) << 16);
        EXPECT_EQ(turned[j * 32 + l], (64 * j + 16 * t + g) | (64 * j + 16 * t + 8 + g) << 16);
        if (j < 2) {
          EXPECT_EQ(two[j * 32 + l] & 0xffff, 8 * (15 - (8 * j + g)) + 2 * t);
        }
      }
    }
  });
}

TEST(Emulator, TheSeedShufflesThreadsAndBlocks) {
  std::set<std::vector<int>> orders;
  for (const uint64_t seed : {1, 2, 3, 4}) {
    Options options;
    options.seed = seed;
    const ScopedOptions scoped(options);
    std::vector<int> order, again;
    RunBody(4, 32, 0, [&] { order.push_back(32 * simt::BlockX() + simt::ThreadIndex()); });
    RunBody(4, 32, 0, [&] { again.push_back(32 * simt::BlockX() + simt::ThreadIndex()); });
    EXPECT_EQ(order, again);
    orders.insert(order);
  }
  EXPECT_EQ(orders.size(), 4u);
}

// A sum over neighbours whose barrier is missing: right in some orders only. That is what the shuffled order is for.
TEST(Emulator, AMissingBarrierShowsInSomeOrder) {
  int wrong = 0;
  for (uint64_t seed = 0; seed < 8; ++seed) {
    Options options;
    options.seed = seed;
    const ScopedOptions scoped(options);
    bool bad = false;
    RunBody(1, 64, 64 * sizeof(int), [&] {
      auto* s = reinterpret_cast<int*>(simt::SharedBytes());
      s[simt::ThreadIndex()] = simt::ThreadIndex();
      const int next = (simt::ThreadIndex() + 1) % 64;
      if (s[next] != next) bad = true;
    });
    wrong += bad;
  }
  EXPECT_GT(wrong, 0);
}

TEST(Emulator, AKernelThatFailedLeavesTheEmulatorUsable) {
  for (int i = 0; i < 3; ++i) {
    EXPECT_NE(ErrorOf(256, 0, [&] {
                if (simt::ThreadIndex() == 200) return;
                simt::SyncThreads();
              }),
              "");
    int count = 0;
    RunBody(1, 256, 0, [&] {
      simt::SyncThreads();
      simt::AtomicAdd(&count, 1);
    });
    EXPECT_EQ(count, 256);
  }
}

#if defined(__SANITIZE_ADDRESS__)
TEST(EmulatorDeathTest, AccessesOutOfBoundsAreFoundInSharedAndGlobalMemory) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const std::vector<int> global(64);
  volatile int sink = 0;
  for (const bool os : {false, true}) {
    const auto shared_body = [&] { sink = reinterpret_cast<int*>(simt::SharedBytes())[simt::ThreadIndex() + 1]; };
    EXPECT_DEATH(ErrorOf(64, 64 * sizeof(int), shared_body, os), "heap-buffer-overflow");
    EXPECT_DEATH(ErrorOf(64, 64 * sizeof(int), shared_body, os), "in body, block .0, 0, 0.: thread 63");
    EXPECT_DEATH(ErrorOf(64, 0, [&] { sink = global[static_cast<size_t>(simt::ThreadIndex() + 1)]; }, os),
                 "heap-buffer-overflow");
  }
}
#endif

}  // namespace
}  // namespace quire

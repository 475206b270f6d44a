// Maps of slots on the GPU under the emulator: which slots rows take and what they leave, bit for bit as the policies have it on
// the CPU.
#include "kernels/cuda/slot_map.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <set>

#include "tests/kernels/cuda/emulator/options.h"
#include "tests/kernels/selecting.h"

namespace quire {
namespace {

constexpr int kHeads = 3;

struct Case {
  const char* policy;
  cuda::SlotRule rule;
  int64_t budget;
  int sinks, recent;
};
class CudaSlotMap : public ::testing::TestWithParam<Case> {
 protected:
  std::unique_ptr<AttentionPolicy> policy_ = testing::Make(
      std::string(GetParam().policy) + ":evict=true:token_budget=" + std::to_string(GetParam().budget) +
          ":sink_tokens=" + std::to_string(GetParam().sinks) + ":recent_tokens=" + std::to_string(GetParam().recent),
      16);
};
INSTANTIATE_TEST_SUITE_P(All, CudaSlotMap,
                         ::testing::Values(Case{"h2o", cuda::SlotRule::kSum, 40, 4, 20}, Case{"tova", cuda::SlotRule::kLast, 33, 4, 0},
                                           Case{"h2o", cuda::SlotRule::kSum, 700, 0, 350},  // more slots than a block has threads
                                           Case{"tova", cuda::SlotRule::kLast, 515, 2, 7}, Case{"tova", cuda::SlotRule::kLast, 1, 0, 0}),
                         [](const auto& info) { return std::string(info.param.policy) + std::to_string(info.param.budget); });

// Maps of several sequences, side by side in one array with spare numbers between, which nobody may touch.
struct Maps {
  Maps(int sequences, int64_t capacity) : stride(kHeads * capacity + 5) {
    positions.assign(static_cast<size_t>(sequences * stride), -77);
    weights.assign(positions.size(), -77.0f);
    for (int i = 0; i < sequences; ++i) {
      views.push_back({positions.data() + i * stride, weights.data() + i * stride, kHeads, capacity});
      for (int head = 0; head < kHeads; ++head) {
        std::iota(views.back().Positions(head), views.back().Positions(head) + capacity, 0);
        std::fill_n(views.back().Weights(head), capacity, 0.0f);
      }
    }
  }
  bool operator==(const Maps& o) const { return positions == o.positions && testing::SameBits(weights, o.weights); }
  int64_t stride;
  std::vector<int32_t> positions;
  std::vector<float> weights;
  std::vector<SlotMap> views;
};

// A prompt's rows in two lots, then steps of three sequences far past the budget. Masses are few numbers, so that many tie, or
// many, so that any slot may be the lightest; some of them NaN.
TEST_P(CudaSlotMap, SlotsPositionsAndWeightsAreThoseOfTheCpu) {
  constexpr int kSequences = 3;
  const int64_t capacity = GetParam().budget;
  const int steps = static_cast<int>(std::min<int64_t>(2 * capacity + 9, 90));
  const Context ctx = testing::TwoThreads();
  Maps cpu(kSequences, capacity), gpu(kSequences, capacity);
  std::mt19937_64 random(7);
  const auto masses = [&](int64_t n) {
    std::vector<float> values(static_cast<size_t>(n));
    const uint64_t levels = capacity < 100 ? 6 : 1000;
    for (float& x : values) x = random() % 301 == 0 ? std::nanf("") : static_cast<float>(random() % levels) * 0.125f;
    return values;
  };
  for (int seq = 0; seq < kSequences; ++seq) {
    for (int64_t begin = 0; begin < capacity; begin += (capacity + 1) / 2) {
      const int rows = static_cast<int>(std::min((capacity + 1) / 2, capacity - begin));
      std::vector<int32_t> len(static_cast<size_t>(rows));
      std::iota(len.begin(), len.end(), static_cast<int32_t>(begin) + 1);
      const std::vector<float> mass = masses(rows * kHeads * len.back());
      RememberSlotsParams p{mass.data(), len.back(), rows, kHeads, len.data(), &cpu.views[static_cast<size_t>(seq)], true};
      policy_->RememberSlotRows(ctx, p);
      p.maps = &gpu.views[static_cast<size_t>(seq)];
      ASSERT_TRUE(cuda::RememberSlots(Stream{}, GetParam().rule, p).ok());
      ASSERT_TRUE(gpu == cpu) << "prompt " << seq << " from " << begin;
    }
  }
  std::set<int32_t> took;
  for (int step = 0; step < steps; ++step) {
    emulator::Options options;
    options.seed = static_cast<uint64_t>(step);
    const emulator::ScopedOptions scoped(options);
    std::vector<int32_t> pos;
    for (int seq = 0; seq < kSequences; ++seq) pos.push_back(static_cast<int32_t>(capacity) + step + 100 * seq * (step > 5));
    std::vector<int32_t> want(kHeads * kSequences, -5), got(want);
    EvictParams e{kSequences, kHeads, pos.data(), cpu.views.data(), want.data()};
    policy_->EvictRows(ctx, e);
    e.maps = gpu.views.data();
    e.taken = got.data();
    ASSERT_TRUE(cuda::EvictSlots(Stream{}, GetParam().sinks, GetParam().recent, e).ok());
    ASSERT_EQ(got, want) << "step " << step;
    ASSERT_TRUE(gpu == cpu) << "step " << step;
    took.insert(got.begin(), got.end());

    const std::vector<int32_t> len(kSequences, static_cast<int32_t>(capacity));
    const std::vector<float> mass = masses(kSequences * kHeads * (capacity + 3));
    RememberSlotsParams p{mass.data(), capacity + 3, kSequences, kHeads, len.data(), cpu.views.data()};
    policy_->RememberSlotRows(ctx, p);
    p.maps = gpu.views.data();
    ASSERT_TRUE(cuda::RememberSlots(Stream{}, GetParam().rule, p).ok());
    ASSERT_TRUE(gpu == cpu) << "step " << step;
  }
  EXPECT_GE(took.size(), std::min<size_t>(static_cast<size_t>(capacity), 12)) << "too few slots to tell anything";
  const bool by_every_warp = GetParam().rule == cuda::SlotRule::kLast && capacity > 256;
  const auto last_warps = [](int32_t slot) { return slot % 256 >= 224; };
  EXPECT_TRUE(!by_every_warp || std::any_of(took.begin(), took.end(), last_warps));
}

// As tests/kernels/evicting_test.cc has it of the CPU: sinks and recent ones stay, of equal ones the earlier leaves, a NaN last.
TEST(CudaEvictSlots, TakesTheLightestOfThoseThatMayLeave) {
  const float nan = std::nanf(""), inf = std::numeric_limits<float>::infinity();
  struct Row {
    std::vector<float> weights;
    std::vector<int32_t> positions;
    int32_t position, want;
  };
  for (const Row& row : std::vector<Row>{
           {{0, 0, .5f, .2f, .3f, .2f, 0, 0}, {0, 1, 2, 3, 4, 5, 6, 7}, 8, 3},
           {{0, 0, .5f, 0, .3f, .2f, 0, 0}, {0, 1, 2, 8, 4, 5, 6, 7}, 9, 6},
           {{0, 0, .5f, .1f, .3f, .1f, .4f, .1f}, {0, 1, 2, 8, 4, 9, 6, 7}, 12, 7},
           {{0, 0, nan, 5, 7, nan, 9, 9}, {0, 1, 2, 3, 4, 5, 6, 7}, 8, 3},
           {{0, 0, nan, nan, nan, inf, 0, 0}, {0, 1, 5, 4, 3, 2, 6, 7}, 8, 5},
           {{0, 0, nan, nan, nan, inf, 0, 0}, {0, 1, 5, 4, 2, 3, 6, 7}, 8, 4},
           {{-0.0f, 0, 1, 0, -0.0f, 1, 0, 0}, {0, 1, 2, 3, 4, 5, 6, 7}, 8, 3}}) {
    std::vector<float> weights = row.weights;
    std::vector<int32_t> positions = row.positions;
    const std::vector<SlotMap> maps{{positions.data(), weights.data(), 1, 8}};
    const std::vector<int32_t> position{row.position};
    std::vector<int32_t> taken{-1};
    ASSERT_TRUE(cuda::EvictSlots(Stream{}, 2, 2, {1, 1, position.data(), maps.data(), taken.data()}).ok());
    EXPECT_EQ(taken[0], row.want);
    EXPECT_EQ(positions[static_cast<size_t>(row.want)], row.position);
    EXPECT_EQ(weights[static_cast<size_t>(row.want)], 0.0f);
  }
}

}  // namespace
}  // namespace quire

// MeasureMachine gives rates that can be true of a machine. Figures themselves are never asserted.
#include "kernels/machine.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

namespace quire {
namespace {

TEST(Machine, GivesEveryRateAndItsName) {
  ThreadPool pool(2);
  Context ctx;
  ctx.pool = &pool;
  const MachineRates rates = MeasureMachine(ctx, 0.05, size_t{8} << 20);
  for (double rate : {rates.read_gb_s, rates.copy_gb_s, rates.matmul_gflop_s}) {
    EXPECT_TRUE(std::isfinite(rate));
    EXPECT_GT(rate, 0.01);
  }
  ASSERT_NE(rates.matmul_name, nullptr);
  EXPECT_GT(std::strlen(rates.matmul_name), 0u);
}

}  // namespace
}  // namespace quire

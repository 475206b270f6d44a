// Rotary embedding through its table, against angles in double.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/elementwise.h"
#include "kernels/reference/elementwise.h"
#include "tests/kernels/dense_inputs.h"

namespace quire {
namespace {

std::vector<float> InverseFrequencies(int half, double base) {
  std::vector<float> f(static_cast<size_t>(half));
  for (int i = 0; i < half; ++i) f[i] = static_cast<float>(std::pow(base, -2.0 * i / (2.0 * half)));
  return f;
}

struct RopeCase {
  int heads, head_dim, rotary_dim;
  bool interleaved;
  float magnitude;
};

TEST(Rope, EqualsReference) {
  ThreadPool pool(2);
  Context ctx;
  ctx.pool = &pool;
  const std::vector<int32_t> positions = {0, 1, 17, 4099, 131071, 1000000};
  const int64_t rows = static_cast<int64_t>(positions.size());
  for (const RopeCase c : {RopeCase{9, 64, 64, false, 1.0f}, RopeCase{3, 80, 20, false, 1.0f}, RopeCase{2, 128, 128, true, 1.2f},
                           RopeCase{1, 6, 6, true, 1.0f}, RopeCase{4, 96, 32, true, 1.0f}, RopeCase{2, 10, 2, false, 0.5f}}) {
    const int half = c.rotary_dim / 2;
    const std::vector<float> inv_freq = InverseFrequencies(half, 10000.0);
    const int64_t stride = c.heads * c.head_dim + 3;
    const std::vector<float> x = RandomFloats(static_cast<size_t>(rows * stride), 1);
    std::vector<float> got = x, want = x;
    std::vector<float> table(static_cast<size_t>(rows * 2 * half));
    RopeTable(ctx, positions.data(), rows, inv_freq.data(), half, c.magnitude, table.data());
    RopeParams p{got.data(), stride, rows, c.heads, c.head_dim, c.rotary_dim, c.interleaved, c.magnitude, positions.data(),
                 table.data()};
    Rope(ctx, p);
    p.x = want.data();
    reference::Rope(p, inv_freq.data());
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < stride; ++i) {
        const int64_t at = r * stride + i;
        // Two rounded products of a pair: a few eps of the pair's length; normal values stay below 6.
        ASSERT_NEAR(got[at], want[at], 6 * 4 * 6e-8 * c.magnitude) << "head_dim " << c.head_dim << " row " << r << " at " << i;
        const bool rotated = i < c.heads * c.head_dim && i % c.head_dim < c.rotary_dim;
        if (!rotated) {
          ASSERT_EQ(got[at], x[at]);
        }
      }
    }
  }
}

TEST(Rope, PositionZeroChangesNothingAndLengthsStay) {
  ThreadPool pool(1);
  Context ctx;
  ctx.pool = &pool;
  const std::vector<float> inv_freq = InverseFrequencies(32, 10000.0);
  const int32_t positions[2] = {0, 12345};
  std::vector<float> table(2 * 64);
  RopeTable(ctx, positions, 2, inv_freq.data(), 32, 1.0f, table.data());
  const std::vector<float> x = RandomFloats(2 * 64, 1);
  std::vector<float> y = x;
  RopeParams p;
  p.x = y.data();
  p.x_stride = 64;
  p.rows = 2;
  p.heads = 1;
  p.head_dim = p.rotary_dim = 64;
  p.cos_sin = table.data();
  Rope(ctx, p);
  EXPECT_TRUE(SameBits(x.data(), y.data(), 64));
  double before = 0, after = 0;
  for (int i = 64; i < 128; ++i) {
    before += double{x[i]} * x[i];
    after += double{y[i]} * y[i];
  }
  EXPECT_NEAR(after / before, 1.0, 1e-6);
  EXPECT_FALSE(SameBits(x.data() + 64, y.data() + 64, 64));
}

}  // namespace
}  // namespace quire

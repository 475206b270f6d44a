// Norms, silu·mul, add and embedding against the reference over odd widths, and row independence.
#include "kernels/elementwise.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/reference/elementwise.h"
#include "tests/kernels/dense_inputs.h"

namespace quire {
namespace {

constexpr float kEps = std::numeric_limits<float>::epsilon() / 2;
constexpr int64_t kWidths[] = {1, 7, 15, 16, 17, 63, 127, 576, 1536, 2816};

class Elementwise : public testing::Test {
 protected:
  Elementwise() : pool_(2) { ctx_.pool = &pool_; }
  ThreadPool pool_;
  Context ctx_;
};

void ExpectRelative(const std::vector<float>& got, const std::vector<float>& want, double bound, int64_t width) {
  for (size_t i = 0; i < want.size(); ++i) {
    ASSERT_LE(std::abs(got[i] - want[i]), bound * std::abs(want[i]) + 1e-37) << "width " << width << " at " << i;
  }
}

TEST_F(Elementwise, RmsNormEqualsReference) {
  for (int64_t width : kWidths) {
    for (int64_t rows : {1, 3, 40}) {
      const std::vector<float> x = RandomFloats(static_cast<size_t>(rows * width), 1), w = RandomFloats(width, 2);
      std::vector<float> got(x.size()), want(x.size());
      RmsNorm(ctx_, x.data(), w.data(), 1e-5f, rows, width, got.data());
      reference::RmsNorm(x.data(), w.data(), 1e-5f, rows, width, want.data());
      // A sum of squares has no cancellation: half its error, and four roundings after it.
      ExpectRelative(got, want, kEps * (6 + std::sqrt(static_cast<double>(width))), width);
      std::vector<float> in_place = x;
      RmsNorm(ctx_, in_place.data(), w.data(), 1e-5f, rows, width, in_place.data());
      EXPECT_TRUE(SameBits(in_place.data(), got.data(), got.size()));
    }
  }
}

TEST_F(Elementwise, RmsNormOfZerosIsZero) {
  const std::vector<float> x(17, 0.0f), w(17, 1.0f);
  std::vector<float> out(17, 5.0f);
  RmsNorm(ctx_, x.data(), w.data(), 1e-6f, 1, 17, out.data());
  for (float v : out) EXPECT_EQ(v, 0.0f);
}

TEST_F(Elementwise, AddRmsNormIsAddThenNorm) {
  for (int64_t width : kWidths) {
    const int64_t rows = 5;
    const std::vector<float> x = RandomFloats(static_cast<size_t>(rows * width), 1), w = RandomFloats(width, 2);
    std::vector<float> residual = RandomFloats(x.size(), 3), added = residual;
    std::vector<float> got(x.size()), want(x.size());
    AddRmsNorm(ctx_, x.data(), residual.data(), w.data(), 1e-6f, rows, width, got.data());
    Add(ctx_, x.data(), rows, width, added.data());
    RmsNorm(ctx_, added.data(), w.data(), 1e-6f, rows, width, want.data());
    EXPECT_TRUE(SameBits(residual.data(), added.data(), added.size())) << width;
    EXPECT_TRUE(SameBits(got.data(), want.data(), want.size())) << width;
  }
}

TEST_F(Elementwise, AddIsExact) {
  const std::vector<float> x = RandomFloats(3 * 127, 1), before = RandomFloats(3 * 127, 2);
  std::vector<float> y = before;
  Add(ctx_, x.data(), 3, 127, y.data());
  for (size_t i = 0; i < y.size(); ++i) EXPECT_EQ(y[i], before[i] + x[i]);
}

TEST_F(Elementwise, HeadRmsNormEqualsReferenceAndLeavesTheRest) {
  for (int head_dim : {1, 7, 64, 80, 128}) {
    const int heads = 3;
    const int64_t rows = 9, stride = heads * head_dim + 5;
    const std::vector<float> w = RandomFloats(head_dim, 2);
    std::vector<float> got = RandomFloats(static_cast<size_t>(rows * stride), 1), want = got;
    HeadRmsNorm(ctx_, got.data(), stride, w.data(), 1e-6f, rows, heads, head_dim);
    reference::HeadRmsNorm(want.data(), stride, w.data(), 1e-6f, rows, heads, head_dim);
    ExpectRelative(got, want, kEps * (6 + std::sqrt(static_cast<double>(head_dim))), head_dim);
    for (int64_t r = 0; r < rows; ++r) {
      for (int i = 0; i < 5; ++i) EXPECT_EQ(got[r * stride + heads * head_dim + i], want[r * stride + heads * head_dim + i]);
    }
  }
}

TEST_F(Elementwise, SiluMulEqualsReference) {
  for (int64_t width : kWidths) {
    for (int64_t rows : {1, 4, 33}) {
      const std::vector<float> x = RandomFloats(static_cast<size_t>(rows * 2 * width), 1, 6.0f);
      std::vector<float> got(static_cast<size_t>(rows * width)), want = got;
      SiluMul(ctx_, x.data(), rows, width, got.data());
      reference::SiluMul(x.data(), rows, width, want.data());
      ExpectRelative(got, want, 8 * kEps, width);  // exp within 2 ulp, then three roundings
    }
  }
}

TEST_F(Elementwise, SiluMulAtTheEndsOfTheRange) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> gates = {-1e30f, -200, -90, -88, -87, -1e-8f, 0, 1e-8f, 50, 88, 200, 1e30f, inf, nan};
  std::vector<float> x = gates;
  x.resize(2 * gates.size(), 1.0f);
  std::vector<float> out(gates.size());
  SiluMul(ctx_, x.data(), 1, static_cast<int64_t>(gates.size()), out.data());
  for (size_t i = 0; i + 2 < gates.size(); ++i) {
    const double g = gates[i];
    const double want = g < -700 ? 0.0 : g / (1 + std::exp(-g));
    // Below −88 the true value is under 1e-36; what is given may be as coarse, but not larger than g / 2e38.
    EXPECT_NEAR(out[i], want, g < -87 ? std::abs(g) * 1e-38 : std::abs(want) * 1e-6) << g;
  }
  EXPECT_EQ(out[gates.size() - 2], inf);
  EXPECT_TRUE(std::isnan(out.back()));
}

// Against x · up, of which gelu leaves a part: its left tail is a difference in the definition, too.
TEST_F(Elementwise, GeluTanhMulEqualsReferenceAlsoAtTheEndsOfTheRange) {
  const float inf = std::numeric_limits<float>::infinity();
  for (int64_t width : kWidths) {
    for (int64_t rows : {1, 4, 33}) {
      std::vector<float> x = RandomFloats(static_cast<size_t>(rows * 2 * width), 1, 3.0f);
      const float ends[] = {-1e30f, -20, -1e-8f, 0, 1e-8f, 20, 1e30f};
      for (int64_t i = 0; i < std::min<int64_t>(7, width); ++i) x[static_cast<size_t>(i)] = ends[i];
      std::vector<float> got(static_cast<size_t>(rows * width)), want = got;
      GeluTanhMul(ctx_, x.data(), rows, width, got.data());
      reference::GeluTanhMul(x.data(), rows, width, want.data());
      for (int64_t i = 0; i < rows * width; ++i) {
        const float gate = x[static_cast<size_t>(i / width * 2 * width + i % width)];
        const float up = x[static_cast<size_t>(i / width * 2 * width + width + i % width)];
        ASSERT_NEAR(got[static_cast<size_t>(i)], want[static_cast<size_t>(i)], 5e-7 * std::abs(gate * up)) << gate;
      }
    }
  }
  std::vector<float> ends{inf, -inf, 1.0f, 1.0f}, out(2);
  GeluTanhMul(ctx_, ends.data(), 1, 2, out.data());
  EXPECT_EQ(out[0], inf);
}

TEST_F(Elementwise, ScaleAndSoftCapAreWhatTheySay) {
  for (int64_t width : kWidths) {
    const std::vector<float> x = RandomFloats(static_cast<size_t>(5 * width), 1, 40.0f);
    std::vector<float> scaled = x, capped = x;
    Scale(ctx_, 1.7f, 5, width, scaled.data());
    SoftCapRows(ctx_, 30.0f, 5, width, capped.data());
    for (size_t i = 0; i < x.size(); ++i) {
      ASSERT_EQ(scaled[i], x[i] * 1.7f);
      ASSERT_NEAR(capped[i], 30.0 * std::tanh(double{x[i]} / 30.0), 1e-6 * std::abs(x[i]));
    }
  }
}

TEST_F(Elementwise, EmbedWidensRowsAndZeroesForeignIds) {
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (int64_t width : {7, 16, 576}) {
      Tensor table = RandomTensor(dtype, 10, width, 1);
      const std::vector<int32_t> ids = {100, 109, 99, 110, 0, 104, 104};
      std::vector<float> out(ids.size() * static_cast<size_t>(width), 9.0f);
      Embed(ctx_, table.view().data, dtype, 100, 10, ids.data(), static_cast<int64_t>(ids.size()), width, out.data());
      for (size_t r = 0; r < ids.size(); ++r) {
        const int64_t id = ids[r] - 100;
        for (int64_t i = 0; i < width; ++i) {
          float want = 0;
          if (id >= 0 && id < 10) {
            VisitFloatDType(dtype, [&](auto t) { want = ToFloat(table.data<decltype(t)>()[id * width + i]); });
          }
          ASSERT_EQ(out[r * static_cast<size_t>(width) + static_cast<size_t>(i)], want) << "id " << ids[r];
        }
      }
    }
  }
}

TEST_F(Elementwise, ARowsBitsDependOnThatRowAlone) {
  const int64_t width = 771, rows = 60;
  const std::vector<float> x = RandomFloats(static_cast<size_t>(rows * 2 * width), 1), w = RandomFloats(width, 2);
  for (int threads : {1, 3}) {
    ThreadPool pool(threads);
    Context ctx;
    ctx.pool = &pool;
    std::vector<float> norm(static_cast<size_t>(rows * width)), silu = norm, one(static_cast<size_t>(width));
    RmsNorm(ctx, x.data(), w.data(), 1e-5f, rows, width, norm.data());
    SiluMul(ctx, x.data(), rows, width, silu.data());
    for (int64_t r = 0; r < rows; ++r) {
      RmsNorm(ctx, x.data() + r * width, w.data(), 1e-5f, 1, width, one.data());
      EXPECT_TRUE(SameBits(one.data(), norm.data() + r * width, one.size()));
      SiluMul(ctx, x.data() + r * 2 * width, 1, width, one.data());
      EXPECT_TRUE(SameBits(one.data(), silu.data() + r * width, one.size()));
    }
  }
}

}  // namespace
}  // namespace quire

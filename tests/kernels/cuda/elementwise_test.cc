// Row-wise operations of the GPU under the emulator, against kernels/reference, in rows of every dtype.
#include "kernels/cuda/elementwise.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/reference/elementwise.h"
#include "tests/kernels/cuda/typed.h"

namespace quire {
namespace {

using testing::kFloatDTypes;
using testing::SeededFloats;
using testing::Typed;

constexpr int64_t kWidths[] = {1, 7, 32, 63, 127, 576, 4096};

TEST(CudaRmsNorm, EqualsReferenceWithAndWithoutResidual) {
  for (const DType dtype : kFloatDTypes) {
    for (const int64_t width : kWidths) {
      const int64_t rows = 3, stride = width + 8;
      const auto n = static_cast<size_t>(rows * width);
      Typed x(dtype, SeededFloats(static_cast<size_t>(rows * stride), 1));
      const std::vector<float> residual = SeededFloats(n, 2), weight = SeededFloats(static_cast<size_t>(width), 3);
      for (const bool with_residual : {false, true}) {
        std::vector<float> sum(n), new_residual = residual;
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t i = 0; i < width; ++i) {
            const auto at = static_cast<size_t>(r * width + i);
            sum[at] = x.At(static_cast<size_t>(r * stride + i)) + (with_residual ? residual[at] : 0.0f);
          }
        }
        std::vector<float> want(n);
        reference::RmsNorm(sum.data(), weight.data(), 1e-5f, rows, width, want.data());
        Typed out(dtype, std::vector<float>(n, -7));
        cuda::RmsNormParams p;
        p.x = x.data();
        p.x_stride = stride;
        p.residual = with_residual ? new_residual.data() : nullptr;
        p.weight = weight.data();
        p.out = out.data();
        p.out_stride = width;
        p.rows = rows;
        p.width = width;
        ASSERT_TRUE(cuda::RmsNorm(Stream{}, dtype, p).ok());
        // The sum's rounding, a few more, and the storage's.
        const double eps = 6e-8 * (8 + std::sqrt(static_cast<double>(width))) + Typed::HalfUlp(dtype);
        for (size_t i = 0; i < n; ++i) {
          ASSERT_NEAR(out.At(i), want[i], eps * std::abs(want[i]) + Typed::Least(dtype)) << DTypeName(dtype) << " width " << width << " at " << i;
        }
        EXPECT_EQ(new_residual, with_residual ? sum : residual);
      }
    }
  }
}

}  // namespace
}  // namespace quire

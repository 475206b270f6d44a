// Row-wise operations of the GPU under the emulator, against kernels/reference, in rows of every dtype.
#include "kernels/cuda/elementwise.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

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
        ASSERT_TRUE(cuda::RmsNorm(Stream{}, dtype, dtype, p).ok());
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

// Widths that allow accesses of 16 bytes and widths that don't, and the same width at an odd address.
TEST(CudaRmsNorm, UnalignedRowsAreReadToo) {
  const int64_t width = 64;
  const std::vector<float> x = SeededFloats(width + 1, 1), weight = SeededFloats(width, 2);
  const auto run = [&](int shift) {
    std::vector<float> in(static_cast<size_t>(width + 8)), out(static_cast<size_t>(width));
    std::copy(x.begin(), x.begin() + width, in.begin() + shift);
    cuda::RmsNormParams p;
    p.x = in.data() + shift;
    p.weight = weight.data();
    p.out = out.data();
    p.out_stride = p.x_stride = p.width = width;
    p.rows = 1;
    EXPECT_TRUE(cuda::RmsNorm(Stream{}, DType::kF32, DType::kF32, p).ok());
    return out;
  };
  const std::vector<float> aligned = run(0), odd = run(1);
  for (size_t i = 0; i < aligned.size(); ++i) EXPECT_NEAR(odd[i], aligned[i], 1e-6 * std::abs(aligned[i]));
}

// Rows of f32 written in 16 bits are those of f32, rounded: bit by bit what Narrow makes of them.
TEST(CudaElementwise, RowsWrittenIn16BitsAreTheRoundedRows) {
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    for (const int64_t width : kWidths) {
      const int64_t rows = 3;
      const auto n = static_cast<size_t>(rows * width);
      const std::vector<float> x = SeededFloats(2 * n, 1, 3.0f), residual = SeededFloats(n, 2);
      const std::vector<float> weight = SeededFloats(static_cast<size_t>(width), 3);
      const auto expect_rounded = [&](const auto& run) {
        std::vector<float> wide(n, -7);
        Typed want(dtype, wide), got(dtype, wide);
        ASSERT_TRUE(run(DType::kF32, static_cast<void*>(wide.data())).ok());
        ASSERT_TRUE(cuda::Narrow(Stream{}, dtype, wide.data(), width, rows, width, want.data()).ok());
        ASSERT_TRUE(run(dtype, got.data()).ok());
        EXPECT_EQ(got.bytes(), want.bytes()) << DTypeName(dtype) << " width " << width;
      };
      for (const bool with_residual : {false, true}) {
        expect_rounded([&](DType out_dtype, void* out) {
          std::vector<float> sum = residual;
          cuda::RmsNormParams p;
          p.x = x.data();
          p.x_stride = p.out_stride = p.width = width;
          p.residual = with_residual ? sum.data() : nullptr;
          p.weight = weight.data();
          p.out = out;
          p.rows = rows;
          return cuda::RmsNorm(Stream{}, DType::kF32, out_dtype, p);
        });
      }
      expect_rounded([&](DType out_dtype, void* out) {
        return cuda::SiluMul(Stream{}, DType::kF32, out_dtype, x.data(), out, rows, width);
      });
      expect_rounded([&](DType out_dtype, void* out) {
        return cuda::GeluTanhMul(Stream{}, DType::kF32, out_dtype, x.data(), out, rows, width);
      });
    }
  }
  float x = 1;
  EXPECT_EQ(cuda::SiluMul(Stream{}, DType::kBF16, DType::kF32, &x, &x, 1, 1).code(), StatusCode::kInternal);
}

TEST(CudaHeadRmsNorm, EqualsReferenceAndLeavesTheRest) {
  for (const DType dtype : kFloatDTypes) {
    for (const int head_dim : {1, 7, 64, 80, 128}) {
      const int heads = 3;
      const int64_t rows = 5, stride = heads * head_dim + 5;
      const std::vector<float> weight = SeededFloats(static_cast<size_t>(head_dim), 2);
      Typed x(dtype, SeededFloats(static_cast<size_t>(rows * stride), 1));
      const Typed before = x;
      std::vector<float> want = x.Floats();
      reference::HeadRmsNorm(want.data(), stride, weight.data(), 1e-6f, rows, heads, head_dim);
      ASSERT_TRUE(cuda::HeadRmsNorm(Stream{}, dtype, {x.data(), stride, weight.data(), 1e-6f, rows, heads, head_dim}).ok());
      const double eps = 6e-8 * (8 + std::sqrt(static_cast<double>(head_dim))) + Typed::HalfUlp(dtype);
      for (int64_t i = 0; i < rows * stride; ++i) {
        const auto at = static_cast<size_t>(i);
        if (i % stride >= heads * head_dim) {
          ASSERT_EQ(x.At(at), before.At(at));
        } else {
          ASSERT_NEAR(x.At(at), want[at], eps * std::abs(want[at]) + Typed::Least(dtype)) << "head_dim " << head_dim << " at " << i;
        }
      }
    }
  }
}

TEST(CudaSiluMul, EqualsReferenceAlsoAtTheEndsOfTheRange) {
  const float inf = std::numeric_limits<float>::infinity();
  for (const DType dtype : kFloatDTypes) {
    for (const int64_t width : kWidths) {
      const int64_t rows = 3;
      std::vector<float> values = SeededFloats(static_cast<size_t>(rows * 2 * width), 1, 6.0f);
      const float ends[] = {-1e4f, -86, -1e-6f, 0, 50, 1e4f, inf};
      for (int64_t i = 0; i < std::min<int64_t>(7, width); ++i) values[static_cast<size_t>(i)] = ends[i];
      const Typed x(dtype, values);
      const std::vector<float> floats = x.Floats();
      std::vector<float> want(static_cast<size_t>(rows * width));
      reference::SiluMul(floats.data(), rows, width, want.data());
      Typed out(dtype, std::vector<float>(want.size(), -7));
      ASSERT_TRUE(cuda::SiluMul(Stream{}, dtype, dtype, x.data(), out.data(), rows, width).ok());
      for (size_t i = 0; i < want.size(); ++i) {
        if (!std::isfinite(want[i]) || std::abs(want[i]) > (dtype == DType::kF16 ? 65000 : 1e38)) {
          ASSERT_EQ(out.At(i), ToFloat(FromFloat<float>(want[i] > 0 ? inf : -inf))) << i;
          continue;
        }
        ASSERT_NEAR(out.At(i), want[i], (8 * 6e-8 + Typed::HalfUlp(dtype)) * std::abs(want[i]) + Typed::Least(dtype))
            << DTypeName(dtype) << " width " << width << " at " << i << " of " << floats[i];
      }
    }
  }
}

TEST(CudaGeluTanhMul, EqualsReference) {
  for (const DType dtype : kFloatDTypes) {
    for (const int64_t width : kWidths) {
      const int64_t rows = 3;
      const Typed x(dtype, SeededFloats(static_cast<size_t>(rows * 2 * width), 1, 3.0f));
      const std::vector<float> floats = x.Floats();
      std::vector<float> want(static_cast<size_t>(rows * width));
      reference::GeluTanhMul(floats.data(), rows, width, want.data());
      Typed out(dtype, std::vector<float>(want.size(), -7));
      ASSERT_TRUE(cuda::GeluTanhMul(Stream{}, dtype, dtype, x.data(), out.data(), rows, width).ok());
      for (size_t i = 0; i < want.size(); ++i) {
        const size_t row = i / static_cast<size_t>(width), column = i % static_cast<size_t>(width);
        const size_t at = row * 2 * static_cast<size_t>(width) + column;
        const double most = std::abs(double{floats[at]} * floats[at + static_cast<size_t>(width)]);
        ASSERT_NEAR(out.At(i), want[i], 5e-7 * most + Typed::HalfUlp(dtype) * std::abs(want[i]) + Typed::Least(dtype));
      }
    }
  }
}

TEST(CudaScaleAndSoftCap, AreWhatTheySay) {
  const std::vector<float> x = SeededFloats(777, 1, 40.0f);
  std::vector<float> scaled = x, capped = x;
  ASSERT_TRUE(cuda::Scale(Stream{}, 1.7f, scaled.data(), 777).ok());
  ASSERT_TRUE(cuda::SoftCapRows(Stream{}, 30.0f, capped.data(), 777).ok());
  for (size_t i = 0; i < x.size(); ++i) {
    ASSERT_EQ(scaled[i], x[i] * 1.7f);
    ASSERT_NEAR(capped[i], 30.0 * std::tanh(double{x[i]} / 30.0), 1e-6 * std::abs(x[i]));
  }
}

TEST(CudaEmbed, WidensRowsAndZeroesForeignIds) {
  for (const DType dtype : kFloatDTypes) {
    for (const int64_t width : {7, 16, 576}) {
      const Typed table(dtype, SeededFloats(static_cast<size_t>(10 * width), 1));
      const std::vector<int32_t> ids{100, 109, 99, 110, -1, 104, 104};
      std::vector<float> out(ids.size() * static_cast<size_t>(width), 9.0f);
      ASSERT_TRUE(cuda::Embed(Stream{}, dtype, {table.data(), 100, 10, ids.data(), static_cast<int64_t>(ids.size()), width, out.data()}).ok());
      for (size_t r = 0; r < ids.size(); ++r) {
        for (size_t i = 0; i < static_cast<size_t>(width); ++i) {
          const int id = ids[r] - 100;
          const float want = id >= 0 && id < 10 ? table.At(static_cast<size_t>(id) * static_cast<size_t>(width) + i) : 0.0f;
          ASSERT_EQ(out[r * static_cast<size_t>(width) + i], want);
        }
      }
    }
  }
}

TEST(CudaAddToResidual, IsExact) {
  for (const DType dtype : kFloatDTypes) {
    for (const int64_t width : {7, 40}) {
      const Typed x(dtype, SeededFloats(static_cast<size_t>(3 * width), 1));
      const std::vector<float> before = SeededFloats(x.size(), 2);
      std::vector<float> residual = before;
      ASSERT_TRUE(cuda::AddToResidual(Stream{}, dtype, x.data(), residual.data(), 3, width).ok());
      for (size_t i = 0; i < before.size(); ++i) ASSERT_EQ(residual[i], before[i] + x.At(i));
    }
  }
}

TEST(CudaRopeTable, AnglesAreThoseOfDoubles) {
  const std::vector<int32_t> positions{0, 1, 17, 131071, 1000000};
  const std::vector<float> inv_freq{1.0f, 0.31622776f, 1e-4f};
  std::vector<float> out(positions.size() * 6);
  ASSERT_TRUE(cuda::RopeTable(Stream{}, {positions.data(), 5, inv_freq.data(), 3, 1.25f, out.data()}).ok());
  for (size_t r = 0; r < positions.size(); ++r) {
    for (size_t i = 0; i < 3; ++i) {
      const double angle = double{inv_freq[i]} * positions[r];
      EXPECT_NEAR(out[r * 6 + i], 1.25 * std::cos(angle), 1e-7);
      EXPECT_NEAR(out[r * 6 + 3 + i], 1.25 * std::sin(angle), 1e-7);
    }
  }
}

TEST(CudaRows, ConfigurationIsOfTheWidthAlone) {
  EXPECT_EQ(cuda::RowConfig::For(4096).ToString(), "512 threads a row");
  EXPECT_EQ(cuda::RowConfig::For(1).threads, 32);
  EXPECT_EQ(cuda::RowConfig::For(576).threads, 96);
  EXPECT_EQ(cuda::RowConfig::For(1 << 20).threads, 1024);
}

TEST(CudaNarrow, RoundsToNearestEvenAtAnyWidthAndStride) {
  for (const DType dtype : kFloatDTypes) {
    for (const int64_t width : {1, 7, 8, 64, 1000}) {
      const int64_t rows = 3, stride = width + (width % 8 == 0 ? 8 : 1);
      const std::vector<float> x = SeededFloats(static_cast<size_t>(rows * stride), 5);
      Typed out(dtype, std::vector<float>(static_cast<size_t>(rows * width), -7));
      ASSERT_TRUE(cuda::Narrow(Stream{}, dtype, x.data(), stride, rows, width, out.data()).ok());
      Typed want(dtype, std::vector<float>(static_cast<size_t>(rows * width)));
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < width; ++i) want.Set(static_cast<size_t>(r * width + i), x[static_cast<size_t>(r * stride + i)]);
      }
      EXPECT_EQ(out.bytes(), want.bytes()) << DTypeName(dtype) << " width " << width;
    }
  }
}

}  // namespace
}  // namespace quire

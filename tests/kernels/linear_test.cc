// Linear against the reference, and what batch-invariant mode promises.
#include "kernels/linear.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <bit>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <string>

#include "kernels/cpu/linear_tile.h"
#include "kernels/cpu/onednn_matmul.h"
#include "kernels/reference/linear.h"
#include "tests/kernels/dense_inputs.h"

namespace quire {
namespace {

constexpr float kEps = std::numeric_limits<float>::epsilon() / 2;

Context ContextOf(ThreadPool& pool, bool batch_invariant = false) {
  Context ctx;
  ctx.pool = &pool;
  ctx.batch_invariant = batch_invariant;
  return ctx;
}

// Each output's error against Σ|w·x|, the scale that rounding works on: at most a few eps for random signs, where the
// worst case is cols · eps. x and the weight enter exactly, so that one bound holds for every dtype.
void ExpectClose(const std::vector<float>& got, const std::vector<float>& want, const Weight& weight,
                 const std::vector<float>& x, int64_t x_stride, int64_t m, int64_t out_stride, const std::string& what) {
  const double bound = kEps * (4 + std::sqrt(static_cast<double>(weight.cols())));
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t r = 0; r < weight.rows(); ++r) {
      double magnitude = 1e-30;
      VisitFloatDType(weight.dtype(), [&](auto t) {
        const auto* w = static_cast<const decltype(t)*>(weight.data()) + r * weight.cols();
        for (int64_t k = 0; k < weight.cols(); ++k) magnitude += std::abs(ToFloat(w[k]) * x[i * x_stride + k]);
      });
      const float g = got[i * out_stride + r], e = want[i * out_stride + r];
      ASSERT_LE(std::abs(g - e), bound * (magnitude + std::abs(e)))
          << what << " row " << i << " output " << r << ": " << g << " vs " << e;
    }
  }
}

struct Sizes {
  int64_t m, rows, cols;
};

void RunCase(ThreadPool& pool, DType dtype, Sizes size, bool bias, bool accumulate, int64_t padding) {
  const Context ctx = ContextOf(pool);
  const std::string what = std::string(DTypeName(dtype)) + " m " + std::to_string(size.m) + " rows " +
                           std::to_string(size.rows) + " cols " + std::to_string(size.cols);
  Weight weight = RandomWeight(dtype, size.rows, size.cols, 7);
  ASSERT_TRUE(PrepareWeight(ctx, weight).ok());
  const int64_t x_stride = size.cols + padding, out_stride = size.rows + padding;
  std::vector<float> x = RandomFloats(static_cast<size_t>(size.m * x_stride), 8);
  // On processors with a matrix unit oneDNN takes bf16 weights, and rounds x to bf16: of numbers that are bf16 already the
  // bound holds either way.
  if (dtype == DType::kBF16 && weight.packed_bytes() > 0) {
    for (float& value : x) value = ToFloat(ToBF16(value));
  }
  const std::vector<float> b = RandomFloats(static_cast<size_t>(size.rows), 9);
  const std::vector<float> before = RandomFloats(static_cast<size_t>(size.m * out_stride), 10);
  std::vector<float> got = before, want = before;
  Linear(ctx, x.data(), x_stride, size.m, weight, bias ? b.data() : nullptr, got.data(), out_stride, accumulate);
  reference::Linear(x.data(), x_stride, size.m, weight, bias ? b.data() : nullptr, want.data(), out_stride, accumulate);
  ExpectClose(got, want, weight, x, x_stride, size.m, out_stride, what);
  for (int64_t i = 0; i < size.m; ++i) {
    for (int64_t p = size.rows; p < out_stride; ++p) {
      ASSERT_EQ(got[i * out_stride + p], before[i * out_stride + p]) << what << ": wrote between rows";
    }
  }
}

TEST(Linear, EqualsReferenceAtOddSizes) {
  ThreadPool pool(2);
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (int64_t m : {1, 2, 3, 5, 7, 8, 16, 17, 33}) {
      for (int64_t rows : {1, 7, 25, 63, 127}) {
        for (int64_t cols : {1, 7, 15, 16, 17, 63, 127, 130}) {
          RunCase(pool, dtype, {m, rows, cols}, (m + rows) % 2 == 0, cols % 2 == 0, (m + cols) % 3);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(Linear, EqualsReferenceAtModelSizes) {
  ThreadPool pool(2);
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const Sizes size : {Sizes{1, 576, 1536}, Sizes{3, 100, 2816}, Sizes{4, 1536, 576}, Sizes{19, 192, 2816},
                             Sizes{65, 144, 1025}, Sizes{300, 96, 576}}) {
      RunCase(pool, dtype, size, true, true, 3);
      if (HasFatalFailure()) return;
    }
  }
}

// While it lives, PrepareWeight takes oneDNN wherever it has a product.
class OneDnnAlways {
 public:
  OneDnnAlways() { setenv("QUIRE_ONEDNN", "always", 1); }
  ~OneDnnAlways() { unsetenv("QUIRE_ONEDNN"); }
};

int ThreadsOfProcess() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("Threads:", 0) == 0) return std::stoi(line.substr(8));
  }
  return -1;
}

TEST(Linear, ThroughOneDnnEqualsReference) {
  const OneDnnAlways always;
  ThreadPool pool(2);
  const int threads = ThreadsOfProcess();
  for (const Sizes size : {Sizes{1, 7, 15}, Sizes{16, 256, 64}, Sizes{17, 257, 63}, Sizes{64, 300, 127}, Sizes{65, 520, 576},
                           Sizes{256, 255, 33}, Sizes{300, 700, 130}, Sizes{3, 1, 1}}) {
    RunCase(pool, DType::kF32, size, true, size.m % 2 == 0, 5);
    if (HasFatalFailure()) return;
  }
  EXPECT_EQ(ThreadsOfProcess(), threads) << "oneDNN started threads beside our pool";
}

TEST(Linear, BatchInvariantModePassesOneDnnBy) {
  ThreadPool pool(2);
  Weight packed = RandomWeight(DType::kF32, 300, 700, 5);
  const Weight plain = RandomWeight(DType::kF32, 300, 700, 5);
  {
    const OneDnnAlways always;
    ASSERT_TRUE(PrepareWeight(ContextOf(pool), packed).ok());
  }
  EXPECT_GE(packed.packed_bytes(), packed.bytes());
  EXPECT_EQ(plain.packed_bytes(), 0u);
  const std::vector<float> x = RandomFloats(20 * 700, 6);
  std::vector<float> a(20 * 300), b(20 * 300), c(20 * 300);
  Linear(ContextOf(pool, true), x.data(), 700, 20, packed, nullptr, a.data(), 300);
  Linear(ContextOf(pool, true), x.data(), 700, 20, plain, nullptr, b.data(), 300);
  Linear(ContextOf(pool), x.data(), 700, 20, packed, nullptr, c.data(), 300);
  EXPECT_TRUE(SameBits(a.data(), b.data(), a.size()));
  EXPECT_FALSE(SameBits(a.data(), c.data(), a.size())) << "oneDNN's product was not used outside the mode";
}

TEST(Linear, OneDnnBitsDoNotDependOnThreads) {
  const OneDnnAlways always;
  std::vector<float> first;
  for (int threads : {1, 2, 3}) {
    ThreadPool pool(threads);
    Weight weight = RandomWeight(DType::kF32, 600, 200, 5);
    ASSERT_TRUE(PrepareWeight(ContextOf(pool), weight).ok());
    ASSERT_GT(weight.packed_bytes(), 0u);
    const std::vector<float> x = RandomFloats(70 * 200, 6);
    std::vector<float> out(70 * 600);
    Linear(ContextOf(pool), x.data(), 200, 70, weight, nullptr, out.data(), 600);
    if (threads == 1) first = out;
    EXPECT_TRUE(SameBits(out.data(), first.data(), out.size())) << threads << " threads";
  }
}

TEST(Linear, UnknownChoiceOfOneDnnIsRefused) {
  ThreadPool pool(1);
  Weight weight = RandomWeight(DType::kF32, 3, 4, 1);
  setenv("QUIRE_ONEDNN", "sometimes", 1);
  EXPECT_EQ(PrepareWeight(ContextOf(pool), weight).code(), StatusCode::kInvalidArgument);
  unsetenv("QUIRE_ONEDNN");
}

TEST(Linear, NarrowToBf16RoundsAsTheScalarDoes) {
  std::vector<float> from = RandomFloats(1000, 1);
  for (uint32_t i = 0; i < 300; ++i) from.push_back(std::bit_cast<float>(0x3f800000u + i * 0x4000u));  // ties both ways
  for (uint32_t bits : {0x7f800000u, 0xff800000u, 0x7f800001u, 0x7fffffffu, 0xffc00000u, 0x7f7fffffu, 0x80000000u, 1u}) {
    for (int copies = 0; copies < 9; ++copies) from.push_back(std::bit_cast<float>(bits));
  }
  std::vector<BF16> to(from.size());
  cpu::NarrowToBf16(from.data(), static_cast<int64_t>(from.size()), to.data());
  for (size_t i = 0; i < from.size(); ++i) ASSERT_EQ(to[i].bits, ToBF16(from[i]).bits) << from[i];
}

TEST(Linear, OneDnnIsChosenForBf16OnMatrixUnitsAlone) {
  using cpu::MatrixUnit;
  for (MatrixUnit unit : {MatrixUnit::kAmxBf16, MatrixUnit::kAvx512Bf16}) {
    EXPECT_TRUE(cpu::OneDnnPays(unit, DType::kBF16));
    EXPECT_FALSE(cpu::OneDnnPays(unit, DType::kF32));
    EXPECT_FALSE(cpu::OneDnnPays(unit, DType::kF16));
  }
  EXPECT_FALSE(cpu::OneDnnPays(MatrixUnit::kNone, DType::kBF16));
}

// Every instruction set of this machine, not only its best.
TEST(Linear, EveryTargetEqualsReference) {
  ThreadPool pool(2);
  int targets = 0;
  for (int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    ++targets;
    for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      for (const Sizes size : {Sizes{1, 25, 67}, Sizes{6, 30, 130}, Sizes{21, 55, 1100}}) {
        RunCase(pool, dtype, size, true, false, 1);
      }
    }
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  EXPECT_GE(targets, 1);
}

TEST(Linear, NoRowsOfXWriteNothing) {
  ThreadPool pool(1);
  const Weight weight = RandomWeight(DType::kF32, 3, 4, 1);
  float out = 5;
  Linear(ContextOf(pool), nullptr, 4, 0, weight, nullptr, &out, 3);
  EXPECT_EQ(out, 5);
}

TEST(Linear, NanAndInfinityStayInTheirRow) {
  ThreadPool pool(2);
  for (int64_t m : {3, 20}) {
    const Weight weight = RandomWeight(DType::kBF16, 50, 130, 3);
    std::vector<float> x = RandomFloats(static_cast<size_t>(m * 130), 4);
    x[130 + 129] = std::numeric_limits<float>::quiet_NaN();
    x[2 * 130 + 5] = std::numeric_limits<float>::infinity();
    std::vector<float> out(static_cast<size_t>(m * 50));
    Linear(ContextOf(pool), x.data(), 130, m, weight, nullptr, out.data(), 50);
    for (int64_t r = 0; r < 50; ++r) {
      EXPECT_TRUE(std::isfinite(out[r]));
      EXPECT_TRUE(std::isnan(out[50 + r]));
      EXPECT_FALSE(std::isfinite(out[100 + r]));
    }
  }
}

TEST(Linear, BatchInvariantRowsHaveEqualBitsForAnyMAndThreads) {
  constexpr int64_t kMaxM = 512;
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{61, 131}, {17, 1100}}) {
      ThreadPool one(1);
      Weight weight = RandomWeight(dtype, rows, cols, 11);
      ASSERT_TRUE(PrepareWeight(ContextOf(one, true), weight).ok());
      const std::vector<float> x = RandomFloats(static_cast<size_t>(kMaxM * cols), 12);
      std::vector<float> alone(static_cast<size_t>(kMaxM * rows));
      for (int64_t i = 0; i < kMaxM; ++i) {
        Linear(ContextOf(one, true), x.data() + i * cols, cols, 1, weight, nullptr, alone.data() + i * rows, rows);
      }
      std::vector<float> out(alone.size());
      for (int threads : {1, 2, 3}) {
        ThreadPool pool(threads);
        for (int64_t m = 1; m <= kMaxM; ++m) {
          // From the end, so that a row stands at another place in every m.
          const int64_t begin = kMaxM - m;
          Linear(ContextOf(pool, true), x.data() + begin * cols, cols, m, weight, nullptr, out.data(), rows);
          ASSERT_TRUE(SameBits(out.data(), alone.data() + begin * rows, static_cast<size_t>(m * rows)))
              << DTypeName(dtype) << " m " << m << " threads " << threads;
        }
      }
    }
  }
}

TEST(Linear, BitsDoNotDependOnThreadsInAnyMode) {
  const Weight weight = RandomWeight(DType::kBF16, 300, 700, 5);
  for (int64_t m : {1, 6, 70}) {
    const std::vector<float> x = RandomFloats(static_cast<size_t>(m * 700), 6);
    std::vector<float> first;
    for (int threads : {1, 2, 3}) {
      ThreadPool pool(threads);
      std::vector<float> out(static_cast<size_t>(m * 300));
      Linear(ContextOf(pool), x.data(), 700, m, weight, nullptr, out.data(), 300);
      if (threads == 1) first = out;
      EXPECT_TRUE(SameBits(out.data(), first.data(), out.size())) << "m " << m << " threads " << threads;
    }
  }
}

TEST(Weight, RefusesWhatCannotBeMultiplied) {
  int8_t bytes[4] = {};
  EXPECT_EQ(Weight::Borrow(bytes, DType::kI8, 2, 2).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(Weight::Borrow(bytes, DType::kF32, 0, 2).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(Weight::Own(Tensor::Create(DType::kF32, {4}).value()).status().code(), StatusCode::kInvalidArgument);
}

TEST(Weight, ConcatKeepsNeighboursBorrowedAndCopiesOthers) {
  Tensor tensor = RandomTensor(DType::kBF16, 6, 5, 1);
  const BF16* data = tensor.data<BF16>();
  Weight parts[2] = {Weight::Borrow(data, DType::kBF16, 4, 5).value(),
                     Weight::Borrow(data + 20, DType::kBF16, 2, 5).value()};
  const Weight joined = Weight::Concat(parts, 2).value();
  EXPECT_FALSE(joined.owned());
  EXPECT_EQ(joined.data(), data);
  EXPECT_EQ(joined.rows(), 6);

  Weight swapped[2] = {Weight::Borrow(data + 20, DType::kBF16, 2, 5).value(),
                       Weight::Borrow(data, DType::kBF16, 4, 5).value()};
  const Weight copied = Weight::Concat(swapped, 2).value();
  EXPECT_TRUE(copied.owned());
  EXPECT_EQ(std::memcmp(copied.data(), data + 20, 20), 0);
  EXPECT_EQ(std::memcmp(static_cast<const BF16*>(copied.data()) + 10, data, 40), 0);
}

TEST(Weight, ConcatRefusesUnequalParts) {
  Weight cols[2] = {RandomWeight(DType::kF32, 2, 3, 1), RandomWeight(DType::kF32, 2, 4, 1)};
  EXPECT_EQ(Weight::Concat(cols, 2).status().code(), StatusCode::kInvalidArgument);
  Weight types[2] = {RandomWeight(DType::kF32, 2, 3, 1), RandomWeight(DType::kBF16, 2, 3, 1)};
  EXPECT_EQ(Weight::Concat(types, 2).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(Weight::Concat(types, 0).status().code(), StatusCode::kInvalidArgument);
}

TEST(Weight, MovedFromIsEmpty) {
  Weight a = RandomWeight(DType::kF32, 2, 3, 1);
  const void* data = a.data();
  const Weight b = std::move(a);
  EXPECT_TRUE(a.empty());  // NOLINT: what a move leaves is part of the contract
  EXPECT_EQ(b.data(), data);
}

}  // namespace
}  // namespace quire

// Top candidates of the GPU under the emulator against the reference's full sort.
#include "kernels/cuda/top_candidates.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "kernels/reference/top_candidates.h"
#include "tests/kernels/cuda/emulator/options.h"
#include "tests/kernels/cuda/typed.h"

namespace quire {
namespace {

using testing::SeededFloats;
using testing::Typed;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

void AgreesWithTheReference(const Typed& logits, int64_t rows, int64_t vocab, int k, uint64_t seed = 1) {
  SCOPED_TRACE(::testing::Message() << DTypeName(logits.dtype()) << " rows " << rows << " vocab " << vocab << " k " << k);
  emulator::Options options;
  options.seed = seed;
  const emulator::ScopedOptions scoped(options);
  const int64_t stride = static_cast<int64_t>(logits.size()) / rows;
  const std::vector<float> floats = logits.Floats();
  const auto n = static_cast<size_t>(rows * k);
  std::vector<int32_t> ids(n, -7), want_ids(n);
  std::vector<float> values(n), want_values(n), lse(static_cast<size_t>(rows)), want_lse(lse.size());
  quire::TopCandidatesParams r{floats.data(), stride, rows, vocab, 1000, k, want_ids.data(), want_values.data(), want_lse.data()};
  reference::TopCandidates(r);
  std::vector<std::byte> workspace(cuda::TopCandidatesConfig::For(rows, vocab, k).workspace_bytes, std::byte{0xff});
  cuda::TopCandidatesParams p;
  p.logits = logits.data();
  p.stride = stride;
  p.rows = rows;
  p.vocab = vocab;
  p.vocab_begin = 1000;
  p.k = k;
  p.ids = ids.data();
  p.values = values.data();
  p.lse = lse.data();
  p.workspace = workspace.data();
  ASSERT_TRUE(cuda::TopCandidates(Stream{}, logits.dtype(), p).ok());
  EXPECT_EQ(ids, want_ids);
  EXPECT_EQ(values, want_values);
  for (size_t i = 0; i < lse.size(); ++i) {
    if (std::isfinite(want_lse[i])) {
      EXPECT_NEAR(lse[i], want_lse[i], 2e-6 * (1 + std::abs(want_lse[i]))) << i;
    } else {
      EXPECT_EQ(lse[i], want_lse[i]) << i;
    }
  }
}

TEST(CudaTopCandidates, AgreesWithTheReferenceOnShortVocabularies) {
  uint64_t seed = 1;
  for (const DType dtype : testing::kFloatDTypes) {
    for (const auto& [vocab, k] : std::vector<std::pair<int, int>>{{1, 1}, {17, 17}, {300, 1}, {4097, 20}, {9000, 64}, {5000, 1000}}) {
      // 16-bit logits have many ties.
      AgreesWithTheReference(Typed(dtype, SeededFloats(static_cast<size_t>(2 * vocab + 10), seed, 4.0f)), 2, vocab, k, seed);
      ++seed;
    }
  }
}

TEST(SlowCudaTopCandidates, AgreesWithTheReferenceOnWholeVocabularies) {
  uint64_t seed = 1;
  for (const DType dtype : testing::kFloatDTypes) {
    for (const auto& [vocab, k] : std::vector<std::pair<int, int>>{{49152, 50}, {128256, 256}, {151936, 1024}}) {
      AgreesWithTheReference(Typed(dtype, SeededFloats(static_cast<size_t>(2 * vocab), seed, 4.0f)), 2, vocab, k, seed);
      ++seed;
    }
  }
}

TEST(CudaTopCandidates, TiesNanAndInfinities) {
  AgreesWithTheReference(Typed(DType::kF32, {1, 3, 3, -kInf, 3, 0, kNan, -0.0f}), 1, 8, 8);
  AgreesWithTheReference(Typed(DType::kF32, {kNan, kNan, 5, kNan}), 1, 4, 3);
  AgreesWithTheReference(Typed(DType::kF32, {-kInf, kNan, -kInf}), 1, 3, 3);
  AgreesWithTheReference(Typed(DType::kF32, {kInf, 1, kInf}), 1, 3, 2);
  AgreesWithTheReference(Typed(DType::kF32, {kNan, kNan}), 1, 2, 2);
  std::vector<float> equal(9000, 2.5f);
  AgreesWithTheReference(Typed(DType::kF32, equal), 1, 9000, 40);
  std::vector<float> late(9000, kNan);  // whole chunks of NaN
  late[8999] = 1;
  late[5000] = -kInf;
  AgreesWithTheReference(Typed(DType::kF32, late), 1, 9000, 4);
}

TEST(CudaTopCandidates, ARowsBitsDependOnThatRowAlone) {
  const std::vector<float> two = SeededFloats(2 * 9000, 3, 4.0f);
  const auto lse = [&](int first, int64_t rows) {
    std::vector<float> out(static_cast<size_t>(rows)), values(static_cast<size_t>(rows));
    std::vector<int32_t> ids(static_cast<size_t>(rows));
    std::vector<std::byte> workspace(cuda::TopCandidatesConfig::For(rows, 9000, 1).workspace_bytes);
    cuda::TopCandidatesParams p{two.data() + first * 9000, 9000, rows, 9000, 0, 1, ids.data(), values.data(), out.data(), workspace.data()};
    EXPECT_TRUE(cuda::TopCandidates(Stream{}, DType::kF32, p).ok());
    return out.back();
  };
  EXPECT_EQ(lse(0, 2), lse(1, 1));
}

TEST(CudaTopCandidates, RefusesKOutOfRangeAndConfigurationIsOfSizesAlone) {
  cuda::TopCandidatesParams p;
  p.rows = 1;
  p.vocab = 5;
  p.k = 6;
  EXPECT_EQ(cuda::TopCandidates(Stream{}, DType::kF32, p).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(cuda::TopCandidatesConfig::For(2, 128256, 64).ToString(),
            "32 chunks of 4096, 64 kept, 2048 keys cached in the merge, 33280 B workspace");
  EXPECT_EQ(cuda::TopCandidatesConfig::For(1, 151936, 1024).merge_keys, 0);
  EXPECT_EQ(cuda::TopCandidatesConfig::For(1, 300, 1024).kept, 300);
}

}  // namespace
}  // namespace quire

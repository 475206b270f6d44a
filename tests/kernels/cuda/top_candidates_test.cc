// Top candidates of the GPU under the emulator against the reference's full sort.
#include "kernels/cuda/top_candidates.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "kernels/reference/top_candidates.h"
#include "tests/kernels/cuda/emulator/options.h"
#include "tests/kernels/cuda/typed.h"

namespace quire {
namespace {

using testing::SeededFloats;
using testing::Typed;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Rows of the logits edited and scaled; none of both: the rows as they are.
struct Edits {
  std::vector<CandidateRow> rows;
  std::vector<LogitEdit> edits;
};

void AgreesWithTheReference(const Typed& logits, int64_t logit_rows, int64_t vocab, int k, uint64_t seed = 1,
                            const Edits& edits = {}) {
  const int64_t rows = edits.rows.empty() ? logit_rows : static_cast<int64_t>(edits.rows.size());
  SCOPED_TRACE(::testing::Message() << DTypeName(logits.dtype()) << " rows " << rows << " vocab " << vocab << " k " << k
                                    << " edits " << edits.edits.size());
  emulator::Options options;
  options.seed = seed;
  const emulator::ScopedOptions scoped(options);
  const int64_t stride = static_cast<int64_t>(logits.size()) / logit_rows;
  const std::vector<float> floats = logits.Floats();
  const auto n = static_cast<size_t>(rows * k);
  std::vector<int32_t> ids(n, -7), want_ids(n);
  std::vector<float> values(n), want_values(n), lse(static_cast<size_t>(rows)), want_lse(lse.size());
  quire::TopCandidatesParams r{floats.data(), stride, rows, vocab, 1000, k, want_ids.data(), want_values.data(), want_lse.data()};
  if (!edits.rows.empty()) r.row_of = edits.rows.data();
  r.edits = edits.edits.data();
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
  p.row_of = r.row_of;
  p.edits = r.edits;
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

// Edits of `rows` rows, each of `count` ids dealt over the vocabulary in no order: penalties, biases, masks, and all at once.
Edits RandomEdits(int logit_rows, int rows, int64_t vocab, int count, uint64_t seed) {
  std::mt19937_64 random(seed);
  Edits out;
  for (int row = 0; row < rows; ++row) {
    std::vector<int32_t> ids(static_cast<size_t>(vocab));
    std::iota(ids.begin(), ids.end(), 1000);
    std::shuffle(ids.begin(), ids.end(), random);
    const auto begin = static_cast<int32_t>(out.edits.size());
    for (int i = 0; i < std::min<int64_t>(count, vocab); ++i) {
      LogitEdit edit{ids[static_cast<size_t>(i)]};
      if (i % 3 == 0) edit.bias = static_cast<float>(random() % 1000) / 100 - 5;
      if (i % 7 == 1) edit.bias = -kInf;
      if (i % 2 == 0) edit.repetition = 0.5f + static_cast<float>(random() % 1000) / 700;
      if (i % 4 == 0) edit.subtract = static_cast<float>(random() % 1000) / 300 - 1;
      out.edits.push_back(edit);
    }
    const float scale = row % 3 == 0 ? 1.0f : 0.1f + static_cast<float>(random() % 1000) / 300;
    out.rows.push_back({static_cast<int32_t>(random() % static_cast<uint64_t>(logit_rows)), scale, begin,
                        static_cast<int32_t>(out.edits.size())});
  }
  out.rows.push_back({logit_rows - 1, 1.5f, 0, 0});  // scaled alone
  return out;
}

TEST(CudaTopCandidates, EditedAndScaledRowsAgreeWithTheReference) {
  uint64_t seed = 1;
  for (const DType dtype : testing::kFloatDTypes) {
    for (const auto& [vocab, k, count] : std::vector<std::array<int, 3>>{
             {1, 1, 1}, {17, 17, 9}, {300, 1, 3}, {301, 64, 300}, {4097, 20, 700}, {9001, 64, 1000}, {5000, 1000, 5000}}) {
      const Typed logits(dtype, SeededFloats(static_cast<size_t>(2 * vocab + 10), seed, 4.0f));
      AgreesWithTheReference(logits, 2, vocab, k, seed, RandomEdits(2, 3, vocab, count, seed));
      ++seed;
    }
  }
}

TEST(SlowCudaTopCandidates, EditedRowsOfWholeVocabulariesAgreeWithTheReference) {
  uint64_t seed = 1;
  for (const auto& [vocab, k] : std::vector<std::pair<int, int>>{{49152, 64}, {128256, 64}, {151936, 1024}}) {
    const Typed logits(DType::kF32, SeededFloats(static_cast<size_t>(vocab), seed, 4.0f));
    AgreesWithTheReference(logits, 1, vocab, k, seed, RandomEdits(1, 1, vocab, 5000, seed));
    ++seed;
  }
}

TEST(CudaTopCandidates, EditsOfNanInfinitiesAndTies) {
  // A mask wins over NaN and +∞; what is lifted to a tie goes behind lower ids; −0 and 0 are equal.
  const Typed logits(DType::kF32, {kNan, kInf, 3, 2, kNan, -kInf, 1, 0, -1});
  Edits edits;
  edits.edits = {{1000, -kInf, 2, 1}, {1001, -kInf, 1, 0}, {1006, 2, 1, 0}, {1008, 1, 1, 0}, {1005, 50, 3, -9}, {1004, 9, 2, 1}};
  edits.rows = {{0, 1, 0, 6}, {0, 0.5f, 0, 3}};
  for (const int k : {1, 2, 9}) AgreesWithTheReference(logits, 1, 9, k, 1, edits);
  // Everything masked, and everything but one.
  Edits all;
  for (int32_t id = 1000; id < 1009; ++id) all.edits.push_back({id, -kInf});
  all.rows = {{0, 2, 0, 9}, {0, 1, 0, 7}};
  for (const int k : {1, 9}) AgreesWithTheReference(logits, 1, 9, k, 1, all);
}

// Whoever takes the maximum before all edits are there gets a sum that overflows, or none.
TEST(CudaTopCandidates, EditsThatMoveTheMaximumFarAreThereBeforeItIsTaken) {
  const Typed logits(DType::kF32, SeededFloats(300, 1));
  for (const float bias : {200.0f, -200.0f}) {
    Edits edits;
    for (int32_t i = 0; i < 300; i += bias > 0 ? 3 : 1) edits.edits.push_back({1299 - i, bias});
    edits.rows = {{0, 1, 0, static_cast<int32_t>(edits.edits.size())}};
    for (uint64_t seed = 1; seed <= 4; ++seed) AgreesWithTheReference(logits, 1, 300, 2, seed, edits);
  }
}

TEST(CudaGatherLogits, AreTheRowsOwnAndZeroOutsideTheSlice) {
  for (const DType dtype : testing::kFloatDTypes) {
    const Typed logits(dtype, {1, 2, 3, 0, 4, 5, 6, 0});  // rows 4 apart
    const std::vector<CandidateRow> rows = {{1, 9, 0, 0}, {0, 1, 0, 0}};
    const std::vector<int32_t> ids = {10, 12, 9, 13, 11, 10};
    std::vector<float> out(6, kNan);
    ASSERT_TRUE(cuda::GatherLogits(Stream{}, dtype, {logits.data(), 4, 2, 3, 10, 3, rows.data(), ids.data(), out.data()}).ok());
    EXPECT_EQ(out, (std::vector<float>{4, 6, 0, 0, 2, 1}));
  }
  // More than a block has threads.
  const std::vector<float> many = SeededFloats(400, 1);
  const Typed logits(DType::kF32, many);
  const std::vector<CandidateRow> row(1);  // not on the stack, where a GPU can't read it
  std::vector<int32_t> ids(400);
  std::iota(ids.rbegin(), ids.rend(), 0);
  std::vector<float> out(400);
  ASSERT_TRUE(cuda::GatherLogits(Stream{}, DType::kF32, {logits.data(), 400, 1, 400, 0, 400, row.data(), ids.data(), out.data()}).ok());
  EXPECT_TRUE(std::equal(out.begin(), out.end(), many.rbegin()));
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

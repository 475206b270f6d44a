// Top candidates and log-sum-exp against a full sort, with ties, NaN and infinities.
#include "kernels/top_candidates.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/reference/top_candidates.h"
#include "tests/kernels/dense_inputs.h"

namespace quire {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Top {
  std::vector<int32_t> ids;
  std::vector<float> values, lse;
};

template <typename F>
Top Collect(const std::vector<float>& logits, int64_t rows, int64_t vocab, int k, F&& call, int32_t begin = 0) {
  Top top;
  top.ids.resize(static_cast<size_t>(rows * k), -1);
  top.values.resize(top.ids.size());
  top.lse.resize(static_cast<size_t>(rows));
  TopCandidatesParams p;
  p.logits = logits.data();
  p.stride = static_cast<int64_t>(logits.size()) / rows;
  p.rows = rows;
  p.vocab = vocab;
  p.vocab_begin = begin;
  p.k = k;
  p.ids = top.ids.data();
  p.values = top.values.data();
  p.lse = top.lse.data();
  call(p);
  return top;
}

void ExpectEqualsReference(const std::vector<float>& logits, int64_t rows, int64_t vocab, int k, int threads = 2) {
  ThreadPool pool(threads);
  Context ctx;
  ctx.pool = &pool;
  const Top got = Collect(logits, rows, vocab, k, [&](const auto& p) { TopCandidates(ctx, p); }, 1000);
  const Top want = Collect(logits, rows, vocab, k, [&](const auto& p) { reference::TopCandidates(p); }, 1000);
  EXPECT_EQ(got.ids, want.ids) << "vocab " << vocab << " k " << k;
  EXPECT_EQ(got.values, want.values) << "vocab " << vocab << " k " << k;
  for (int64_t r = 0; r < rows; ++r) {
    if (std::isinf(want.lse[r])) {
      EXPECT_EQ(got.lse[r], want.lse[r]);
    } else {
      EXPECT_NEAR(got.lse[r], want.lse[r], 4e-7 * (1 + std::abs(want.lse[r]))) << "vocab " << vocab;
    }
  }
}

TEST(TopCandidates, EqualsReference) {
  for (int64_t vocab : {1, 2, 63, 64, 65, 4095, 4097, 49152}) {
    for (int64_t rows : {1, 3}) {
      const std::vector<float> logits = RandomFloats(static_cast<size_t>(rows * (vocab + 5)), 3, 4.0f);
      for (int k : {1, 2, 20, 64, 100}) {
        if (k <= vocab) ExpectEqualsReference(logits, rows, vocab, k);
      }
    }
  }
}

TEST(TopCandidates, WholeVocabulary) {
  const std::vector<float> logits = RandomFloats(5000, 4);
  ExpectEqualsReference(logits, 1, 5000, 5000);
}

TEST(TopCandidates, LargestAtTheEndOfALargeVocabulary) {
  std::vector<float> logits = RandomFloats(151936, 5);
  logits[151935] = 30;
  logits[4096] = 29;
  ExpectEqualsReference(logits, 1, 151936, 64);
}

TEST(TopCandidates, TiesGoToTheLowerId) {
  std::vector<float> logits(10000);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>((i * 7919) % 3);
  logits[4] = -0.0f;
  ExpectEqualsReference(logits, 1, 10000, 64);
  const std::vector<float> equal(3000, 1.5f);
  ExpectEqualsReference(equal, 1, 3000, 40);
  std::vector<float> zeros(300, 0.0f);
  zeros[3] = -0.0f;
  ExpectEqualsReference(zeros, 1, 300, 5);
}

TEST(TopCandidates, NanNeverWins) {
  std::vector<float> logits = RandomFloats(5000, 6);
  for (size_t i = 0; i < logits.size(); i += 3) logits[i] = kNan;
  ExpectEqualsReference(logits, 1, 5000, 64);
  std::vector<float> few(200, kNan);
  few[7] = 1;
  few[150] = -kInf;
  ExpectEqualsReference(few, 1, 200, 10);
  ExpectEqualsReference(std::vector<float>(200, kNan), 1, 200, 3);
}

TEST(TopCandidates, InfinitiesAndLargeLogits) {
  std::vector<float> logits = RandomFloats(5000, 7);
  for (int i = 100; i < 4900; ++i) logits[i] = -kInf;  // what a mask leaves
  ExpectEqualsReference(logits, 1, 5000, 64);
  ExpectEqualsReference(std::vector<float>(100, -kInf), 1, 100, 5);
  logits[50] = kInf;
  ExpectEqualsReference(logits, 1, 5000, 3);
  std::vector<float> large = RandomFloats(5000, 8);
  for (float& v : large) v = v * 100 + 3e4f;
  ExpectEqualsReference(large, 1, 5000, 8);
}

// Rows named twice and out of order, scaled, and edited in every way, against the reference and against a row made by hand.
TEST(TopCandidates, EditedAndScaledRowsAreThoseThatWereEditedAndScaledBefore) {
  ThreadPool pool(2);
  Context ctx;
  ctx.pool = &pool;
  constexpr int64_t kVocab = 9001;
  std::vector<float> logits = RandomFloats(2 * kVocab, 10, 4.0f);
  logits[kVocab + 77] = kNan;
  const std::vector<LogitEdit> edits = {{1000 + 5, 30, 1, 0},     {1000 + 8999, 0, 1.7f, 0.3f}, {1000 + 4096, -kInf, 1, 0},
                                        {1000 + 77, -kInf, 2, 1}, {1000 + 9000, 40, 1.3f, -2},  {1000, 1, 1, 29}};
  const std::vector<CandidateRow> rows = {{1, 1.25f, 0, 4}, {0, 1, 4, 6}, {1, 0.5f, 2, 2}, {1, 1, 0, 6}};
  std::vector<float> work(rows.size() * kVocab, kNan);
  for (const int k : {1, 64, 9001}) {
    const auto edited = [&](auto p) {
      p.rows = static_cast<int64_t>(rows.size());
      p.stride = kVocab;
      p.row_of = rows.data();
      p.edits = edits.data();
      p.work = work.data();
      return p;
    };
    std::vector<float> room = logits;  // as many rows as are wanted
    room.resize(rows.size() * kVocab);
    const auto count = static_cast<int64_t>(rows.size());
    const Top got = Collect(room, count, kVocab, k, [&](const auto& p) { TopCandidates(ctx, edited(p)); }, 1000);
    const Top want = Collect(room, count, kVocab, k, [&](const auto& p) { reference::TopCandidates(edited(p)); }, 1000);
    EXPECT_EQ(got.ids, want.ids) << k;
    EXPECT_EQ(got.values, want.values) << k;
    for (size_t r = 0; r < rows.size(); ++r) EXPECT_NEAR(got.lse[r], want.lse[r], 4e-7 * (1 + std::abs(want.lse[r])));
    EXPECT_EQ(got.ids[static_cast<size_t>(k)], 1000 + 9000);  // the second row's, lifted by 42
    EXPECT_EQ(got.values[0], (logits[kVocab + 5] + 30) * 1.25f);
  }
}

TEST(GatherLogits, AreTheRowsOwnAndZeroOutsideTheSlice) {
  ThreadPool pool(1);
  Context ctx;
  ctx.pool = &pool;
  const std::vector<float> logits = {1, 2, 3, 4, 5, 6};
  const std::vector<CandidateRow> rows = {{1, 9, 0, 0}, {0, 1, 0, 0}};
  const std::vector<int32_t> ids = {10, 12, 9, 13, 11, 10};
  std::vector<float> out(6, kNan);
  GatherLogits(ctx, {logits.data(), 3, 2, 3, 10, 3, rows.data(), ids.data(), out.data()});
  EXPECT_EQ(out, (std::vector<float>{4, 6, 0, 0, 2, 1}));
}

TEST(TopCandidates, BitsDoNotDependOnThreadsOrOtherRows) {
  const int64_t rows = 5, vocab = 20001;
  const std::vector<float> logits = RandomFloats(rows * vocab, 9);
  Top first;
  for (int threads : {1, 2, 3}) {
    ThreadPool pool(threads);
    Context ctx;
    ctx.pool = &pool;
    const Top top = Collect(logits, rows, vocab, 30, [&](const auto& p) { TopCandidates(ctx, p); });
    if (threads == 1) first = top;
    EXPECT_EQ(top.ids, first.ids);
    EXPECT_TRUE(SameBits(top.lse.data(), first.lse.data(), rows));
  }
  ThreadPool pool(2);
  Context ctx;
  ctx.pool = &pool;
  const std::vector<float> last(logits.end() - vocab, logits.end());
  const Top alone = Collect(last, 1, vocab, 30, [&](const auto& p) { TopCandidates(ctx, p); });
  EXPECT_TRUE(SameBits(alone.lse.data(), first.lse.data() + rows - 1, 1));
}

}  // namespace
}  // namespace quire

#include "core/engine/sampling.h"
#include "core/engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "core/base/thread_pool.h"
#include "core/engine/philox.h"

namespace quire {
namespace {

// Known answers of the authors' Random123 (kat_vectors, philox4x32 10).
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}), (PhiloxBlock{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (PhiloxBlock{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (PhiloxBlock{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, UniformsDifferBySeedSequencePositionAndPurpose) {
  const double u = UniformDraw(1, 2, 3, DrawPurpose::kToken);
  EXPECT_GE(u, 0);
  EXPECT_LT(u, 1);
  EXPECT_EQ(u, UniformDraw(1, 2, 3, DrawPurpose::kToken));
  EXPECT_NE(u, UniformDraw(2, 2, 3, DrawPurpose::kToken));
  EXPECT_NE(u, UniformDraw(1, 3, 3, DrawPurpose::kToken));
  EXPECT_NE(u, UniformDraw(1, 2, 4, DrawPurpose::kToken));
  EXPECT_NE(u, UniformDraw(1, 2, 3, DrawPurpose::kRandomToken));
  EXPECT_NE(UniformDraw(uint64_t{1} << 40, 0, 0, DrawPurpose::kToken), UniformDraw(0, 0, 0, DrawPurpose::kToken));
  EXPECT_NE(UniformDraw(0, 0, uint64_t{1} << 40, DrawPurpose::kToken), UniformDraw(0, 0, 0, DrawPurpose::kToken));
}

class SamplerTest : public ::testing::Test {
 protected:
  SamplerTest() { ctx_.pool = &pool_; }

  // The tokens that `draws` positions give for one row of logits.
  std::vector<int32_t> Draw(const std::vector<float>& row, const SamplerParams& params, int draws,
                            const TokenHistory& history = {}, int64_t output_tokens = 0) {
    const int64_t vocab = static_cast<int64_t>(row.size());
    auto sampler = Sampler::Create(ctx_, {.vocab = vocab, .max_rows = 1, .max_jobs = 1});
    EXPECT_TRUE(sampler.ok());
    std::vector<int32_t> out;
    for (int i = 0; i < draws; ++i) {
      const SampleJob job{0, &params, &history, 0, i, output_tokens, -1};
      EXPECT_TRUE(sampler->Run(row.data(), 1, {&job, 1}, {}, &tokens_, &scores_).ok());
      EXPECT_TRUE(tokens_[0].finite);
      out.push_back(tokens_[0].id);
    }
    return out;
  }

  // χ² of the drawn counts against probabilities; cells expected below 5 are put together.
  static double ChiSquare(const std::vector<int32_t>& drawn, const std::vector<double>& p, int* cells) {
    std::vector<double> count(p.size());
    for (int32_t id : drawn) ++count[id];
    const double n = static_cast<double>(drawn.size());
    double chi = 0, rest_count = 0, rest_p = 0;
    *cells = 0;
    for (size_t i = 0; i < p.size(); ++i) {
      if (p[i] == 0) {
        EXPECT_EQ(count[i], 0) << "token " << i << " must never be drawn";
      }
      if (p[i] * n < 5) {
        rest_count += count[i];
        rest_p += p[i];
        continue;
      }
      chi += (count[i] - p[i] * n) * (count[i] - p[i] * n) / (p[i] * n);
      ++*cells;
    }
    if (rest_p * n >= 5) {
      chi += (rest_count - rest_p * n) * (rest_count - rest_p * n) / (rest_p * n);
      ++*cells;
    }
    return chi;
  }

  // Exact probabilities after all filters, by sorting: the slow obvious way.
  static std::vector<double> Exact(std::vector<float> row, const SamplerParams& params) {
    const size_t n = row.size();
    std::vector<double> p(n);
    std::vector<int> order(n);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return row[a] > row[b]; });
    double total = 0;
    for (size_t i = 0; i < n; ++i) {
      p[i] = std::exp((static_cast<double>(row[i]) - row[order[0]]) / params.temperature);
      total += p[i];
    }
    for (double& x : p) x /= total;
    const auto keep = [&](auto&& kept) {
      double sum = 0;
      for (size_t rank = 0; rank < n; ++rank) {
        if (!kept(rank, p[order[rank]])) p[order[rank]] = 0;
        sum += p[order[rank]];
      }
      for (double& x : p) x /= sum;
    };
    const double best = p[order[0]];
    keep([&](size_t, double x) { return x >= params.min_p * best; });
    if (params.top_k > 0) keep([&](size_t rank, double) { return rank < static_cast<size_t>(params.top_k); });
    double before = 0;
    keep([&](size_t rank, double x) {
      const bool kept = rank == 0 || before < params.top_p;
      before += x;
      return kept;
    });
    return p;
  }

  ThreadPool pool_{2};
  Context ctx_;
  std::vector<SampledToken> tokens_;
  std::vector<TokenLogprobs> scores_;
};

std::vector<float> Row(int vocab, float spread) {
  std::vector<float> row(vocab);
  for (int i = 0; i < vocab; ++i) {
    row[i] = spread * static_cast<float>(UniformDraw(99, 0, i, DrawPurpose::kToken) - 0.5);
  }
  return row;
}

TEST_F(SamplerTest, DrawsFollowTheExactDistributionUnderEveryFilter) {
  struct Case {
    const char* name;
    int vocab;
    float spread, temperature, top_p, min_p;
    int top_k;
  };
  const Case cases[] = {
      {"plain", 50, 4, 1, 1, 0, 0},
      {"warm", 50, 4, 1.7f, 1, 0, 0},
      {"cold", 50, 4, 0.4f, 1, 0, 0},
      {"top_k", 50, 4, 1, 1, 0, 7},
      {"top_p", 50, 4, 1, 0.6f, 0, 0},
      {"min_p", 50, 4, 1, 1, 0.3f, 0},
      {"all three", 50, 4, 0.8f, 0.7f, 0.1f, 12},
      {"flat, beyond the first candidates", 300, 0.5f, 1, 1, 0, 0},
      {"flat top_p, beyond the first candidates", 300, 0.5f, 1, 0.8f, 0, 0},
      {"top_k beyond the first candidates", 300, 0.5f, 1, 0.9f, 0, 200},
      {"min_p beyond the first candidates", 300, 0.5f, 1, 0.9f, 0.8f, 0},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    const std::vector<float> row = Row(c.vocab, c.spread);
    SamplerParams params;
    params.temperature = c.temperature;
    params.top_p = c.top_p;
    params.min_p = c.min_p;
    params.top_k = c.top_k;
    params.seed = 1234;
    int cells = 0;
    const double chi = ChiSquare(Draw(row, params, 8000), Exact(row, params), &cells);
    // Mean cells − 1, deviation √(2(cells − 1)): five deviations, with a fixed seed.
    EXPECT_LT(chi, cells - 1 + 5 * std::sqrt(2.0 * (cells - 1)) + 1e-9) << cells << " cells";
    EXPECT_GT(cells, 1);
  }
}

TEST_F(SamplerTest, ADistributionThatIsWrongWouldBeNoticed) {
  const std::vector<float> row = Row(50, 4);
  SamplerParams params;
  params.seed = 1234;
  SamplerParams wrong = params;
  wrong.temperature = 1.15f;
  int cells = 0;
  const double chi = ChiSquare(Draw(row, params, 8000), Exact(row, wrong), &cells);
  EXPECT_GT(chi, cells - 1 + 5 * std::sqrt(2.0 * (cells - 1)));
}

TEST_F(SamplerTest, TinyTopPAndMinPOfOneAreGreedy) {
  const std::vector<float> row = {0.1f, 2.0f, 1.9f, -1.0f};
  SamplerParams top_p;
  top_p.top_p = 1e-6f;
  SamplerParams min_p;
  min_p.min_p = 1;
  SamplerParams top_k;
  top_k.top_k = 1;
  SamplerParams zero;
  zero.temperature = 0;
  for (const SamplerParams& params : {top_p, min_p, top_k, zero}) {
    for (int32_t id : Draw(row, params, 50)) EXPECT_EQ(id, 1);
  }
}

TEST_F(SamplerTest, EqualLogitsGoToTheLowerId) {
  SamplerParams greedy;
  greedy.temperature = 0;
  EXPECT_EQ(Draw({1, 3, 3, 3}, greedy, 1)[0], 1);
  SamplerParams two;
  two.top_k = 2;
  for (int32_t id : Draw({1, 3, 3, 3}, two, 50)) EXPECT_TRUE(id == 1 || id == 2) << id;
}

// A row with what AppendEdits says done to it.
std::vector<float> Edit(std::vector<float> row, const SamplerParams& params, const TokenHistory& history,
                        int64_t output_tokens, int32_t vocab_begin = 0) {
  std::vector<LogitEdit> edits = {{-7}};  // of another row
  AppendEdits(params, history, output_tokens, {vocab_begin, vocab_begin + static_cast<int64_t>(row.size())}, &edits);
  EXPECT_EQ(edits[0].id, -7);
  std::vector<int32_t> ids;
  for (size_t i = 1; i < edits.size(); ++i) {
    ids.push_back(edits[i].id);
    float& logit = row.at(static_cast<size_t>(edits[i].id - vocab_begin));
    logit = Edited(logit, edits[i]);
  }
  std::sort(ids.begin(), ids.end());
  EXPECT_EQ(std::adjacent_find(ids.begin(), ids.end()), ids.end()) << "an id twice";
  return row;
}

TEST_F(SamplerTest, PenaltiesBiasAndMaskFollowVllmsFormulas) {
  std::vector<float> row = {2, -2, 1, 1, 1, 0};
  SamplerParams params;
  params.repetition_penalty = 2;
  params.frequency_penalty = 0.25f;
  params.presence_penalty = 0.5f;
  params.logit_bias = {{5, 3}};
  params.masked_ids = {4};
  params.min_tokens = 2;
  TokenHistory history;
  history.AddPrompt(0);
  history.AddPrompt(1);
  history.AddOutput(2);
  history.AddOutput(2);
  std::vector<float> edited = Edit(row, params, history, 1);
  EXPECT_EQ(edited[0], 1.0f);                     // positive: divided
  EXPECT_EQ(edited[1], -4.0f);                    // negative: multiplied
  EXPECT_EQ(edited[2], 0.5f - 2 * 0.25f - 0.5f);  // then frequency twice, presence once
  EXPECT_EQ(edited[3], 1.0f);
  EXPECT_EQ(edited[4], -std::numeric_limits<float>::infinity());
  EXPECT_EQ(edited[5], 3.0f);
  edited = Edit(row, params, history, 2);
  EXPECT_EQ(edited[4], 1.0f);  // min_tokens reached
  // A slice of the vocabulary, as a rank has it.
  EXPECT_EQ(Edit({1, 1, 0}, params, history, 1, /*vocab_begin=*/3),
            (std::vector<float>{1, -std::numeric_limits<float>::infinity(), 3}));
  SamplerParams greedy = params;
  greedy.temperature = 0;
  EXPECT_EQ(Draw(row, greedy, 1, history, 1)[0], 5);
}

TEST_F(SamplerTest, AnIdThatIsBiasedSeenAndMaskedIsEditedOnce) {
  SamplerParams params;
  params.repetition_penalty = 2;
  params.presence_penalty = 0.5f;
  params.logit_bias = {{1, 3}, {2, -9}, {5, 4}};
  params.masked_ids = {5, 0, 5, 3};
  params.min_tokens = 2;
  TokenHistory history;
  for (const int32_t id : {5, 2, 3, 2}) history.AddOutput(id);
  constexpr float kMasked = -std::numeric_limits<float>::infinity();
  EXPECT_EQ(Edit({1, 1, 1, 1, 1, std::nanf("")}, params, history, 1),
            (std::vector<float>{kMasked, 4, -8 * 2 - 0.5f, kMasked, 1, kMasked}));
  EXPECT_EQ(Edit({1, 1, 1, 1, 1, 1}, params, history, 2),
            (std::vector<float>{1, 4, -8 * 2 - 0.5f, 0.5f - 0.5f, 1, 5.0f / 2 - 0.5f}));
}

TEST_F(SamplerTest, LogprobsAreOfTheRawLogits) {
  const std::vector<float> row = {1, 2, 3, 0};
  const double lse = std::log(std::exp(1) + std::exp(2) + std::exp(3) + 1);
  SamplerParams params;
  params.temperature = 0;
  params.logprobs = 2;
  params.logit_bias = {{3, 100}};
  TokenHistory history;
  auto sampler = Sampler::Create(ctx_, {.vocab = 4, .max_rows = 1, .max_jobs = 1});
  ASSERT_TRUE(sampler.ok());
  const SampleJob job{0, &params, &history, 0, 0, 0, -1};
  const ScoreJob score{0, 0, 1};
  EXPECT_TRUE(sampler->Run(row.data(), 1, {&job, 1}, {&score, 1}, &tokens_, &scores_).ok());
  ASSERT_EQ(tokens_[0].id, 3);
  ASSERT_TRUE(tokens_[0].logprobs.has_value());
  EXPECT_NEAR(tokens_[0].logprobs->chosen.logprob, 0 - lse, 1e-5);
  ASSERT_EQ(tokens_[0].logprobs->top.size(), 2u);
  EXPECT_EQ(tokens_[0].logprobs->top[0].id, 2);
  EXPECT_NEAR(tokens_[0].logprobs->top[0].logprob, 3 - lse, 1e-5);
  EXPECT_EQ(tokens_[0].logprobs->top[1].id, 1);
  ASSERT_EQ(scores_.size(), 1u);
  EXPECT_NEAR(scores_[0].chosen.logprob, 1 - lse, 1e-5);
  EXPECT_EQ(scores_[0].top[0].id, 2);
}

TEST_F(SamplerTest, ForcedTokensAreTakenAndScored) {
  const std::vector<float> row = {1, 2, 3, 0};
  SamplerParams params;
  params.logprobs = 0;
  TokenHistory history;
  auto sampler = Sampler::Create(ctx_, {.vocab = 4, .max_rows = 1, .max_jobs = 1});
  ASSERT_TRUE(sampler.ok());
  const SampleJob job{0, &params, &history, 0, 0, 0, 1};
  EXPECT_TRUE(sampler->Run(row.data(), 1, {&job, 1}, {}, &tokens_, &scores_).ok());
  EXPECT_EQ(tokens_[0].id, 1);
  const double lse = std::log(std::exp(1) + std::exp(2) + std::exp(3) + 1);
  EXPECT_NEAR(tokens_[0].logprobs->chosen.logprob, 2 - lse, 1e-5);
  EXPECT_TRUE(tokens_[0].logprobs->top.empty());
}

TEST_F(SamplerTest, RowsOfNansAreReported) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  SamplerParams greedy, drawn;
  greedy.temperature = 0;
  TokenHistory history;
  const std::vector<float> row(200, nan);
  auto sampler = Sampler::Create(ctx_, {.vocab = 200, .max_rows = 1, .max_jobs = 2});
  ASSERT_TRUE(sampler.ok());
  const SampleJob jobs[] = {{0, &greedy, &history, 0, 0, 0, -1}, {0, &drawn, &history, 0, 0, 0, -1}};
  EXPECT_TRUE(sampler->Run(row.data(), 1, jobs, {}, &tokens_, &scores_).ok());
  EXPECT_FALSE(tokens_[0].finite);
  EXPECT_FALSE(tokens_[1].finite);
}

TEST_F(SamplerTest, ADrawDoesNotDependOnTheOtherRows) {
  const std::vector<float> one = Row(100, 3);
  std::vector<float> rows;
  for (int r = 0; r < 3; ++r) rows.insert(rows.end(), one.begin(), one.end());
  rows[5] += 1;  // rows differ
  SamplerParams params, other;
  params.seed = 7;
  other.temperature = 0;
  other.logprobs = 3;
  TokenHistory history;
  auto sampler = Sampler::Create(ctx_, {.vocab = 100, .max_rows = 3, .max_jobs = 3});
  ASSERT_TRUE(sampler.ok());
  for (int position = 0; position < 20; ++position) {
    const SampleJob jobs[] = {{0, &other, &history, 0, position, 0, -1},
                              {2, &params, &history, 1, position, 0, -1},
                              {1, &params, &history, 0, position, 0, -1}};
    EXPECT_TRUE(sampler->Run(rows.data(), 3, jobs, {}, &tokens_, &scores_).ok());
    const int32_t together = tokens_[2].id;
    const SampleJob alone{0, &params, &history, 0, position, 0, -1};
    EXPECT_TRUE(sampler->Run(one.data(), 1, {&alone, 1}, {}, &tokens_, &scores_).ok());
    EXPECT_EQ(tokens_[0].id, together);
  }
}

}  // namespace
}  // namespace quire

// Draws over several ranks' slices of the vocabulary against the same draws of one rank that has it all.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <mutex>
#include <random>
#include <thread>

#include "core/base/thread_pool.h"
#include "core/engine/sampler.h"
#include "parallel/counted_communicator.h"
#include "parallel/threads_communicator.h"

namespace quire {
namespace {

struct Job {
  SamplerParams params;
  TokenHistory history;
  int64_t position = 0;
  int64_t output_tokens = 3;
  int32_t forced = -1;
};

struct Answer {
  std::vector<SampledToken> tokens;
  std::vector<TokenLogprobs> scores;
  std::vector<int64_t> sums;
  int64_t gathers = 0;
  bool ranks_agree = true;
};

std::vector<Range> Deal(int64_t vocab, int ranks) {
  std::vector<Range> slices;
  for (int r = 0; r < ranks; ++r) {
    const auto plan = ShardPlan::Create({ranks, ranks, 1, vocab, 1}, ranks, r);
    EXPECT_TRUE(plan.ok()) << plan.status().ToString();
    slices.push_back(plan->vocab);
  }
  return slices;
}

bool Same(const SampledToken& a, const SampledToken& b) {
  if (a.id != b.id || a.finite != b.finite || a.logprobs.has_value() != b.logprobs.has_value()) return false;
  if (!a.logprobs) return true;
  if (a.logprobs->chosen.logprob != b.logprobs->chosen.logprob || a.logprobs->top.size() != b.logprobs->top.size()) {
    return false;
  }
  for (size_t i = 0; i < a.logprobs->top.size(); ++i) {
    if (a.logprobs->top[i].id != b.logprobs->top[i].id || a.logprobs->top[i].logprob != b.logprobs->top[i].logprob) {
      return false;
    }
  }
  return true;
}

// rows: [jobs][vocab], one a job; scores of each row for the given tokens.
Answer RunRanks(const std::vector<float>& rows, int64_t vocab, const std::vector<Job>& jobs,
                const std::vector<ScoreJob>& scores, int ranks) {
  const std::vector<Range> slices = Deal(vocab, ranks);
  auto comms = MakeThreadCommunicators(ranks);
  const int count = static_cast<int>(rows.size() / vocab);
  std::vector<Answer> answers(ranks);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      ThreadPool pool(1);
      Context ctx;
      ctx.pool = &pool;
      CountedCommunicator comm(comms[rank].get());
      auto sampler = Sampler::Create(ctx, {.vocab = vocab,
                                           .max_rows = count,
                                           .max_jobs = static_cast<int>(jobs.size()) + 1,
                                           .slices = slices,
                                           .comm = &comm});
      ASSERT_TRUE(sampler.ok());
      const Range mine = slices[rank];
      std::vector<float> local;
      for (int row = 0; row < count; ++row) {
        const auto begin = rows.begin() + row * vocab;
        local.insert(local.end(), begin + mine.begin, begin + mine.end);
      }
      std::vector<SampleJob> sample;
      for (size_t i = 0; i < jobs.size(); ++i) {
        sample.push_back({static_cast<int32_t>(i), &jobs[i].params, &jobs[i].history, 0, jobs[i].position,
                          jobs[i].output_tokens, jobs[i].forced});
      }
      Answer& answer = answers[rank];
      answer.sums = {rank + 1, int64_t{1} << 40};
      const Status status =
          sampler->Run(local.data(), count, sample, scores, &answer.tokens, &answer.scores, answer.sums);
      EXPECT_TRUE(status.ok()) << status.ToString();
      answer.gathers = comm.stats().calls();
      EXPECT_EQ(comm.stats().all_gathers, comm.stats().calls());
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const Answer& answer : answers) {
    answers[0].ranks_agree &= answer.gathers == answers[0].gathers && answer.sums == answers[0].sums;
    for (size_t i = 0; i < jobs.size(); ++i) answers[0].ranks_agree &= Same(answer.tokens[i], answers[0].tokens[i]);
  }
  return answers[0];
}

void ExpectNear(const TokenLogprobs& a, const TokenLogprobs& b) {
  EXPECT_EQ(a.chosen.id, b.chosen.id);
  EXPECT_NEAR(a.chosen.logprob, b.chosen.logprob, 2e-6 * (1 + std::abs(b.chosen.logprob)));
  ASSERT_EQ(a.top.size(), b.top.size());
  for (size_t i = 0; i < a.top.size(); ++i) {
    EXPECT_EQ(a.top[i].id, b.top[i].id);
    EXPECT_NEAR(a.top[i].logprob, b.top[i].logprob, 2e-6 * (1 + std::abs(b.top[i].logprob)));
  }
}

void ExpectAlike(const Answer& many, const Answer& one) {
  EXPECT_TRUE(many.ranks_agree);
  ASSERT_EQ(many.tokens.size(), one.tokens.size());
  for (size_t i = 0; i < one.tokens.size(); ++i) {
    SCOPED_TRACE("job " + std::to_string(i));
    EXPECT_EQ(many.tokens[i].finite, one.tokens[i].finite);
    if (one.tokens[i].finite) {
      EXPECT_EQ(many.tokens[i].id, one.tokens[i].id);
    }
    ASSERT_EQ(many.tokens[i].logprobs.has_value(), one.tokens[i].logprobs.has_value());
    if (one.tokens[i].logprobs) ExpectNear(*many.tokens[i].logprobs, *one.tokens[i].logprobs);
  }
  ASSERT_EQ(many.scores.size(), one.scores.size());
  for (size_t i = 0; i < one.scores.size(); ++i) ExpectNear(many.scores[i], one.scores[i]);
}

std::vector<float> RandomRows(int rows, int64_t vocab, float spread, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> out(static_cast<size_t>(rows * vocab));
  for (float& x : out) x = normal(rng);
  return out;
}

TEST(SamplerOfRanks, GreedyAndTopKAreThoseOfOneRankWithOneGather) {
  for (const int64_t vocab : {int64_t{1000}, int64_t{97}, int64_t{8}}) {
    std::vector<Job> jobs(6);
    jobs[0].params.temperature = 0;
    jobs[1].params = {.temperature = 0.7f, .top_k = 40, .seed = 11, .logprobs = 4};
    jobs[2].params = {.temperature = 1.5f, .top_k = 64, .top_p = 0.9f, .seed = 12};
    jobs[3].params = {.temperature = 0, .repetition_penalty = 1.5f, .frequency_penalty = 0.3f, .logprobs = 0};
    for (int32_t id = 0; id < 8; ++id) jobs[3].history.AddPrompt(id), jobs[3].history.AddOutput(id / 2);
    jobs[4].params = {.temperature = 0, .logprobs = 5};
    jobs[4].forced = static_cast<int32_t>(vocab - 1);
    jobs[5].params = {.temperature = 0.5f, .top_k = 3, .seed = 13, .min_tokens = 9};
    jobs[5].params.logit_bias = {{0, 3.0f}, {static_cast<int32_t>(vocab / 2), 4.0f}};
    jobs[5].params.masked_ids = {1, 2, static_cast<int32_t>(vocab - 2)};
    for (uint32_t seed = 0; seed < 6; ++seed) {
      const std::vector<float> rows = RandomRows(6, vocab, 3, seed);
      for (Job& job : jobs) job.position = seed;
      const std::vector<ScoreJob> scores = {{0, static_cast<int32_t>(vocab / 3), 3}, {5, 0, 0}};
      const Answer one = RunRanks(rows, vocab, jobs, scores, 1);
      EXPECT_EQ(one.gathers, 0);
      for (const int ranks : {2, 3, 4, 8}) {
        SCOPED_TRACE("vocabulary " + std::to_string(vocab) + ", " + std::to_string(ranks) + " ranks, seed " +
                     std::to_string(seed));
        const Answer many = RunRanks(rows, vocab, jobs, scores, ranks);
        ExpectAlike(many, one);
        EXPECT_EQ(many.gathers, 1);
        EXPECT_EQ(many.sums, (std::vector<int64_t>{ranks * (ranks + 1) / 2, ranks * (int64_t{1} << 40)}));
      }
    }
  }
}

TEST(SamplerOfRanks, FlatDistributionsGatherMoreUntilTheDrawIsSettled) {
  constexpr int64_t kVocab = 3000;
  std::vector<Job> jobs(4);
  jobs[0].params = {.temperature = 1, .top_p = 0.95f, .seed = 1, .logprobs = 2};
  jobs[1].params = {.temperature = 2, .seed = 2};
  jobs[2].params = {.temperature = 1, .min_p = 0.001f, .seed = 3, .logprobs = 0};
  jobs[3].params = {.temperature = 1, .top_k = 500, .seed = 4};
  int64_t most = 0;
  for (uint32_t seed = 0; seed < 8; ++seed) {
    const std::vector<float> rows = RandomRows(4, kVocab, 0.3f, seed);
    for (Job& job : jobs) job.position = seed;
    const Answer one = RunRanks(rows, kVocab, jobs, {}, 1);
    for (const int ranks : {2, 5}) {
      SCOPED_TRACE(std::to_string(ranks) + " ranks, seed " + std::to_string(seed));
      const Answer many = RunRanks(rows, kVocab, jobs, {}, ranks);
      ExpectAlike(many, one);
      most = std::max(most, many.gathers);
    }
  }
  EXPECT_EQ(most, 3);  // 64, 1024, all
}

TEST(SamplerOfRanks, EqualLogitsGoToTheLowerIdWhereverTheyLie) {
  std::vector<float> row(40, 1.0f);
  std::vector<Job> jobs(1);
  jobs[0].params = {.temperature = 0, .logprobs = 40};
  for (const int ranks : {1, 2, 3, 7}) {
    const Answer answer = RunRanks(row, 40, jobs, {}, ranks);
    EXPECT_EQ(answer.tokens[0].id, 0);
    const auto& top = answer.tokens[0].logprobs->top;
    ASSERT_EQ(top.size(), 40u);
    for (int i = 0; i < 40; ++i) {
      EXPECT_EQ(top[i].id, i);
      EXPECT_NEAR(top[i].logprob, -std::log(40.0), 1e-6);
    }
  }
}

TEST(SamplerOfRanks, RowsThatAreNotFiniteAreSeenByAll) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  std::vector<Job> jobs(3);
  jobs[0].params.temperature = 0;
  jobs[1].params = {.temperature = 1, .top_k = 5, .seed = 3};
  jobs[2].params.temperature = 0;
  std::vector<float> rows(3 * 20, 0.5f);
  rows[19] = kInf;                                // on the last rank only
  for (int i = 20; i < 40; ++i) rows[i] = -kInf;  // nothing can be drawn
  for (int i = 40; i < 50; ++i) rows[i] = -kInf;  // a rank with nothing, others with something
  for (const int ranks : {1, 2, 4}) {
    const Answer answer = RunRanks(rows, 20, jobs, {}, ranks);
    EXPECT_TRUE(answer.ranks_agree);
    EXPECT_FALSE(answer.tokens[0].finite);
    EXPECT_FALSE(answer.tokens[1].finite);
    EXPECT_TRUE(answer.tokens[2].finite);
    EXPECT_EQ(answer.tokens[2].id, 10);
  }
}

TEST(SamplerOfRanks, RanksThatDrewDifferentlyAreFoundOut) {
  auto comms = MakeThreadCommunicators(2);
  std::vector<Status> ends(2);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < 2; ++rank) {
    threads.emplace_back([&, rank] {
      ThreadPool pool(1);
      Context ctx;
      ctx.pool = &pool;
      auto sampler = Sampler::Create(
          ctx, {.vocab = 8, .max_rows = 1, .max_jobs = 1, .slices = Deal(8, 2), .comm = comms[rank].get()});
      // The ranks were told to force different tokens, as if one had computed otherwise.
      Job job;
      job.params.temperature = 0;
      job.forced = rank;
      const std::vector<float> logits = {1, 2, 3, 4};
      std::vector<SampledToken> tokens;
      std::vector<TokenLogprobs> scores;
      const SampleJob sample{0, &job.params, &job.history, 0, 0, 0, job.forced};
      EXPECT_TRUE(sampler->Run(logits.data(), 1, {&sample, 1}, {}, &tokens, &scores).ok());
      ends[rank] = sampler->Run(logits.data(), 1, {&sample, 1}, {}, &tokens, &scores);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const Status& end : ends) {
    EXPECT_EQ(end.code(), StatusCode::kInternal);
    EXPECT_NE(end.message().find("drew other tokens"), std::string::npos) << end.ToString();
  }
}

}  // namespace
}  // namespace quire

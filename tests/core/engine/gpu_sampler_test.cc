// Draws from logits in a GPU's memory against the same draws from the host's: the same tokens under every parameter, and which
// rows come to the host whole. Built twice, as gpu_engine_test.cc.
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <thread>

#include "core/base/device_memory.h"
#include "core/base/thread_pool.h"
#include "core/engine/sampler.h"
#include "kernels/device_session.h"
#include "parallel/threads_communicator.h"

namespace quire {
namespace {

constexpr Device kGpu{DeviceKind::kCuda, 0};

struct Job {
  SamplerParams params;
  TokenHistory history;
  int64_t output_tokens = 3;
  int32_t forced = -1;
};

struct Answer {
  std::vector<SampledToken> tokens;
  std::vector<TokenLogprobs> scores;
  int64_t whole_rows = 0, searches_again = 0;
};

// Row i of the logits is job i's. One rank of `slices`, alone where comm is null; several steps, at positions 0, 1, ….
std::vector<Answer> RunRank(Device device, const std::vector<std::vector<float>>& steps, int64_t vocab,
                            const std::vector<Job>& jobs, const std::vector<ScoreJob>& scores,
                            const std::vector<Range>& slices, Communicator* comm) {
  ThreadPool pool(1);
  Context ctx;
  ctx.pool = &pool;
  std::unique_ptr<DeviceSession> session;
  if (device.kind != DeviceKind::kCpu) {
    auto made = DeviceSession::Create(device);
    EXPECT_TRUE(made.ok()) << made.status().ToString();
    session = std::move(made).value();
    ctx.device = device;
    ctx.session = session.get();
    ctx.stream = session->stream();
  }
  const int rows = static_cast<int>(jobs.size());
  auto sampler = Sampler::Create(
      ctx, {.vocab = vocab, .max_rows = rows, .max_jobs = rows, .slices = slices, .comm = comm});
  EXPECT_TRUE(sampler.ok()) << sampler.status().ToString();
  const Range mine = slices[comm == nullptr ? 0 : static_cast<size_t>(comm->rank())];
  std::vector<Answer> answers;
  for (size_t step = 0; step < steps.size(); ++step) {
    std::vector<float> local;
    for (int row = 0; row < rows; ++row) {
      const auto begin = steps[step].begin() + row * vocab;
      local.insert(local.end(), begin + mine.begin, begin + mine.end);
    }
    std::vector<SampleJob> sample;
    for (int i = 0; i < rows; ++i) {
      const Job& job = jobs[static_cast<size_t>(i)];
      sample.push_back({i, &job.params, &job.history, i % 3, static_cast<int64_t>(step), job.output_tokens, job.forced});
    }
    Answer& answer = answers.emplace_back();
    const auto run = [&](const float* logits) {
      EXPECT_TRUE(sampler->Fetch(logits, rows, sample, scores).ok());
      if (session) {
        EXPECT_TRUE(session->Synchronize().ok());
      }
      const Status status = sampler->Run(logits, rows, sample, scores, &answer.tokens, &answer.scores);
      EXPECT_TRUE(status.ok()) << status.ToString();
    };
    if (session == nullptr) {
      run(local.data());
    } else {
      auto there = Buffer::Create(local.size() * sizeof(float), device);
      EXPECT_TRUE(there.ok());
      EXPECT_TRUE(CopyToDevice(device, there->data(), local.data(), local.size() * sizeof(float), ctx.stream).ok());
      run(reinterpret_cast<const float*>(there->data()));
    }
    answer.whole_rows = sampler->local().whole_rows();
    answer.searches_again = sampler->local().searches_again();
  }
  return answers;
}

// The answers of rank 0; the others drew the same, or the sampler would have said so.
std::vector<Answer> RunRanks(const std::vector<std::vector<float>>& steps, int64_t vocab, const std::vector<Job>& jobs,
                             const std::vector<ScoreJob>& scores, int ranks) {
  std::vector<Range> slices;
  for (int r = 0; r < ranks; ++r) slices.push_back({vocab * r / ranks, vocab * (r + 1) / ranks});
  auto comms = MakeThreadCommunicators(ranks, {.timeout = std::chrono::minutes(10)});  // emulated on a busy machine
  std::vector<std::vector<Answer>> answers(static_cast<size_t>(ranks));
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r) {
    threads.emplace_back([&, r] {
      const auto i = static_cast<size_t>(r);
      answers[i] = RunRank(kGpu, steps, vocab, jobs, scores, slices, comms[i].get());
    });
  }
  for (std::thread& thread : threads) thread.join();
  return answers[0];
}

void ExpectNear(const TokenLogprobs& a, const TokenLogprobs& b) {
  EXPECT_EQ(a.chosen.id, b.chosen.id);
  EXPECT_NEAR(a.chosen.logprob, b.chosen.logprob, 4e-6 * (1 + std::abs(b.chosen.logprob)));
  ASSERT_EQ(a.top.size(), b.top.size());
  for (size_t i = 0; i < a.top.size(); ++i) {
    EXPECT_EQ(a.top[i].id, b.top[i].id);
    EXPECT_NEAR(a.top[i].logprob, b.top[i].logprob, 4e-6 * (1 + std::abs(b.top[i].logprob)));
  }
}

void ExpectAlike(const std::vector<Answer>& got, const std::vector<Answer>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t step = 0; step < want.size(); ++step) {
    const Answer& a = got[step];
    const Answer& b = want[step];
    ASSERT_EQ(a.tokens.size(), b.tokens.size());
    for (size_t i = 0; i < b.tokens.size(); ++i) {
      SCOPED_TRACE("step " + std::to_string(step) + ", job " + std::to_string(i));
      EXPECT_EQ(a.tokens[i].finite, b.tokens[i].finite);
      if (b.tokens[i].finite) {
        EXPECT_EQ(a.tokens[i].id, b.tokens[i].id);
      }
      ASSERT_EQ(a.tokens[i].logprobs.has_value(), b.tokens[i].logprobs.has_value());
      if (b.tokens[i].logprobs) ExpectNear(*a.tokens[i].logprobs, *b.tokens[i].logprobs);
    }
    ASSERT_EQ(a.scores.size(), b.scores.size());
    for (size_t i = 0; i < b.scores.size(); ++i) ExpectNear(a.scores[i], b.scores[i]);
  }
}

std::vector<std::vector<float>> RandomSteps(int steps, size_t jobs, int64_t vocab, float spread) {
  std::mt19937 random(static_cast<uint32_t>(vocab));
  std::normal_distribution<float> normal(0, spread);
  std::vector<std::vector<float>> out(static_cast<size_t>(steps));
  for (auto& step : out) {
    step.resize(jobs * static_cast<size_t>(vocab));
    for (float& x : step) x = normal(random);
  }
  return out;
}

class GpuSampler : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string why;
    if (CudaDeviceCount(&why) == 0) GTEST_SKIP() << why;
  }
};

// A job for each parameter, and one for all of them; half of them report log-probabilities.
std::vector<Job> EveryParameter(int32_t vocab) {
  std::vector<Job> jobs;
  const auto add = [&](const SamplerParams& params) -> Job& {
    Job& job = jobs.emplace_back();
    job.params = params;
    job.params.seed = 100 + jobs.size();
    if (jobs.size() % 2 == 0) job.params.logprobs = static_cast<int32_t>(jobs.size() % 5);
    for (int32_t i = 0; i < vocab; i += 3) job.history.AddPrompt(i);
    for (int32_t i = 0; i < vocab; i += 7) job.history.AddOutput(i), job.history.AddOutput(i / 2);
    return job;
  };
  add({.temperature = 0});
  add({.temperature = 0.7f, .top_k = 40});
  add({.temperature = 1, .top_k = 1});
  add({.temperature = 1.3f, .top_k = 64, .top_p = 0.9f});
  add({.temperature = 0.5f, .top_p = 0.8f});
  add({.temperature = 0.8f, .min_p = 0.2f});
  add({.temperature = 0, .repetition_penalty = 1.5f});
  add({.temperature = 0, .presence_penalty = 1.5f});
  add({.temperature = 0, .frequency_penalty = -0.7f});
  add({.temperature = 0}).params.logit_bias = {{0, 3.0f}, {vocab / 2, 100.0f}, {vocab - 1, -100.0f}};
  Job& masked = add({.temperature = 0, .min_tokens = 9});
  for (int32_t i = 0; i < vocab; ++i) {
    if (i % 5 != 0) masked.params.masked_ids.push_back(i);
  }
  add({.temperature = 1.5f, .top_k = 20}).forced = vocab - 2;
  add({.temperature = 0}).forced = 1;
  Job& all = add({.temperature = 0.6f, .top_k = 50, .top_p = 0.95f, .min_p = 0.01f, .repetition_penalty = 0.8f,
                  .presence_penalty = -0.3f, .frequency_penalty = 0.2f, .min_tokens = 4});
  all.params.masked_ids = {3, 0, 2, vocab - 1};
  all.params.logit_bias = {{0, 50.0f}, {1, 2.0f}, {3, 40.0f}, {vocab / 3, 2.5f}};
  return jobs;
}

TEST_F(GpuSampler, EveryParameterDrawsTheTokensOfTheCpuAndNoRowComesWhole) {
  for (const int64_t vocab : {int64_t{97}, int64_t{5001}}) {
    SCOPED_TRACE("vocabulary " + std::to_string(vocab));
    const std::vector<Job> jobs = EveryParameter(static_cast<int32_t>(vocab));
    const std::vector<ScoreJob> scores = {{0, static_cast<int32_t>(vocab / 3), 3}, {5, 0, 0}, {11, 96, 7}};
    const auto steps = RandomSteps(vocab < 1000 ? 4 : 2, jobs.size(), vocab, 6);
    const auto want = RunRank({}, steps, vocab, jobs, scores, {{0, vocab}}, nullptr);
    const auto got = RunRank(kGpu, steps, vocab, jobs, scores, {{0, vocab}}, nullptr);
    ExpectAlike(got, want);
    EXPECT_EQ(got.back().whole_rows, 0);
    EXPECT_EQ(got.back().searches_again, 0);
    for (const int ranks : {2, 3}) {
      if (ranks == 3 && vocab > 1000) continue;  // the emulator isn't quick
      SCOPED_TRACE(std::to_string(ranks) + " ranks");
      const auto many = RunRanks(steps, vocab, jobs, scores, ranks);
      ExpectAlike(many, want);
      EXPECT_EQ(many.back().whole_rows, 0);
    }
  }
}

// A slice may have fewer tokens than are asked for, or none.
TEST_F(GpuSampler, SlicesOfFewTokensDrawWhatOneRankDraws) {
  std::vector<Job> jobs(4);
  jobs[0].params = {.temperature = 0, .logprobs = 5};
  jobs[1].params = {.temperature = 2, .seed = 5, .logprobs = 0};
  jobs[2].params = {.temperature = 1, .top_p = 0.9f, .repetition_penalty = 2, .seed = 6};
  for (int32_t id = 0; id < 5; ++id) jobs[2].history.AddPrompt(id);
  jobs[3].params = {.temperature = 0, .logprobs = 1};
  jobs[3].forced = 4;
  const auto steps = RandomSteps(4, jobs.size(), 5, 2);
  const auto want = RunRank({}, steps, 5, jobs, {}, {{0, 5}}, nullptr);
  for (const int ranks : {1, 2, 7}) {
    SCOPED_TRACE(std::to_string(ranks) + " ranks");
    ExpectAlike(RunRanks(steps, 5, jobs, {}, ranks), want);
  }
}

// 64 candidates, then 1,024 on the GPU, then the row: of those draws alone that aren't settled.
TEST_F(GpuSampler, FlatDistributionsAskAgainAndOnlyTheFlattestComeWhole) {
  constexpr int64_t kVocab = 3000;
  std::vector<Job> jobs(4);
  jobs[0].params = {.temperature = 0.1f, .top_p = 0.95f, .seed = 1, .logprobs = 2};
  jobs[1].params = {.temperature = 1, .top_k = 500, .repetition_penalty = 1.1f, .seed = 4, .logprobs = 0};
  for (int32_t id = 0; id < 3000; id += 5) jobs[1].history.AddPrompt(id);
  jobs[2].params = {.temperature = 1, .top_k = 64, .seed = 5};
  jobs[3].params.temperature = 0;
  const auto steps = RandomSteps(4, jobs.size(), kVocab, 0.3f);
  const auto run = [&](int ranks) {
    const auto want = RunRank({}, steps, kVocab, jobs, {}, {{0, kVocab}}, nullptr);
    const auto got = ranks == 1 ? RunRank(kGpu, steps, kVocab, jobs, {}, {{0, kVocab}}, nullptr)
                                : RunRanks(steps, kVocab, jobs, {}, ranks);
    ExpectAlike(got, want);
    EXPECT_EQ(got.back().searches_again, want.back().searches_again);
    return got.back();
  };
  Answer last = run(1);
  EXPECT_EQ(last.searches_again, 4);  // job 1, every time
  EXPECT_EQ(last.whole_rows, 0);
  last = run(2);
  EXPECT_EQ(last.whole_rows, 0);
  // Half of this one's mass lies behind the 1,024th candidate.
  jobs[3].params = {.temperature = 1, .repetition_penalty = 1.2f, .seed = 7, .logprobs = 1};
  for (int32_t id = 0; id < 3000; id += 2) jobs[3].history.AddOutput(id);
  last = run(1);
  EXPECT_GT(last.whole_rows, 0);
  EXPECT_LT(last.whole_rows, 4);
  // A rank's slice may still fit, where the whole vocabulary doesn't.
  last = run(3);
  EXPECT_EQ(last.whole_rows, 0);
}

TEST_F(GpuSampler, MoreLogprobsThanTheKernelGivesComeFromWholeRows) {
  constexpr int64_t kVocab = 3000;
  std::vector<Job> jobs(3);
  jobs[0].params = {.temperature = 0, .logprobs = 2000};
  jobs[1].params = {.temperature = 1, .presence_penalty = 0.5f, .seed = 3, .logprobs = 1};
  jobs[1].history.AddOutput(17);
  jobs[2].params = {.temperature = 0, .logprobs = 0};
  jobs[2].forced = 2999;
  const auto steps = RandomSteps(2, jobs.size(), kVocab, 0.3f);
  const auto want = RunRank({}, steps, kVocab, jobs, {}, {{0, kVocab}}, nullptr);
  const auto got = RunRank(kGpu, steps, kVocab, jobs, {}, {{0, kVocab}}, nullptr);
  ExpectAlike(got, want);
  EXPECT_EQ(got.back().whole_rows, 6);
  ExpectAlike(RunRanks(steps, kVocab, jobs, {}, 2), want);
}

TEST_F(GpuSampler, RowsThatAreNotFiniteAreSeen) {
  constexpr float kInf = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();
  std::vector<Job> jobs(5);
  for (Job& job : jobs) job.params = {.temperature = 1, .top_k = 5, .seed = 3};
  jobs[0].params.temperature = 0;
  jobs[4].params.min_tokens = 9;
  for (int32_t id = 0; id < 20; ++id) jobs[4].params.masked_ids.push_back(id);
  std::vector<float> rows(5 * 20, 0.5f);
  rows[19] = kInf;
  for (int i = 20; i < 40; ++i) rows[static_cast<size_t>(i)] = -kInf;
  for (int i = 40; i < 60; ++i) rows[static_cast<size_t>(i)] = kNan;
  rows[65] = kNan;
  for (const int ranks : {1, 2}) {
    const Answer answer = RunRanks({rows}, 20, jobs, {}, ranks)[0];
    EXPECT_FALSE(answer.tokens[0].finite);
    EXPECT_FALSE(answer.tokens[1].finite);
    EXPECT_FALSE(answer.tokens[2].finite);
    EXPECT_TRUE(answer.tokens[3].finite);
    EXPECT_NE(answer.tokens[3].id, 5);
    EXPECT_FALSE(answer.tokens[4].finite);  // all masked
  }
}

}  // namespace
}  // namespace quire

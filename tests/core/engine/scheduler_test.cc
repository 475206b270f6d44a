// The scheduler without a model: plans are checked against what the books say, and tokens are made up.
#include "core/engine/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <vector>

namespace quire {
namespace {

CacheConfig Cache(int page_size, int window = 0) {
  CacheConfig config;
  config.page_size = page_size;
  config.metadata = true;
  config.groups.push_back({{0}, 1, 4, 4, 0, DType::kF32});
  if (window > 0) config.groups.push_back({{1}, 1, 4, 4, window, DType::kF32});
  return config;
}

// A scheduler and its requests; every plan is checked and played on tables as a rank would keep them.
class Bench {
 public:
  Bench(const CacheConfig& cache, int32_t pages, const SchedulerOptions& options) : cache_(cache), options_(options) {
    std::vector<GroupCapacity> capacity(cache.groups.size(), GroupCapacity{pages, pages});
    auto books = KvBooks::Create(cache, capacity, options.max_rows);
    EXPECT_TRUE(books.ok());
    scheduler_ = std::make_unique<Scheduler>(std::move(*books), options);
    tables_.resize(options.max_slots, std::vector<std::vector<int32_t>>(cache.groups.size()));
    limits_.slots = options.max_slots;
    limits_.cache_groups = static_cast<int32_t>(cache.groups.size());
    limits_.max_rows = options.max_rows;
    limits_.max_logit_rows = options.max_slots + options.max_prompt_logits;
    limits_.vocab = 1000;
    limits_.max_length = 1 << 20;
  }

  RequestState* Add(int prompt, int outputs, int priority = 0, int n = 1, int prompt_logprobs = -1) {
    auto state = std::make_unique<RequestState>();
    state->arrival = requests_.size();
    state->request.priority = priority;
    state->request.sampling.n = n;
    state->request.prompt_logprobs = prompt_logprobs;
    if (prompt_logprobs >= 0) state->prompt_logprobs.emplace_back();
    state->dense_length = state->output_begin = prompt;
    state->max_output = outputs;
    state->unfinished = n;
    state->sequences.push_back(std::make_unique<Sequence>());
    state->sequences[0]->request = state.get();
    state->sequences[0]->tokens.assign(prompt, 1);
    if (!scheduler_->CheckFits(*state).ok()) return nullptr;
    scheduler_->Enqueue(state->sequences[0].get());
    requests_.push_back(std::move(state));
    return requests_.back().get();
  }

  // One step. Returns the plan.
  const Scheduler::Planned& Step() {
    scheduler_->Plan(&planned_);
    const StepPlan& plan = planned_.plan;
    EXPECT_TRUE(plan.Check(limits_).ok()) << plan.Check(limits_).ToString();
    EXPECT_EQ(planned_.failed, nullptr);
    for (int32_t slot : plan.ends) {
      for (auto& table : tables_[slot]) table.clear();
    }
    for (const TableDelta& d : plan.table_deltas) {
      if (d.metadata != 0) continue;
      auto& table = tables_[d.slot][d.cache_group];
      table.resize(d.size, -1);
      std::copy_n(plan.table_values.begin() + d.begin, d.count, table.begin() + d.first);
    }
    std::set<int> slots;
    for (size_t i = 0; i < plan.chunks.size(); ++i) {
      const Sequence& sequence = *planned_.chunks[i];
      EXPECT_EQ(sequence.slot, plan.chunks[i].slot);
      EXPECT_TRUE(slots.insert(sequence.slot).second) << "two chunks of one slot";
      EXPECT_EQ(plan.chunks[i].start_pos + plan.chunks[i].rows, sequence.computed);
      EXPECT_EQ(plan.chunks[i].decode != 0, plan.chunks[i].start_pos >= sequence.request->dense_length);
      for (size_t g = 0; g < cache_.groups.size(); ++g) {
        EXPECT_EQ(tables_[sequence.slot][g], scheduler_->books().Table(sequence.kv, static_cast<int>(g)).pages)
            << "a rank's table differs from the books";
      }
    }
    scheduler_->CompleteForks();
    scheduler_->books().CheckInvariants();
    for (size_t i = 0; i < plan.scores.size(); ++i) {
      RequestState& request = *planned_.scores[i]->request;
      EXPECT_EQ(plan.scores[i].position, static_cast<int>(request.prompt_logprobs.size())) << "scores come in order";
      request.prompt_logprobs.emplace_back(TokenLogprobs{});
    }
    for (Sequence* sequence : planned_.samples) {
      sequence->tokens.push_back(2);
      if (sequence->output_tokens() < sequence->request->max_output) continue;
      scheduler_->Remove(sequence);
      --sequence->request->unfinished;
    }
    return planned_;
  }

  int Run(int most = 100000) {
    int steps = 0;
    while (!scheduler_->idle() && steps < most) {
      Step();
      ++steps;
    }
    EXPECT_TRUE(scheduler_->idle());
    for (int g = 0; g < scheduler_->books().num_cache_groups(); ++g) {
      EXPECT_EQ(scheduler_->books().pages(g).used(), 0);
      EXPECT_EQ(scheduler_->books().pages(g).reserved(), 0);
    }
    for (const auto& request : requests_) EXPECT_EQ(request->unfinished, 0);
    return steps;
  }

  Scheduler& scheduler() { return *scheduler_; }

 private:
  CacheConfig cache_;
  SchedulerOptions options_;
  PlanLimits limits_;
  std::unique_ptr<Scheduler> scheduler_;
  std::vector<std::unique_ptr<RequestState>> requests_;
  std::vector<std::vector<std::vector<int32_t>>> tables_;  // [slot][cache group] as a rank keeps them
  Scheduler::Planned planned_;
};

TEST(Scheduler, PromptsAreCutToTheRowBudgetAndDecodeRowsComeFirst) {
  Bench bench(Cache(4), 100, {.max_slots = 4, .max_rows = 8});
  RequestState* a = bench.Add(5, 4);
  const auto& first = bench.Step();
  ASSERT_EQ(first.plan.chunks.size(), 1u);
  EXPECT_EQ(first.plan.chunks[0].rows, 5);
  EXPECT_EQ(first.plan.samples.size(), 1u);
  RequestState* b = bench.Add(20, 2);
  const auto& second = bench.Step();
  ASSERT_EQ(second.plan.chunks.size(), 2u);
  EXPECT_EQ(second.chunks[0], a->sequences[0].get());
  EXPECT_EQ(second.plan.chunks[0].decode, 1);
  EXPECT_EQ(second.chunks[1], b->sequences[0].get());
  EXPECT_EQ(second.plan.chunks[1].rows, 7);
  EXPECT_EQ(second.plan.chunks[1].rope_length, 20);  // the whole prompt's, however it is cut
  EXPECT_EQ(second.plan.samples.size(), 1u);
  bench.Run();
}

TEST(Scheduler, AdmissionFollowsPriorityThenArrival) {
  Bench bench(Cache(4), 100, {.max_slots = 1, .max_rows = 64});
  RequestState* late = bench.Add(3, 1, /*priority=*/1);
  RequestState* first = bench.Add(3, 1);
  RequestState* second = bench.Add(3, 1);
  EXPECT_EQ(bench.Step().chunks[0]->request, first);
  EXPECT_EQ(bench.Step().chunks[0]->request, second);
  EXPECT_EQ(bench.Step().chunks[0]->request, late);
  bench.Run();
}

TEST(Scheduler, AStreamOfBetterPrioritiesHoldsARequestUpForABoundedTime) {
  Bench bench(Cache(4), 100, {.max_slots = 1, .max_rows = 64});
  RequestState* worse = bench.Add(3, 1, /*priority=*/2);
  int64_t waited = 0;
  for (; worse->unfinished > 0 && waited < 10 * kAgeingSteps; ++waited) {
    bench.Add(3, 1, /*priority=*/0);
    bench.Step();
  }
  // The first 513 go before it, those that came up to two priorities' worth of steps later; then it has its own step.
  EXPECT_EQ(waited, 2 * kAgeingSteps + 2);
  bench.Run();
}

TEST(Scheduler, WhenPagesRunOutTheLastInOrderIsPreemptedAndReplaysByDecodeRows) {
  Bench bench(Cache(1), 24, {.max_slots = 4, .max_rows = 16});
  RequestState* a = bench.Add(6, 14);
  RequestState* b = bench.Add(6, 14);
  bool replayed = false;
  int steps = 0;
  while (!bench.scheduler().idle() && ++steps < 500) {
    const auto& planned = bench.Step();
    for (size_t i = 0; i < planned.chunks.size(); ++i) {
      const PlanChunk& chunk = planned.plan.chunks[i];
      if (planned.chunks[i]->request == b && b->preemptions > 0 && chunk.decode != 0 &&
          std::find(planned.samples.begin(), planned.samples.end(), planned.chunks[i]) == planned.samples.end()) {
        replayed = true;
      }
    }
  }
  EXPECT_EQ(a->preemptions, 0);
  EXPECT_GT(b->preemptions, 0);
  EXPECT_TRUE(replayed);
  bench.Run();
}

TEST(Scheduler, SequencesWhoseFullLengthsFitRunTogether) {
  // Prompts that reserve their whole length at once, and ones that grow to it: 19 tokens in the cache, 5 pages each.
  for (const int prompt : {17, 2}) {
    for (const int window : {0, 6}) {
      SCOPED_TRACE("prompt " + std::to_string(prompt) + " window " + std::to_string(window));
      Bench bench(Cache(4, window), 4 * 5, {.max_slots = 4, .max_rows = 100});
      std::vector<RequestState*> requests;
      for (int i = 0; i < 3; ++i) requests.push_back(bench.Add(prompt, 20 - prompt));
      if (prompt == 2) {
        for (int i = 0; i < 16; ++i) bench.Step();  // three hold all their pages by now
      }
      requests.push_back(bench.Add(17, 3));
      bench.Step();
      EXPECT_EQ(bench.scheduler().running(), 4);
      bench.Run();
      for (const RequestState* request : requests) EXPECT_EQ(request->preemptions, 0);
    }
  }
}

TEST(Scheduler, ARequestThatCannotFitAloneIsRefused) {
  Bench bench(Cache(4), 4, {.max_slots = 2, .max_rows = 16});
  EXPECT_EQ(bench.Add(10, 8), nullptr);  // 17 tokens in the cache, room for 16
  EXPECT_NE(bench.Add(10, 7), nullptr);
  bench.Run();
}

TEST(Scheduler, SequencesForkFromOnePrefill) {
  Bench bench(Cache(4), 100, {.max_slots = 4, .max_rows = 16});
  RequestState* request = bench.Add(6, 5, 0, /*n=*/3);
  const auto& planned = bench.Step();
  EXPECT_EQ(planned.plan.chunks.size(), 1u);
  EXPECT_EQ(planned.plan.forks.size(), 2u);
  EXPECT_EQ(planned.plan.samples.size(), 3u);
  EXPECT_EQ(bench.scheduler().running(), 3);
  // Six tokens of four a page, the second page shared until it is written.
  EXPECT_EQ(bench.scheduler().books().pages(0).used(), 2);
  bench.Step();
  EXPECT_EQ(bench.scheduler().books().pages(0).used(), 4);
  EXPECT_EQ(request->preemptions, 0);
  bench.Run();
}

TEST(Scheduler, MoreSequencesThanSlotsRunOneAfterTheOther) {
  Bench bench(Cache(4), 100, {.max_slots = 2, .max_rows = 16});
  bench.Add(6, 5, 0, /*n=*/5);
  bench.Run();
}

TEST(Scheduler, PromptLogprobsKeepWithinTheirRows) {
  Bench bench(Cache(4), 100, {.max_slots = 4, .max_rows = 32, .max_prompt_logits = 5});
  RequestState* a = bench.Add(23, 2, 0, 1, /*prompt_logprobs=*/3);
  RequestState* b = bench.Add(9, 2, 0, 1, 0);
  int steps = 0;
  while (!bench.scheduler().idle() && ++steps < 100) EXPECT_LE(bench.Step().plan.scores.size(), 5u);
  EXPECT_EQ(a->prompt_logprobs.size(), 23u);
  EXPECT_EQ(b->prompt_logprobs.size(), 9u);
  bench.Run();
}

TEST(Scheduler, RemovedSequencesGiveBackEverythingAtOnce) {
  Bench bench(Cache(4), 100, {.max_slots = 4, .max_rows = 16});
  RequestState* a = bench.Add(20, 5, 0, 2);
  bench.Step();
  bench.Step();
  bench.Step();
  EXPECT_GT(bench.scheduler().books().pages(0).used(), 0);
  for (auto& sequence : a->sequences) bench.scheduler().Remove(sequence.get());
  a->unfinished = 0;
  EXPECT_EQ(bench.scheduler().books().pages(0).used(), 0);
  EXPECT_EQ(bench.scheduler().running() + bench.scheduler().waiting(), 0);
  bench.Run();
}

TEST(Scheduler, RandomWorkloadsEndWithAllPagesFree) {
  for (const int window : {0, 6}) {
    for (const uint32_t seed : {1u, 2u, 3u}) {
      SCOPED_TRACE("window " + std::to_string(window) + " seed " + std::to_string(seed));
      std::mt19937 rng(seed);
      Bench bench(Cache(3, window), 30, {.max_slots = 5, .max_rows = 9, .max_prompt_logits = 3});
      int added = 0;
      int preempted = 0;
      std::vector<RequestState*> requests;
      while (added < 120 || !bench.scheduler().idle()) {
        if (added < 120 && rng() % 2 == 0) {
          RequestState* request =
              bench.Add(1 + static_cast<int>(rng() % 40), 1 + static_cast<int>(rng() % 30), static_cast<int>(rng() % 3),
                        1 + static_cast<int>(rng() % 3), static_cast<int>(rng() % 3) - 1);
          if (request != nullptr) requests.push_back(request);
          ++added;
        }
        if (rng() % 40 == 0 && !requests.empty()) {
          RequestState* victim = requests[rng() % requests.size()];
          for (auto& sequence : victim->sequences) {
            if (sequence->state != SequenceState::kFinished) bench.scheduler().Remove(sequence.get());
          }
          victim->unfinished = 0;
        }
        if (!bench.scheduler().idle()) bench.Step();
      }
      for (RequestState* request : requests) {
        preempted += request->preemptions;
        if (request->unfinished < 0) request->unfinished = 0;
      }
      EXPECT_GT(preempted, 0);
      bench.Run();
    }
  }
}

}  // namespace
}  // namespace quire

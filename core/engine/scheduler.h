// Scheduler: queue + pages + clock → StepPlan. Lives on rank 0 and owns the books of the cache; executes nothing.
//
// Order everywhere: priority (lower first), then arrival; and priorities age: a request that came kAgeingSteps steps
// before another counts as one priority better. As all age alike, two requests' order never changes, and nobody waits for
// ever behind a stream of better priorities. A step has one row for each sequence that decodes, and fills
// what is left of max_rows with chunks of prompts. Waiting sequences are admitted in order, never past the head of the
// queue, when a slot is free and the cache can promise room for what they have so far; what they will generate is not
// promised (optimistic), but a page is left to each running one that may need more. So sequences run together whose
// full lengths fit together. When pages run out, the last sequence in order loses its pages and goes back to the queue, to
// be recomputed; so the first in order always gets on, and everybody ends, for a request that could not run alone is
// refused before (CheckFits).
#pragma once

#include <cstdint>
#include <set>
#include <vector>

#include "core/base/status.h"
#include "core/engine/sequence.h"
#include "core/engine/step_plan.h"
#include "kvstore/kv_books.h"

namespace quire {

// Steps of waiting that are worth one priority.
constexpr int64_t kAgeingSteps = 256;

struct SchedulerOptions {
  int max_slots = 64;
  int max_rows = 512;          // ≥ max_slots
  int max_prompt_logits = 64;  // rows of prompts a step whose logits are wanted for prompt_logprobs
};

class Scheduler {
 public:
  Scheduler(KvBooks books, const SchedulerOptions& options);

  // Queues a sequence (state kWaiting). Its request was found to fit by CheckFits.
  void Enqueue(Sequence* sequence);
  Status CheckFits(const RequestState& request) const;

  // Plans the next step and moves the sequences on; `planned[i]` is the sequence of plan->chunks[i], `sampling[i]` that
  // of plan->samples[i]. Children of a request with n > 1 are made here, when its prompt ends. A sequence that can't be
  // admitted even alone comes back in `failed` (out of the queue) with the status.
  struct Planned {
    StepPlan plan;
    std::vector<Sequence*> chunks;
    std::vector<Sequence*> samples;
    std::vector<Sequence*> scores;
    std::vector<Sequence*> admitted;
    Sequence* failed = nullptr;
    Status failure;
    double prefill_share = 0;  // of the rows
  };
  void Plan(Planned* planned);

  // After the plan was executed, before its tokens are looked at: gives forks their pages.
  void CompleteForks();
  // Takes a waiting or running sequence out and frees what it holds. State becomes kFinished.
  void Remove(Sequence* sequence);

  int running() const { return static_cast<int>(running_.size()); }
  int waiting() const { return static_cast<int>(waiting_.size()); }
  bool idle() const { return running_.empty() && waiting_.empty() && pending_ends_.empty(); }
  int64_t preemptions() const { return preemptions_; }
  const KvBooks& books() const { return books_; }

 private:
  using Order = std::set<Sequence*, RunsBefore>;

  int PrefillRows(const Sequence& sequence, int row_budget, int logit_budget) const;
  bool Allocate(Sequence* sequence, int rows);
  bool Admit(Sequence* sequence, Status* why);
  bool MayGrow(const Sequence& sequence, int cache_group) const;
  void Preempt(Sequence* sequence);
  void GiveUpSlot(Sequence* sequence);
  void AddChunk(Sequence* sequence, int rows, Planned* planned);
  void Spawn(Sequence* parent, int logit, Planned* planned);
  void FillRandomCache(Sequence* sequence, StepPlan* plan);
  void CollectOps(StepPlan* plan);
  void AddTableDeltas(const Sequence& sequence, StepPlan* plan);

  KvBooks books_;
  SchedulerOptions options_;
  Order waiting_, running_;
  std::vector<int> free_slots_;        // a stack
  std::vector<int32_t> pending_ends_;  // slots given up since the last plan
  // What the ranks' copies of the tables hold: [slot][cache group].
  struct SentTable {
    std::vector<int32_t> pages, groups;
  };
  std::vector<std::vector<SentTable>> sent_;
  CacheOps ops_;  // taken already, of the step being planned
  uint64_t step_ = 0;
  int64_t preemptions_ = 0;
};

}  // namespace quire

// Executor: runs StepPlans on one rank. It keeps this rank's copies of what the plans say (tokens of the slots, page
// tables), executes the cache ops, runs the decoder and draws tokens; it decides nothing, so all ranks do the same.
// With several ranks, the rows' vocabulary slices meet in Sampler::Run, and the counts of pages travel with them.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/base/context.h"
#include "core/base/status.h"
#include "core/engine/attention_history.h"
#include "core/engine/policy_set.h"
#include "core/engine/sampler.h"
#include "core/engine/slot_maps.h"
#include "core/engine/step_plan.h"
#include "core/model/decoder.h"
#include "kvstore/page_storage.h"
#include "kvstore/table_batch.h"

namespace quire {

struct ExecutorOptions {
  PlanLimits limits;
  CacheConfig cache;
  std::vector<GroupCapacity> capacity;  // one per cache group
  int history_width = 0;                // floats of attention history a page, KV head and layer
  int64_t map_capacity = 0;             // the most tokens that an evicting policy with a map keeps
  bool enforce_eager = false;           // on a GPU: no CUDA graphs
  bool missing_mass_bound = false;      // see DecoderOptions
};

struct StepResult {
  std::vector<SampledToken> tokens;   // one per plan.samples
  std::vector<TokenLogprobs> scores;  // one per plan.scores
  // Of all ranks, each KV head counted once. With several ranks they come with the step's candidates: usage is empty
  // after a step without logits, and what such a step read is in the next sums.
  std::vector<AttentionReads> usage;  // one per decode chunk
  AttentionStats attention;           // seconds are this rank's
};

class Executor {
 public:
  // weights, comm and ctx.pool must outlive it. Every rank of comm makes its own.
  static Result<std::unique_ptr<Executor>> Create(const Context& ctx, const ModelConfig& config,
                                                  const ModelWeights* weights, const ShardPlan& shard,
                                                  Communicator* comm, ExecutorOptions options);

  // The plan has passed StepPlan::Check. A collective: every rank executes the same plans in the same order.
  Status Execute(const StepPlan& plan, StepResult* result);

  const PageStorage& storage() const { return storage_; }
  SlotMaps& slot_maps() { return slot_maps_; }  // for tests
  size_t history_bytes() const { return history_.bytes() + slot_maps_.bytes(); }
  size_t scratch_bytes() const;
  // What is made before the first step, beside the decoder's own.
  static size_t OwnScratchBytes(const Context& ctx, const PlanLimits& limits, int64_t local_vocab);
  void set_observer(SelectionObserver* observer) { decoder_.set_observer(observer); }

 private:
  struct Slot {
    bool live = false;
    int32_t sequence = 0;
    int32_t output_begin = 0;
    std::vector<int32_t> tokens;
    SamplerParams sampler;
    std::shared_ptr<const AttentionPolicy> policy;
    TokenHistory history;
    std::vector<PageTable> tables;  // [cache group]
  };

  Executor(const Context& ctx, PageStorage storage, AttentionHistory history, SlotMaps slot_maps, Decoder decoder,
           Sampler sampler, const PolicyShape& policies);
  Status UpdateSlots(const StepPlan& plan);
  void UpdateTables(const StepPlan& plan);
  Status FillRandom(const RandomFill& fill);
  Status Forward(const StepPlan& plan);
  void CountUsage(const StepPlan& plan, StepResult* result);
  void MakeJobs(const StepPlan& plan);
  Status Sample(const StepPlan& plan, StepResult* result);

  Context ctx_;
  PageStorage storage_;
  AttentionHistory history_;
  SlotMaps slot_maps_;
  Decoder decoder_;
  Sampler sampler_;
  ExecutorOptions options_;
  PolicySet policies_;
  int first_kv_head_ = 0;
  std::vector<Slot> slots_;
  int64_t local_vocab_ = 0;
  bool alone_ = true;
  AttentionReads unsent_;  // read in steps without logits, for the next sums
  Buffer logits_;          // [max_logit_rows][local vocab], on the device
  // Of one step; they keep their memory.
  std::vector<int32_t> tokens_;  // [rows]
  std::vector<ForwardChunk> chunks_;
  std::vector<TableBatch> batches_;  // [cache group]
  std::vector<CacheView> views_;     // [cache group]
  std::vector<SampleJob> jobs_;
  std::vector<ScoreJob> score_jobs_;
};

}  // namespace quire

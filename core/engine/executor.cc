#include "core/engine/executor.h"

#include <algorithm>
#include <string>
#include <utility>

#include "core/base/check.h"
#include "core/base/device_memory.h"
#include "core/model/weight_slices.h"
#include "kernels/device_session.h"

namespace quire {

Executor::Executor(const Context& ctx, PageStorage storage, AttentionHistory history, SlotMaps slot_maps,
                   Decoder decoder, Sampler sampler, const PolicyShape& policies)
    : ctx_(ctx),
      storage_(std::move(storage)),
      history_(std::move(history)),
      slot_maps_(std::move(slot_maps)),
      decoder_(std::move(decoder)),
      sampler_(std::move(sampler)),
      policies_(policies) {}

size_t Executor::OwnScratchBytes(const Context& ctx, const PlanLimits& limits, int64_t local_vocab) {
  return static_cast<size_t>(limits.max_logit_rows) * static_cast<size_t>(local_vocab) * sizeof(float) +
         Sampler::ScratchBytes(ctx, local_vocab, limits.max_logit_rows, limits.slots);
}

size_t Executor::scratch_bytes() const {
  return OwnScratchBytes(ctx_, options_.limits, local_vocab_) + decoder_.scratch_bytes();
}

Result<std::unique_ptr<Executor>> Executor::Create(const Context& ctx, const ModelConfig& config,
                                                   const ModelWeights* weights, const ShardPlan& shard,
                                                   Communicator* comm, ExecutorOptions options) {
  const PlanLimits& limits = options.limits;
  ASSIGN_OR_RETURN(PageStorage storage, PageStorage::Create(options.cache, options.capacity, ctx.device));
  ASSIGN_OR_RETURN(AttentionHistory history,
                   AttentionHistory::Create(ctx, options.cache, options.history_width, limits.slots, limits.max_length));
  ASSIGN_OR_RETURN(SlotMaps slot_maps, SlotMaps::Create(ctx, options.cache, options.map_capacity, limits.slots));
  ASSIGN_OR_RETURN(Decoder decoder, Decoder::Create(ctx, config, weights, shard, comm,
                                                    {.max_rows = limits.max_rows,
                                                     .max_logit_rows = limits.max_logit_rows,
                                                     .max_length = limits.max_length,
                                                     .enforce_eager = options.enforce_eager,
                                                     .missing_mass_bound = options.missing_mass_bound}));
  SamplerOptions sampling{limits.vocab, limits.max_logit_rows, limits.slots, {}, comm};
  for (int rank = 0; rank < shard.tp; ++rank) {
    ASSIGN_OR_RETURN(const ShardPlan other, ShardPlan::Create(NumbersOf(config), shard.tp, rank));
    sampling.slices.push_back(other.vocab);
  }
  ASSIGN_OR_RETURN(Sampler sampler, Sampler::Create(ctx, std::move(sampling)));
  const int64_t local_vocab = shard.vocab.size();
  ASSIGN_OR_RETURN(Buffer logits, Buffer::Create(static_cast<size_t>(limits.max_logit_rows) *
                                                 static_cast<size_t>(local_vocab) * sizeof(float),
                                                 ctx.device));
  const PolicyShape policies = PolicyShapeOf(config, options.cache.groups.front().dtype, options.cache.page_size,
                                             ctx.device.kind);
  std::unique_ptr<Executor> executor(new Executor(ctx, std::move(storage), std::move(history), std::move(slot_maps),
                                                  std::move(decoder), std::move(sampler), policies));
  executor->logits_ = std::move(logits);
  executor->local_vocab_ = local_vocab;
  executor->alone_ = shard.tp == 1;
  executor->first_kv_head_ = static_cast<int>(shard.kv_heads.begin);
  executor->slots_.resize(limits.slots);
  const size_t groups = options.cache.groups.size();
  for (Slot& slot : executor->slots_) slot.tables.resize(groups);
  executor->batches_.resize(groups);
  executor->views_.resize(groups);
  for (size_t g = 0; g < groups; ++g) {
    for (int layer : options.cache.groups[g].layers)
      executor->views_[g].layers.push_back(executor->storage_.Layer(layer));
  }
  executor->options_ = std::move(options);
  return executor;
}

Status Executor::UpdateSlots(const StepPlan& plan) {
  for (int32_t s : plan.ends) {
    Slot& slot = slots_[s];
    slot.live = false;
    slot.tokens.clear();
    slot.policy.reset();
    slot.history.Clear();
    for (PageTable& table : slot.tables) table = {};
  }
  for (const SlotStart& start : plan.starts) {
    Slot& slot = slots_[start.slot];
    CHECK(!slot.live);
    slot.live = true;
    RETURN_IF_ERROR(history_.Start(start.slot));
    slot.sequence = start.sequence;
    slot.output_begin = start.output_begin;
    slot.tokens = start.tokens;
    slot.sampler = start.sampler;
    ASSIGN_OR_RETURN(slot.policy, policies_.Get(start.attention));
    RETURN_IF_ERROR(slot_maps_.Start(start.slot, slot.policy.get()));
    if (!start.sampler.has_penalties()) continue;
    for (size_t i = 0; i < start.tokens.size(); ++i) {
      if (i < static_cast<size_t>(start.output_begin)) {
        slot.history.AddPrompt(start.tokens[i]);
      } else {
        slot.history.AddOutput(start.tokens[i]);
      }
    }
  }
  for (const SlotFork& fork : plan.forks) {
    Slot& to = slots_[fork.to];
    const Slot& from = slots_[fork.from];
    CHECK(from.live && !to.live);
    to.live = true;
    RETURN_IF_ERROR(history_.Start(fork.to));  // its copy is made after the step, whose rows are the parent's
    RETURN_IF_ERROR(slot_maps_.Start(fork.to, nullptr));
    to.sequence = fork.sequence;
    to.output_begin = from.output_begin;
    to.tokens = from.tokens;
    to.sampler = from.sampler;
    to.policy = from.policy;
    if (!fork.attention.empty()) {
      ASSIGN_OR_RETURN(to.policy, policies_.Get(fork.attention));
    }
    to.history = from.history;
  }
  return OkStatus();
}

void Executor::UpdateTables(const StepPlan& plan) {
  for (const TableDelta& delta : plan.table_deltas) {
    PageTable& table = slots_[delta.slot].tables[delta.cache_group];
    std::vector<int32_t>& entries = delta.metadata == 0 ? table.pages : table.groups;
    entries.resize(delta.size, -1);
    std::copy_n(plan.table_values.begin() + delta.begin, delta.count, entries.begin() + delta.first);
  }
}

Status Executor::FillRandom(const RandomFill& fill) {
  if (fill.length == 0) return OkStatus();
  const Slot& slot = slots_[fill.slot];
  RETURN_IF_ERROR(history_.FillRandom(fill.slot, slot.policy.get(), fill.length, fill.seed, first_kv_head_));
  RETURN_IF_ERROR(slot_maps_.FillRandom(fill.slot, fill.length, fill.seed, first_kv_head_));
  const int64_t capacity = slot.policy->capacity();
  const int64_t cached = capacity > 0 ? std::min(fill.length, capacity) : fill.length;
  const int64_t pages = (cached + options_.cache.page_size - 1) / options_.cache.page_size;
  const int64_t groups = (pages + kPagesPerGroup - 1) / kPagesPerGroup;
  for (size_t g = 0; g < slot.tables.size(); ++g) {
    const PageTable& table = slot.tables[g];
    CHECK_GE(static_cast<int64_t>(table.pages.size()), pages);
    const bool metadata = !table.groups.empty();
    RETURN_IF_ERROR(storage_.FillRandom(ctx_, static_cast<int>(g), {table.pages.data(), static_cast<size_t>(pages)},
                                        {table.groups.data(), metadata ? static_cast<size_t>(groups) : 0}, cached,
                                        fill.seed, first_kv_head_));
  }
  return OkStatus();
}

Status Executor::Forward(const StepPlan& plan) {
  tokens_.clear();
  chunks_.clear();
  for (TableBatch& batch : batches_) batch.Clear();
  for (const PlanChunk& chunk : plan.chunks) {
    const Slot& slot = slots_[chunk.slot];
    CHECK(slot.live);
    CHECK_LE(int64_t{chunk.start_pos} + chunk.rows, static_cast<int64_t>(slot.tokens.size()));
    ForwardChunk forward;
    const int64_t capacity = slot.policy->capacity();
    const int64_t length = int64_t{chunk.start_pos} + chunk.rows;
    CHECK(chunk.decode != 0 || capacity == 0 || chunk.start_pos >= capacity || length <= capacity);
    const int64_t cached = capacity > 0 ? std::min(length, capacity) : length;
    for (size_t g = 0; g < batches_.size(); ++g) {
      CHECK_GE(static_cast<int64_t>(slot.tables[g].pages.size()) * options_.cache.page_size, cached);
      forward.seq = batches_[g].Add(slot.tables[g]);
    }
    forward.first_row = static_cast<int32_t>(tokens_.size());
    forward.rows = chunk.rows;
    forward.start_pos = chunk.start_pos;
    forward.decode = chunk.decode != 0;
    forward.rope_length = chunk.rope_length;
    forward.policy = slot.policy.get();
    forward.history = history_.Of(chunk.slot, forward.policy, length);
    forward.slots = slot_maps_.Of(chunk.slot);
    chunks_.push_back(forward);
    const auto begin = slot.tokens.begin() + chunk.start_pos;
    tokens_.insert(tokens_.end(), begin, begin + chunk.rows);
  }
  for (size_t g = 0; g < batches_.size(); ++g) {
    views_[g].table = batches_[g].View(storage_.format(static_cast<int>(g)), options_.cache.metadata);
  }
  ForwardBatch batch;
  batch.tokens = tokens_;
  batch.chunks = chunks_;
  batch.caches = views_;
  batch.logit_rows = plan.logit_rows;
  return decoder_.Forward(batch, reinterpret_cast<float*>(logits_.data()));
}

void Executor::CountUsage(const StepPlan& plan, StepResult* result) {
  result->attention = decoder_.last_stats();
  const AttentionStats& stats = result->attention;
  result->usage = stats.row_reads;
  if (alone_) return;
  unsent_ += stats;
  result->attention.reads() = {};  // of all ranks: known once they have met
  if (plan.logit_rows.empty()) result->usage.clear();
}

void Executor::MakeJobs(const StepPlan& plan) {
  jobs_.clear();
  score_jobs_.clear();
  for (const PlanSample& sample : plan.samples) {
    const Slot& slot = slots_[sample.slot];
    SampleJob job;
    job.logit_row = sample.logit;
    job.params = &slot.sampler;
    job.history = &slot.history;
    job.sequence = slot.sequence;
    job.position = static_cast<int64_t>(slot.tokens.size());
    job.output_tokens = job.position - slot.output_begin;
    job.forced = sample.forced;
    jobs_.push_back(job);
  }
  for (const PlanScore& score : plan.scores) {
    score_jobs_.push_back({score.logit, slots_[score.slot].tokens[score.position], score.top});
  }
}

Status Executor::Sample(const StepPlan& plan, StepResult* result) {
  // With several ranks what they read is summed on the way.
  std::vector<int64_t> sums;
  if (!alone_) {
    const auto add = [&](const AttentionReads& r) {
      sums.insert(sums.end(), {r.pages_read, r.pages_total, r.bytes_read, r.bytes_total, r.bounds, r.bound_billionths});
    };
    add(unsent_);
    for (const AttentionReads& reads : result->usage) add(reads);
    unsent_ = {};
  }
  RETURN_IF_ERROR(sampler_.Run(reinterpret_cast<const float*>(logits_.data()),
                               static_cast<int>(plan.logit_rows.size()), jobs_, score_jobs_, &result->tokens,
                               &result->scores, sums));
  if (!alone_) {
    const int64_t* next = sums.data();
    const auto take = [&](AttentionReads* r) {
      *r = {next[0], next[1], next[2], next[3], next[4], next[5]};
      next += 6;
    };
    take(&result->attention.reads());
    for (AttentionReads& reads : result->usage) take(&reads);
  }
  for (size_t i = 0; i < jobs_.size(); ++i) {
    Slot& slot = slots_[plan.samples[i].slot];
    slot.tokens.push_back(result->tokens[i].id);
    if (slot.sampler.has_penalties()) slot.history.AddOutput(result->tokens[i].id);
  }
  return OkStatus();
}

Status Executor::Execute(const StepPlan& plan, StepResult* result) {
  *result = {};
  RETURN_IF_ERROR(UseDevice(ctx_.device));
  RETURN_IF_ERROR(UpdateSlots(plan));
  storage_.Execute(ctx_, plan.cache_ops);
  UpdateTables(plan);
  for (const RandomFill& fill : plan.fills) RETURN_IF_ERROR(FillRandom(fill));
  if (plan.chunks.empty()) return OkStatus();
  RETURN_IF_ERROR(Forward(plan));
  for (const SlotFork& fork : plan.forks) {
    RETURN_IF_ERROR(history_.Fork(fork.from, fork.to, slots_[fork.to].policy.get()));
    RETURN_IF_ERROR(slot_maps_.Fork(fork.from, fork.to));
  }
  const bool sampled = !plan.logit_rows.empty();
  if (sampled) {
    MakeJobs(plan);
    RETURN_IF_ERROR(sampler_.Fetch(reinterpret_cast<const float*>(logits_.data()),
                                   static_cast<int>(plan.logit_rows.size()), jobs_, score_jobs_));
  }
  // The step's one wait for the GPU; also where its errors come to light.
  if (ctx_.session != nullptr) RETURN_IF_ERROR(ctx_.session->Synchronize());
  CountUsage(plan, result);
  return sampled ? Sample(plan, result) : OkStatus();
}

}  // namespace quire

// EnginePlan: everything about an engine that follows from its options and the model's numbers, before a weight is
// read: resolved options, policies, the cache's capacity, and the bytes each part will take. Engine::Create obeys it
// and PredictMemory prints it, so the two can't differ in what they assume.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/base/status.h"
#include "core/engine/engine.h"
#include "core/engine/executor.h"
#include "core/engine/scheduler.h"
#include "core/model/families.h"
#include "core/model/model_config.h"
#include "kernels/selection/policy.h"
#include "kvstore/cache_config.h"
#include "parallel/shard_plan.h"

namespace quire {

struct EnginePlan {
  EngineOptions options;       // autos resolved
  DType dtype = DType::kBF16;  // of the matrices
  DType cache_dtype = DType::kBF16;
  ShardPlan shard;
  std::vector<std::unique_ptr<AttentionPolicy>> policies;  // as options.attention
  ExecutorOptions executor;
  SchedulerOptions scheduler;
  MemoryBytes memory;
};

// ctx: the pool and mode that the engine will run with. available: bytes of memory that are free now (AvailableMemory).
// The plan is that of rank `rank` of `tp`; whatever every rank must have alike follows from options and config, but for
// the capacity, which LimitCapacity makes equal.
// INVALID_ARGUMENT for an option out of range, RESOURCE_EXHAUSTED when the cache can't hold a page.
Result<EnginePlan> PlanEngine(const Context& ctx, EngineOptions options, const ModelConfig& config, size_t available,
                              int tp = 1, int rank = 0);

// Lowers the plan's capacity to no more than `most`, one entry a cache group, and counts its memory again.
void LimitCapacity(const Context& ctx, const ModelConfig& config, const std::vector<GroupCapacity>& most,
                   EnginePlan* plan);

// What can be told from the options alone: asked before anything is opened or made.
Status CheckEngineOptions(const EngineOptions& options);

// UNIMPLEMENTED, naming the policy, for one that a GPU can't run.
Status CheckRunsOnGpu(const AttentionPolicy& policy, const AttentionSpec& spec);

// What an engine of this cache and context can't do with an evicting policy, if it is one: UNIMPLEMENTED for layers
// with windows, INVALID_ARGUMENT for positions inside what is kept that the context doesn't have.
Status CheckEvicts(const AttentionPolicy& policy, const AttentionSpec& spec, const CacheConfig& cache,
                   int64_t max_model_len);

// Tokens of the longest sequence: of those whose positions count inside what they keep, too many to wait for.
inline constexpr int64_t kLongestSequence = int64_t{1} << 30;

// Bytes of the checkpoint's matrices that LoadWeights will read in place rather than copy, on the rank of this plan. The
// kernel can take their pages back, so they don't count against what is available.
size_t MappedBytes(const Checkpoint& checkpoint, const ShardPlan& shard, DType dtype);

// RESOURCE_EXHAUSTED, with the numbers, when the plan needs more than there is; available 0: unknown. Apart from
// PlanEngine, for figures can be asked for on a machine that is too small.
Status CheckMemory(const EnginePlan& plan, size_t mapped, size_t available);

}  // namespace quire

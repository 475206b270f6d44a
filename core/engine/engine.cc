// Making an engine, and what it would need.
#include "core/engine/engine.h"

#include <string>
#include <utility>

#include "core/base/clock.h"
#include "core/engine/available_memory.h"
#include "core/engine/engine_impl.h"
#include "core/model/families.h"

namespace quire {

Result<std::unique_ptr<Engine>> Engine::Create(EngineOptions options) {
  ASSIGN_OR_RETURN(auto engine, EngineImpl::Create(std::move(options)));
  return std::unique_ptr<Engine>(std::move(engine));
}

Result<MemoryBytes> PredictMemory(const EngineOptions& options) {
  RETURN_IF_ERROR(CheckEngineOptions(options));
  ASSIGN_OR_RETURN(Checkpoint checkpoint, OpenCheckpoint(options.model, options.load_format, options.seed));
  ThreadPool pool(options.threads);
  Context ctx;
  ctx.pool = &pool;
  ctx.batch_invariant = options.batch_invariant;
  ASSIGN_OR_RETURN(EnginePlan plan, PlanEngine(ctx, options, checkpoint.config, AvailableMemory()));
  return plan.memory;
}

Result<std::unique_ptr<EngineImpl>> EngineImpl::Create(EngineOptions options) {
  const double begin = NowSeconds();
  RETURN_IF_ERROR(CheckEngineOptions(options));
  ASSIGN_OR_RETURN(Checkpoint checkpoint, OpenCheckpoint(options.model, options.load_format, options.seed));
  std::unique_ptr<EngineImpl> engine(new EngineImpl);
  engine->config_ = checkpoint.config;
  engine->pool_ = std::make_unique<ThreadPool>(options.threads);
  Context ctx;
  ctx.pool = engine->pool_.get();
  ctx.batch_invariant = options.batch_invariant;
  const size_t available = AvailableMemory();
  ASSIGN_OR_RETURN(engine->plan_, PlanEngine(ctx, std::move(options), engine->config_, available));
  EnginePlan& plan = engine->plan_;
  RETURN_IF_ERROR(CheckMemory(plan, MappedBytes(checkpoint, plan.dtype), available));
  EngineOptions& o = plan.options;
  o.threads = engine->pool_->threads();
  engine->comm_ = MakeSelfCommunicator();

  if (o.load_tokenizer) {
    if (o.progress) o.progress("tokenizer", 0);
    auto tokenizer = LoadTokenizer(o.model);
    if (tokenizer.ok()) {
      engine->tokenizer_ = std::move(tokenizer).value();
    } else if (tokenizer.status().code() != StatusCode::kNotFound || o.load_format != "dummy") {
      return tokenizer.status();  // made-up weights do without
    }
    if (o.progress) o.progress("tokenizer", 1);
  }
  const auto progress = o.progress;
  ASSIGN_OR_RETURN(engine->weights_, LoadWeights(ctx, checkpoint, plan.shard, plan.dtype, [&](int done, int layers) {
                     if (progress) progress("weights", layers > 0 ? static_cast<double>(done) / layers : 1.0);
                   }));
  std::vector<const AttentionPolicy*> policies;
  for (const auto& policy : plan.policies) policies.push_back(policy.get());
  ASSIGN_OR_RETURN(engine->executor_, Executor::Create(ctx, engine->config_, &engine->weights_, plan.shard,
                                                       engine->comm_.get(), std::move(policies), plan.executor));
  ASSIGN_OR_RETURN(KvBooks books,
                   KvBooks::Create(plan.executor.cache, plan.executor.capacity, plan.scheduler.max_rows));
  engine->scheduler_ = std::make_unique<Scheduler>(std::move(books), plan.scheduler);
  engine->UpdateStats({}, {}, 0);
  engine->load_seconds_ = NowSeconds() - begin;
  return engine;
}

MemoryBytes EngineImpl::Memory() const {
  MemoryBytes bytes;
  bytes.weights = weights_.bytes().total();
  bytes.kv_cache = static_cast<size_t>(executor_->storage().kv_bytes());
  bytes.kv_metadata = static_cast<size_t>(executor_->storage().metadata_bytes());
  std::lock_guard lock(stats_mutex_);
  bytes.scratch = scratch_bytes_;
  return bytes;
}

EngineStats EngineImpl::Stats() const {
  EngineStats stats;
  {
    std::lock_guard lock(stats_mutex_);
    stats = stats_;
  }
  std::lock_guard lock(inbox_mutex_);
  stats.waiting += static_cast<int>(submitted_.size());
  return stats;
}

}  // namespace quire

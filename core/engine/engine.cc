// Making an engine, and what it would need.
#include "core/engine/engine.h"

#include <algorithm>
#include <string>
#include <utility>

#include "core/base/clock.h"
#include "core/engine/available_memory.h"
#include "core/engine/engine_device.h"
#include "core/engine/engine_impl.h"
#include "core/engine/engine_options.h"
#include "core/model/families.h"

namespace quire {

Result<std::unique_ptr<Engine>> Engine::Create(EngineOptions options) {
  ASSIGN_OR_RETURN(auto engine, EngineImpl::Create(std::move(options)));
  return std::unique_ptr<Engine>(std::move(engine));
}

Result<MemoryBytes> PredictMemory(const EngineOptions& options, int tp, int rank) {
  RETURN_IF_ERROR(CheckEngineOptions(options));
  ASSIGN_OR_RETURN(Checkpoint checkpoint, OpenCheckpoint(options.model, options.load_format, options.seed));
  ThreadPool pool(options.threads);
  Context ctx;
  ctx.pool = &pool;
  ctx.batch_invariant = options.batch_invariant;
  ASSIGN_OR_RETURN(ctx.device, ChooseLocalDevice(options, rank, tp));
  size_t available = AvailableMemory() / static_cast<size_t>(std::max(1, tp));
  if (ctx.device.kind == DeviceKind::kCuda) {
    ASSIGN_OR_RETURN(available, AvailableOnGpu(ctx.device, options.gpu_memory_utilization, tp));
  }
  ASSIGN_OR_RETURN(EnginePlan plan, PlanEngine(ctx, options, checkpoint.config, available, tp, rank));
  return plan.memory;
}

EngineImpl::EngineImpl(std::unique_ptr<EngineRank> rank, std::unique_ptr<Tokenizer> tokenizer)
    : rank_(std::move(rank)),
      config_(rank_->config),
      plan_(rank_->plan),
      channel_(rank_->comm.get()),
      tokenizer_(std::move(tokenizer)) {}

EngineImpl::~EngineImpl() {
  if (!rank_->alone() && broken_.ok()) static_cast<void>(channel_.Send(GroupMessage::kClose));
}

Result<std::unique_ptr<EngineImpl>> EngineImpl::Create(EngineOptions options) {
  const double begin = NowSeconds();
  RETURN_IF_ERROR(CheckEngineOptions(options));
  if (options.comm != nullptr && options.comm->size() > 1) {
    if (options.comm->rank() != 0) {
      return FailedPrecondition("rank " + std::to_string(options.comm->rank()) +
                                " can't make an engine: rank 0 does, and the others call FollowLeader");
    }
    std::vector<uint8_t> bytes;
    SerializeOptions(options, &bytes);
    RETURN_IF_ERROR(GroupChannel(options.comm).Send(GroupMessage::kOpen, bytes));
  }
  std::unique_ptr<Tokenizer> tokenizer;
  ASSIGN_OR_RETURN(auto rank, EngineRank::Create(std::move(options), [&](const EngineOptions& o) -> Status {
    if (!o.load_tokenizer) return OkStatus();
    if (o.progress) o.progress("tokenizer", 0);
    auto loaded = LoadTokenizer(o.model);
    if (loaded.ok()) {
      tokenizer = std::move(loaded).value();
    } else if (loaded.status().code() != StatusCode::kNotFound || o.load_format != "dummy") {
      return loaded.status();  // made-up weights do without
    }
    if (o.progress) o.progress("tokenizer", 1);
    return OkStatus();
  }));
  std::unique_ptr<EngineImpl> engine(new EngineImpl(std::move(rank), std::move(tokenizer)));
  const EnginePlan& plan = engine->plan_;
  ASSIGN_OR_RETURN(KvBooks books,
                   KvBooks::Create(plan.executor.cache, plan.executor.capacity, plan.scheduler.max_rows));
  engine->scheduler_ = std::make_unique<Scheduler>(std::move(books), plan.scheduler);
  engine->UpdateStats({}, {}, 0);
  engine->load_seconds_ = NowSeconds() - begin;
  return engine;
}

MemoryBytes EngineImpl::Memory() const {
  MemoryBytes bytes;
  bytes.weights = rank_->weights.bytes().total();
  bytes.kv_cache = static_cast<size_t>(rank_->executor->storage().kv_bytes());
  bytes.kv_metadata = static_cast<size_t>(rank_->executor->storage().metadata_bytes());
  bytes.history = rank_->executor->history_bytes();
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

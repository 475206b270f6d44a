#include "core/engine/engine_rank.h"

#include <algorithm>
#include <string>
#include <utility>

#include "core/engine/available_memory.h"
#include "core/engine/byte_stream.h"
#include "core/engine/engine_device.h"
#include "parallel/device_communicator.h"
#include "parallel/group_start.h"
#include "parallel/hash.h"
#include "parallel/nccl_communicator.h"
#include "parallel/rank_numbers.h"

namespace quire {
namespace {

uint64_t Hash(const std::vector<uint8_t>& bytes) {
  return HashBytes({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

// The model's numbers: what would make ranks compute different things without any of them failing.
uint64_t HashConfig(const ModelConfig& c) {
  std::vector<uint8_t> bytes;
  ByteWriter w(&bytes);
  for (const int64_t n : {int64_t{c.layers}, int64_t{c.hidden}, int64_t{c.ffn}, int64_t{c.q_heads}, int64_t{c.kv_heads},
                          int64_t{c.head_dim}, int64_t{c.vocab}, c.max_position, static_cast<int64_t>(c.dtype),
                          static_cast<int64_t>(c.activation), int64_t{c.tie_embeddings}, int64_t{c.qkv_bias},
                          int64_t{c.out_bias}, int64_t{c.mlp_bias}, int64_t{c.qk_norm},
                          int64_t{c.post_norms}}) {
    w.Put(n);
  }
  for (const float x : {c.norm_eps, c.norm_offset, c.embedding_scale, c.query_scalar, c.attention_softcap,
                        c.final_softcap}) {
    w.Put(x);
  }
  w.Put(c.family);
  w.PutAll(c.window);
  w.Put(int64_t{c.rope.interleaved});
  for (const float f : RopeInverseFrequencies(c.rope, 2 * c.max_position)) w.Put(f);
  if (c.window_rope) {
    for (const float f : RopeInverseFrequencies(*c.window_rope, 2 * c.max_position)) w.Put(f);
  }
  return Hash(bytes);
}

// Names, types and shapes; the weights themselves are not read for it.
uint64_t HashIndex(const WeightSource& source) {
  std::vector<uint8_t> bytes;
  ByteWriter w(&bytes);
  for (const TensorInfo& info : source.tensors()) {
    w.Put(info.name);
    w.Put(static_cast<uint32_t>(info.type));
    w.Put(info.rows);
    w.Put(info.cols);
  }
  return Hash(bytes);
}

Status CheckSameModel(Communicator& comm, const GroupTopology& topology, const Checkpoint& checkpoint) {
  if (comm.size() == 1) return OkStatus();
  const NamedHash items[] = {BuildIdentity(), ConfigIdentity(HashConfig(checkpoint.config)),
                             WeightIndexIdentity(HashIndex(*checkpoint.weights))};
  return CheckSameOnAllRanks(comm, topology, Phase::kLoad, items);
}

// Every rank's capacity becomes that of the rank with the least room.
Status ShareCapacity(const Context& ctx, Communicator& comm, const ModelConfig& config, EnginePlan* plan) {
  if (comm.size() == 1) return OkStatus();
  std::vector<int64_t> mine;
  for (const GroupCapacity& capacity : plan->executor.capacity) {
    mine.push_back(capacity.pages);
    mine.push_back(capacity.metadata_groups);
  }
  ASSIGN_OR_RETURN(const std::vector<int64_t> all, GatherNumbers(comm, mine));
  std::vector<GroupCapacity> least = plan->executor.capacity;
  for (size_t i = 0; i < all.size(); i += 2) {
    GroupCapacity& capacity = least[i / 2 % least.size()];
    capacity.pages = std::min(capacity.pages, static_cast<int32_t>(all[i]));
    capacity.metadata_groups = std::min(capacity.metadata_groups, static_cast<int32_t>(all[i + 1]));
  }
  LimitCapacity(ctx, config, least, plan);
  return OkStatus();
}

Status GatherReports(const EngineRank& own, const GroupTopology& topology, std::vector<RankInfo>* reports) {
  const MemoryBytes& m = own.plan.memory;
  const std::vector<int64_t> mine = {own.pool->threads(),
                                     own.weights.bytes_read,
                                     static_cast<int64_t>(own.weights.bytes().total()),
                                     own.executor->storage().kv_bytes(),
                                     own.executor->storage().metadata_bytes(),
                                     static_cast<int64_t>(own.executor->history_bytes()),
                                     static_cast<int64_t>(m.scratch)};
  ASSIGN_OR_RETURN(const std::vector<int64_t> all, GatherNumbers(*own.comm, mine));
  for (int rank = 0; rank < own.comm->size(); ++rank) {
    const int64_t* n = all.data() + static_cast<size_t>(rank) * mine.size();
    const auto bytes = [&](int i) { return static_cast<size_t>(n[i]); };
    reports->push_back({rank,
                        topology.ranks[static_cast<size_t>(rank)].host,
                        static_cast<int>(n[0]),
                        n[1],
                        {bytes(2), bytes(3), bytes(4), bytes(5), bytes(6)}});
  }
  return OkStatus();
}

}  // namespace

Status EngineRank::Execute(const StepPlan& step, StepResult* result) const {
  const bool prefill =
      std::any_of(step.chunks.begin(), step.chunks.end(), [](const PlanChunk& c) { return c.decode == 0; });
  Enter(prefill ? Phase::kPrefill : Phase::kDecode);
  return executor->Execute(step, result);
}

Status EngineRank::UseGpu(const EngineOptions& options, Context* ctx) {
  if (ctx->device.kind == DeviceKind::kCpu) return OkStatus();
  auto made = DeviceSession::Create(ctx->device);
  RETURN_IF_ERROR(AgreeOn(*comm, topology, Phase::kLoad, made.status()));
  session = std::move(made).value();
  ctx->session = session.get();
  ctx->stream = session->stream();
  if (comm->size() == 1) return OkStatus();
  std::unique_ptr<Communicator> nccl;
  // NCCL wants a GPU for each rank, and sums in an order of its own.
  if (!options.share_gpu && !options.batch_invariant && HasNccl()) {
    NcclOptions nccl_options;
    nccl_options.device = ctx->device.index;
    ASSIGN_OR_RETURN(nccl, MakeNcclCommunicator(options.comm, topology, nccl_options));
  }
  devices = MakeDeviceCommunicator(options.comm, std::move(nccl));
  comm = std::make_unique<CountedCommunicator>(devices.get());
  return OkStatus();
}

Result<std::unique_ptr<EngineRank>> EngineRank::Create(EngineOptions options,
                                                       const std::function<Status(const EngineOptions&)>& prepare) {
  auto own = std::make_unique<EngineRank>();
  own->mark = options.progress_mark;
  own->Enter(Phase::kLoad);
  if (options.comm == nullptr) own->self = MakeSelfCommunicator();
  own->comm = std::make_unique<CountedCommunicator>(options.comm != nullptr ? options.comm : own->self.get());
  ASSIGN_OR_RETURN(own->topology, GatherTopology(*own->comm));
  const GroupTopology& topology = own->topology;
  Context ctx;
  ASSIGN_OR_RETURN(ctx.device, ChooseDevice(options, *own->comm, topology));
  RETURN_IF_ERROR(own->UseGpu(options, &ctx));
  Communicator& comm = *own->comm;
  ASSIGN_OR_RETURN(const int processors, ShareOfProcessors(comm, topology));

  auto checkpoint = OpenCheckpoint(options.model, options.load_format, options.seed);
  RETURN_IF_ERROR(AgreeOn(comm, topology, Phase::kLoad, checkpoint.status()));
  RETURN_IF_ERROR(CheckSameModel(comm, topology, *checkpoint));
  own->config = checkpoint->config;
  own->pool = std::make_unique<ThreadPool>(options.threads > 0 ? options.threads : processors);
  ctx.pool = own->pool.get();
  ctx.progress = own->mark;
  ctx.batch_invariant = options.batch_invariant;

  // Ranks of one machine take of the same memory, and look at it before any of them takes some.
  size_t available = AvailableMemory() / static_cast<size_t>(topology.self().local_size);
  if (own->session != nullptr) {
    const Result<size_t> on_gpu = AvailableOnGpu(ctx.device, options.gpu_memory_utilization, topology.self().local_size);
    RETURN_IF_ERROR(AgreeOn(comm, topology, Phase::kLoad, on_gpu.status()));
    available = *on_gpu;
  }
  auto planned = PlanEngine(ctx, std::move(options), own->config, available, comm.size(), comm.rank());
  RETURN_IF_ERROR(AgreeOn(comm, topology, Phase::kLoad, planned.status()));
  own->plan = std::move(planned).value();
  EnginePlan& plan = own->plan;
  plan.options.threads = own->pool->threads();
  plan.options.device = ctx.device.kind == DeviceKind::kCuda ? "cuda" : "cpu";
  RETURN_IF_ERROR(ShareCapacity(ctx, comm, own->config, &plan));
  const size_t mapped = own->session != nullptr ? 0 : MappedBytes(*checkpoint, plan.shard, plan.dtype);
  Status ready = CheckMemory(plan, mapped, available);
  if (ready.ok() && prepare) ready = prepare(plan.options);
  RETURN_IF_ERROR(AgreeOn(comm, topology, Phase::kLoad, ready));

  const auto progress = plan.options.progress;
  auto weights = LoadWeights(ctx, *checkpoint, plan.shard, plan.dtype, [&](int done, int layers) {
    if (progress) progress("weights", layers > 0 ? static_cast<double>(done) / layers : 1.0);
  });
  RETURN_IF_ERROR(AgreeOn(comm, topology, Phase::kLoad, weights.status()));
  own->weights = std::move(weights).value();
  auto executor = Executor::Create(ctx, own->config, &own->weights, plan.shard, &comm, plan.executor);
  RETURN_IF_ERROR(AgreeOn(comm, topology, Phase::kLoad, executor.status()));
  own->executor = std::move(executor).value();
  RETURN_IF_ERROR(GatherReports(*own, topology, &own->reports));
  own->Enter(Phase::kIdle);
  return own;
}

}  // namespace quire

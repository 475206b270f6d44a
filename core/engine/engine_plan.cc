#include "core/engine/engine_plan.h"

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <string>

#include "core/base/check.h"
#include "core/engine/attention_history.h"
#include "core/model/decoder.h"
#include "core/model/decoder_attention.h"
#include "core/model/decoder_rows.h"
#include "core/model/weight_slices.h"
#include "kernels/attention_decode.h"
#include "kernels/attention_decode_sinks.h"
#include "kernels/attention_mass.h"
#include "kernels/attention_prefill.h"
#include "kernels/device_session.h"
#include "kernels/linear.h"
#include "kernels/selection/missing_mass.h"

namespace quire {
namespace {

// Share of the memory left after weights and scratch that the cache takes when nobody said how much; on the CPU, where
// others need some too.
constexpr double kCacheShare = 0.5;
// Rows of prompts a step whose logits are kept for prompt_logprobs.
constexpr int kPromptLogits = 64;
constexpr int kMaxThreads = 4096;

Status CheckAtLeast(const char* name, int64_t value, int64_t least) {
  if (value >= least) return OkStatus();
  return InvalidArgument(std::string(name) + " is " + std::to_string(value) + "; it must be at least " +
                         std::to_string(least));
}

// The most positions the model can be asked for: rope scaling that was not counted in max_position reaches further.
int64_t LongestContext(const ModelConfig& config) {
  const auto stretched = [&](int64_t length) {
    return static_cast<int64_t>(static_cast<double>(length) * config.rope.factor);
  };
  switch (config.rope.scaling) {
    case RopeScaling::kLinear:
    case RopeScaling::kDynamic: return std::max(config.max_position, stretched(config.max_position));
    case RopeScaling::kYarn: return std::max(config.max_position, stretched(config.rope.original_max_position));
    case RopeScaling::kNone:
    case RopeScaling::kLlama3: return config.max_position;
  }
  return config.max_position;
}

Status CheckContext(const EngineOptions& options, const ModelConfig& config) {
  if (const int64_t most = LongestContext(config); options.max_model_len > most) {
    return InvalidArgument("max_model_len is " + std::to_string(options.max_model_len) + "; " + config.name +
                           " knows positions up to " + std::to_string(most));
  }
  return OkStatus();
}

// Bytes of packed copies that the matrix unit wants per byte of weights on this machine: asked of a small weight.
Result<double> PackedShare(const Context& ctx, DType dtype) {
  constexpr int64_t kSide = 256;
  ASSIGN_OR_RETURN(Tensor tensor, Tensor::Create(dtype, {kSide, kSide}));
  ASSIGN_OR_RETURN(Weight weight, Weight::Own(std::move(tensor)));
  RETURN_IF_ERROR(PrepareWeight(ctx, weight));
  return static_cast<double>(weight.packed_bytes()) / static_cast<double>(weight.bytes());
}

// Bytes of this rank's slices, as LoadWeights holds them. packed: of copies per byte.
size_t WeightBytesOf(const ModelConfig& config, const ShardPlan& shard, DType dtype, double packed) {
  const int64_t hidden = config.hidden;
  const int64_t q = shard.q_heads.size() * config.head_dim;
  const int64_t kv = shard.kv_heads.size() * config.head_dim;
  const int64_t ffn = shard.ffn.size();
  const bool first = shard.rank == 0;
  const int64_t matrices = (q + 2 * kv) * hidden + hidden * q + 3 * ffn * hidden;
  int64_t vectors = (config.post_norms ? 4 : 2) * hidden;
  if (config.qkv_bias) vectors += q + 2 * kv;
  if (config.qk_norm && shard.has_heads()) vectors += 2 * config.head_dim;
  if (config.out_bias && first) vectors += hidden;
  if (config.mlp_bias) vectors += 2 * ffn + (first ? hidden : 0);
  // The head is multiplied with; an embedding of its own is only looked up, and so not packed.
  const int64_t head = shard.vocab.size() * hidden;
  const int64_t embedding = config.tie_embeddings ? 0 : head;
  const double products = static_cast<double>((config.layers * matrices + head) * ElementSize(dtype));
  return static_cast<size_t>(products * (1 + packed)) + static_cast<size_t>(embedding * ElementSize(dtype)) +
         static_cast<size_t>((config.layers * vectors + hidden) * 4);
}

CacheConfig MakeCacheConfig(const EnginePlan& plan, const ModelConfig& config) {
  CacheConfig cache;
  cache.page_size = plan.options.page_size;
  cache.metadata = false;
  for (const auto& policy : plan.policies) {
    cache.metadata |= policy->Declare().min_max;
    cache.codes |= policy->Declare().codes;
  }
  for (const CacheKind& kind : CacheKinds(config, plan.shard)) {
    cache.groups.push_back({kind.layers, kind.kv_heads, kind.k_dim, kind.v_dim, kind.window, plan.cache_dtype});
  }
  return cache;
}

// Rows of a step in which every slot decodes.
int DecodeRows(const Context& ctx, const EnginePlan& plan) {
  const PlanLimits& limits = plan.executor.limits;
  if (ctx.device.kind == DeviceKind::kCpu) return limits.slots;
  int kinds = 1;  // of rows: dense ones, and a policy's; dense ones that it remembers apart
  for (const auto& policy : plan.policies) kinds += policy->Declare().history > 0 ? 2 : 1;
  return std::min(limits.max_rows, RowPadding::MostRows(limits.slots, kinds));
}

// Workspaces of attention and selection when every slot decodes at the length that the cache has room for.
size_t AttentionScratch(const Context& ctx, const EnginePlan& plan, const ModelConfig& config) {
  if (!plan.shard.has_heads()) return 0;
  const ExecutorOptions& executor = plan.executor;
  const int rows = DecodeRows(ctx, plan);
  const int64_t max_length = executor.limits.max_length;
  const std::vector<int32_t> row_seq(static_cast<size_t>(rows));
  size_t workspace = 0;
  size_t selection = 0;
  size_t remembered = 0;
  size_t turned = 0;
  for (int g = 0; g < executor.limits.cache_groups; ++g) {
    const PageFormat format = FormatOf(executor.cache, g);
    const int64_t room = int64_t{executor.capacity[g].pages} * format.page_size / executor.limits.slots;
    const int window = executor.cache.groups[g].window;
    const int64_t length = window > 0 ? max_length : std::clamp<int64_t>(room, 1, max_length);
    const std::vector<int32_t> row_len(static_cast<size_t>(rows), static_cast<int32_t>(length));
    AttentionPrefillParams prefill;
    prefill.q_heads = static_cast<int>(plan.shard.q_heads.size());
    prefill.table.format = format;
    workspace = std::max(workspace, AttentionPrefillWorkspace(ctx, prefill));
    AttentionDecodeParams decode;
    decode.rows = rows;
    decode.q_heads = static_cast<int>(plan.shard.q_heads.size());
    decode.row_seq = row_seq.data();
    decode.row_len = row_len.data();
    decode.table.format = format;
    decode.model_group = config.q_heads / config.kv_heads;
    decode.longest = static_cast<int32_t>(length);
    workspace = std::max(workspace, AttentionDecodeWorkspace(ctx, decode, {.window = window}));
    const auto remembers = [&](const auto& policy) {
      return policy->Declare().mass && RemembersLayer(*policy, config.layers - 1, format.page_size);
    };
    if (window == 0 && std::any_of(plan.policies.begin(), plan.policies.end(), remembers)) {
      const int64_t pages = (length + format.page_size - 1) / format.page_size;
      float no_mass = 0;
      decode.mass = &no_mass;  // only asked whether it is there
      workspace = std::max(workspace, AttentionDecodeWorkspace(ctx, decode));
      PrefillMassParams mass;
      mass.table.format = format;
      workspace = std::max(workspace, PrefillMassWorkspace(ctx, mass));
      // Masses of decode rows or of a prompt's, and the log-sum-exps of prompts.
      const int64_t row_floats = format.kv_heads * pages, max_rows = executor.limits.max_rows;
      int64_t shown = 0;  // rows of a prompt's chunk
      for (const auto& policy : plan.policies) {
        const int wanted = policy->Declare().history_rows;
        if (remembers(policy)) shown = std::max(shown, wanted > 0 ? std::min<int64_t>(wanted, max_rows) : max_rows);
      }
      const int64_t prompt = std::min(shown, std::max<int64_t>(1, PromptMassFloats(ctx.device) / row_floats)) * row_floats;
      const int64_t floats = std::max(rows * row_floats, prompt) + max_rows * plan.shard.q_heads.size();
      remembered = std::max(remembered, sizeof(float) * static_cast<size_t>(floats));
    }
    for (const auto& policy : plan.policies) {
      if (window > 0 || policy->capacity() == 0) continue;
      const int64_t kept = std::min(policy->capacity(), max_length);
      if (policy->Declare().slot_map) {
        // Weights of decode rows or of a prompt's, by slots, and the log-sum-exps.
        PrefillMassParams mass;
        mass.table.format = format;
        workspace = std::max(workspace, PrefillMassWorkspace(ctx, mass));
        const int64_t row_floats = format.kv_heads * std::min(kept, length), max_rows = executor.limits.max_rows;
        const int64_t wanted = policy->Declare().history_rows;
        const int64_t shown = std::min({wanted > 0 ? wanted : max_rows, max_rows, kept});
        const int64_t prompt = std::min(shown, std::max<int64_t>(1, PromptMassFloats(ctx.device) / row_floats)) * row_floats;
        const int64_t taken = rows * format.kv_heads;  // 32-bit slots
        const int64_t floats = std::max(rows * row_floats, prompt) + max_rows * plan.shard.q_heads.size() + taken;
        remembered = std::max(remembered, sizeof(float) * static_cast<size_t>(floats));
      }
      if (policy->CountsInside()) {
        workspace = std::max(workspace, AttentionSinksWorkspace(ctx, {.decode = decode, .window = static_cast<int>(length)}));
        // Rows of prompts past the capacity are turned, too.
        turned = sizeof(float) * (rows * plan.shard.q_heads.size() * config.head_dim +
                                  int64_t{executor.limits.max_rows} * config.rope.rotary_dim);
      }
    }
    for (const auto& policy : plan.policies) {
      if (window > 0 || policy->capacity() > 0 || policy->IsDense(length, config.layers - 1, format.page_size))
        continue;
      if (policy->WindowAt(length).window == 0) continue;
      workspace = std::max(workspace, AttentionSinksWorkspace(ctx, {.decode = decode, .window = static_cast<int>(length)}));
      turned = sizeof(float) * rows * (plan.shard.q_heads.size() * config.head_dim + config.rope.rotary_dim);
    }
    if (window > 0) continue;  // such layers attend to their window, whatever the policy
    for (const auto& policy : plan.policies) {
      if (policy->capacity() > 0 || policy->IsDense(length, config.layers - 1, format.page_size)) continue;
      SelectParams select;
      select.rows = rows;
      select.q_heads = static_cast<int>(plan.shard.kv_heads.size()) * (config.q_heads / config.kv_heads);
      select.row_seq = row_seq.data();
      select.row_len = row_len.data();
      select.table.format = format;
      select.longest = static_cast<int32_t>(length);
      workspace = std::max(workspace, policy->SelectWorkspace(select));
      const size_t lists = static_cast<size_t>(rows) * format.kv_heads;
      const PageDataNeeds needs = policy->Declare();
      const auto most = static_cast<size_t>(policy->MaxPages(max_length, format.page_size));
      size_t bytes = lists * (most + config.layers) * sizeof(int32_t);
      if (needs.slots) bytes += lists * most * static_cast<size_t>((format.page_size + 63) / 64) * sizeof(uint64_t);
      if (needs.correction) {
        bytes += sizeof(float) * (rows * plan.shard.q_heads.size() + lists * static_cast<size_t>(format.v_dim));
      }
      if (plan.options.missing_mass_bound && needs.min_max && !needs.slots) {
        bytes += sizeof(float) * static_cast<size_t>(rows * config.layers);  // beside the lists' lengths
        remembered = std::max(remembered, sizeof(float) * static_cast<size_t>(executor.limits.max_rows *
                                                                              plan.shard.q_heads.size()));
        select.q_heads = static_cast<int>(plan.shard.q_heads.size());
        workspace = std::max(workspace, MissingMassWorkspace(ctx, select));
      }
      selection = std::max(selection, bytes);
    }
  }
  return workspace + selection + remembered + turned;
}

// What a GPU's session holds for calls: the products' own, and the widest rows in 16 bits.
size_t SessionScratch(const Context& ctx, const EnginePlan& plan, const ModelConfig& config) {
  if (ctx.session == nullptr) return 0;
  const int64_t widest = std::max<int64_t>({config.hidden, plan.shard.q_heads.size() * config.head_dim, plan.shard.ffn.size()});
  return ctx.session->bytes() + static_cast<size_t>(plan.executor.limits.max_rows * widest * 2);
}

// What Executor and Decoder make before the first step.
size_t StepScratch(const Context& ctx, const EnginePlan& plan, const ModelConfig& config) {
  const PlanLimits& limits = plan.executor.limits;
  return SessionScratch(ctx, plan, config) + Executor::OwnScratchBytes(ctx, limits, plan.shard.vocab.size()) +
         DecoderScratchBytes(config, plan.shard,
                             {.max_rows = limits.max_rows,
                              .max_logit_rows = limits.max_logit_rows,
                              .max_length = limits.max_length});
}

}  // namespace

Status CheckRunsOnGpu(const AttentionPolicy& policy, const AttentionSpec& spec) {
  if (policy.RunsOnGpu()) return OkStatus();
  return Unimplemented("attention policy '" + spec.ToString() +
                       "' has no CUDA kernels in this version; run it on the CPU with --device cpu");
}

Status CheckEvicts(const AttentionPolicy& policy, const AttentionSpec& spec, const CacheConfig& cache,
                   int64_t max_model_len) {
  if (policy.capacity() == 0) return OkStatus();
  for (const CacheGroupConfig& group : cache.groups) {
    if (group.window == 0) continue;
    return Unimplemented("attention policy '" + spec.ToString() +
                         "' evicts, and the model has layers with a window of " + std::to_string(group.window) +
                         " tokens, which this version doesn't do together; leave out evict");
  }
  if (policy.CountsInside() && policy.capacity() > max_model_len) {
    return InvalidArgument("attention policy '" + spec.ToString() + "' keeps " + std::to_string(policy.capacity()) +
                           " tokens and counts positions among them, but the context has " +
                           std::to_string(max_model_len) + " (max_model_len); give a token_budget of at most that");
  }
  return OkStatus();
}

Status CheckEngineOptions(const EngineOptions& options) {
  if (options.device != "auto" && options.device != "cpu" && options.device != "cuda") {
    return InvalidArgument("device is '" + options.device + "'; it takes auto, cpu or cuda");
  }
  if (!(options.gpu_memory_utilization > 0 && options.gpu_memory_utilization <= 1)) {
    return InvalidArgument("gpu_memory_utilization is " + std::to_string(options.gpu_memory_utilization) +
                           "; it must be above 0 and at most 1");
  }
  RETURN_IF_ERROR(CheckAtLeast("threads", options.threads, 0));
  RETURN_IF_ERROR(CheckAtLeast("max_num_seqs", options.max_num_seqs, 1));
  RETURN_IF_ERROR(CheckAtLeast("page_size", options.page_size, 1));
  RETURN_IF_ERROR(CheckAtLeast("kv_cache_bytes", options.kv_cache_bytes, 0));
  RETURN_IF_ERROR(CheckAtLeast("max_model_len", options.max_model_len, 0));
  if (options.max_num_batched_tokens < options.max_num_seqs) {
    return InvalidArgument("max_num_batched_tokens is " + std::to_string(options.max_num_batched_tokens) +
                           "; it must be at least max_num_seqs (" + std::to_string(options.max_num_seqs) +
                           "), for a step has a row for each running sequence");
  }
  if (options.threads > kMaxThreads) {
    return InvalidArgument("threads is " + std::to_string(options.threads) + "; it must be at most " +
                           std::to_string(kMaxThreads));
  }
  if (options.max_model_len == 1) return InvalidArgument("max_model_len is 1; a prompt and a token need at least 2");
  if (options.attention.empty()) return InvalidArgument("no attention policy is given; name at least 'dense'");
  return OkStatus();
}

size_t MappedBytes(const Checkpoint& checkpoint, const ShardPlan& shard, DType dtype) {
  const WeightSource& source = *checkpoint.weights;
  size_t bytes = 0;
  // Matrices that Linear multiplies with as one; whole rows of theirs must lie one behind the other.
  const auto add = [&](std::initializer_list<Param> params, int layer) {
    size_t joined = 0;
    const std::byte* end = nullptr;
    for (const Param param : params) {
      const std::string name = checkpoint.TensorName(param, layer);
      const TensorInfo* info = source.Find(name);
      const auto* tensor = static_cast<const std::byte*>(source.Mapped(name, dtype));
      const TensorSlice slice = SliceOf(checkpoint.config, shard, param);
      if (info == nullptr || tensor == nullptr || slice.col_begin != 0 || slice.col_end != info->cols) return;
      const int64_t row_bytes = info->cols * ElementSize(dtype);
      const std::byte* begin = tensor + slice.row_begin * row_bytes;
      if (end == nullptr ? reinterpret_cast<uintptr_t>(begin) % kMappedAlignment != 0 : begin != end) return;
      const size_t size = static_cast<size_t>((slice.row_end - slice.row_begin) * row_bytes);
      joined += size;
      end = begin + size;
    }
    bytes += joined;
  };
  add({Param::kEmbedding}, 0);
  if (!checkpoint.config.tie_embeddings) add({Param::kHead}, 0);
  for (int layer = 0; layer < checkpoint.config.layers; ++layer) {
    add({Param::kQ, Param::kK, Param::kV}, layer);
    add({Param::kO}, layer);
    add({Param::kGate, Param::kUp}, layer);
    add({Param::kDown}, layer);
  }
  return bytes;
}

Status CheckMemory(const EnginePlan& plan, size_t mapped, size_t available) {
  const MemoryBytes& memory = plan.memory;
  const size_t weights = memory.weights - std::min(memory.weights, mapped);
  const size_t cache = memory.kv_cache + memory.kv_metadata;
  const size_t needed = weights + memory.scratch + cache + memory.history;
  if (available == 0 || needed <= available) return OkStatus();
  return ResourceExhausted("the engine needs " + std::to_string(needed) + " bytes: " + std::to_string(weights) +
                           " of weights beside those read in place, " + std::to_string(cache) + " of cache, " +
                           std::to_string(memory.history) + " of attention history and " +
                           std::to_string(memory.scratch) + " of scratch; " + std::to_string(available) +
                           " are available. Give a smaller kv_cache_bytes, or lower max_num_seqs and "
                           "max_num_batched_tokens, which decide the scratch, or max_model_len, which with "
                           "max_num_seqs decides the history");
}

// The bytes of a cache with these capacities, and of the workspaces that go with it.
void CountCache(const Context& ctx, const ModelConfig& config, EnginePlan* plan) {
  const ExecutorOptions& executor = plan->executor;
  plan->memory.kv_cache = plan->memory.kv_metadata = 0;
  for (size_t g = 0; g < executor.capacity.size(); ++g) {
    const int group = static_cast<int>(g);
    plan->memory.kv_cache += static_cast<size_t>(executor.capacity[g].pages * PageBytes(executor.cache, group));
    plan->memory.kv_metadata +=
        static_cast<size_t>(executor.capacity[g].metadata_groups * MetadataGroupBytes(executor.cache, group));
  }
  plan->memory.scratch = StepScratch(ctx, *plan, config) + AttentionScratch(ctx, *plan, config);
  plan->options.kv_cache_bytes = static_cast<int64_t>(plan->memory.kv_cache + plan->memory.kv_metadata);
}

void LimitCapacity(const Context& ctx, const ModelConfig& config, const std::vector<GroupCapacity>& most,
                   EnginePlan* plan) {
  CHECK_EQ(most.size(), plan->executor.capacity.size());
  for (size_t g = 0; g < most.size(); ++g) {
    GroupCapacity& own = plan->executor.capacity[g];
    own.pages = std::min(own.pages, most[g].pages);
    own.metadata_groups = std::min(own.metadata_groups, most[g].metadata_groups);
  }
  CountCache(ctx, config, plan);
}

Result<EnginePlan> PlanEngine(const Context& ctx, EngineOptions options, const ModelConfig& config, size_t available,
                              int tp, int rank) {
  RETURN_IF_ERROR(CheckEngineOptions(options));
  RETURN_IF_ERROR(CheckContext(options, config));
  EnginePlan plan;
  plan.dtype = config.dtype;
  if (options.dtype != "auto") {
    ASSIGN_OR_RETURN(plan.dtype, ParseFloatDType(options.dtype));
  }
  plan.cache_dtype = plan.dtype;
  if (options.kv_cache_dtype != "auto") {
    ASSIGN_OR_RETURN(plan.cache_dtype, ParseFloatDType(options.kv_cache_dtype));
  }
  options.dtype = DTypeName(plan.dtype);
  options.kv_cache_dtype = DTypeName(plan.cache_dtype);
  if (options.max_model_len == 0) options.max_model_len = config.max_position;
  if (options.max_model_len > std::numeric_limits<int32_t>::max() / 2) {
    return InvalidArgument("max_model_len is " + std::to_string(options.max_model_len) +
                           "; positions are 32-bit numbers");
  }
  ASSIGN_OR_RETURN(plan.shard, ShardPlan::Create(NumbersOf(config), tp, rank));
  for (const AttentionSpec& spec : options.attention) {
    ASSIGN_OR_RETURN(auto policy, MakePolicy(spec, PolicyShapeOf(config, plan.cache_dtype, options.page_size,
                                                                   ctx.device.kind)));
    if (ctx.device.kind == DeviceKind::kCuda) RETURN_IF_ERROR(CheckRunsOnGpu(*policy, spec));
    plan.policies.push_back(std::move(policy));
  }
  plan.options = std::move(options);
  const EngineOptions& o = plan.options;

  ExecutorOptions& executor = plan.executor;
  executor.cache = MakeCacheConfig(plan, config);
  RETURN_IF_ERROR(ValidateCacheConfig(executor.cache));
  executor.limits.slots = o.max_num_seqs;
  executor.limits.cache_groups = static_cast<int32_t>(executor.cache.groups.size());
  executor.limits.max_rows = o.max_num_batched_tokens;
  executor.limits.max_logit_rows = std::min(o.max_num_batched_tokens, o.max_num_seqs + kPromptLogits);
  executor.limits.vocab = config.vocab;
  executor.limits.max_length = o.max_model_len;
  executor.enforce_eager = o.enforce_eager;
  executor.missing_mass_bound = o.missing_mass_bound;
  // The longest that a sequence of the engine's own policies gets in the cache; its pages are planned for that.
  int64_t most_cached = 0;
  for (size_t i = 0; i < plan.policies.size(); ++i) {
    const AttentionPolicy& policy = *plan.policies[i];
    RETURN_IF_ERROR(CheckEvicts(policy, o.attention[i], executor.cache, o.max_model_len));
    const int64_t cached = policy.capacity() > 0 ? std::min(policy.capacity(), o.max_model_len) : o.max_model_len;
    most_cached = std::max(most_cached, cached);
    if (policy.Declare().slot_map) executor.map_capacity = std::max(executor.map_capacity, cached);
    if (policy.CountsInside()) executor.limits.max_tokens = kLongestSequence;
  }
  plan.scheduler = {o.max_num_seqs, o.max_num_batched_tokens, kPromptLogits};

  ASSIGN_OR_RETURN(const double packed, PackedShare(ctx, plan.dtype));
  plan.memory.weights = WeightBytesOf(config, plan.shard, plan.dtype, packed);
  plan.memory.scratch = StepScratch(ctx, plan, config);
  for (const auto& policy : plan.policies) {
    executor.history_width = std::max(executor.history_width, policy->Declare().history);
  }
  plan.memory.history =
      AttentionHistory::Bytes(executor.cache, executor.history_width, o.max_num_seqs, o.max_model_len) +
      SlotMaps::Bytes(executor.cache, executor.map_capacity, o.max_num_seqs);

  // The cache: what was asked for; else enough for every sequence at full length, but no more than a share of what
  // is left.
  if (o.kv_cache_bytes > 0) {
    ASSIGN_OR_RETURN(executor.capacity,
                     PlanCapacity(executor.cache, o.kv_cache_bytes, o.max_num_seqs, o.max_num_batched_tokens));
  } else {
    const size_t others = plan.memory.weights + plan.memory.scratch + plan.memory.history;
    const double share = ctx.device.kind == DeviceKind::kCuda ? 1.0 : kCacheShare;
    const int64_t most =
        static_cast<int64_t>(share * static_cast<double>(available - std::min(available, others)));
    double wanted = 0;  // in floating point: it may be more than any number of pages has
    for (int g = 0; g < executor.limits.cache_groups; ++g) {
      wanted += static_cast<double>(MaxLivePages(executor.cache, g, most_cached, o.max_num_batched_tokens)) *
                o.max_num_seqs * static_cast<double>(PageBytes(executor.cache, g));
    }
    if (wanted > 0 && wanted <= static_cast<double>(most)) {
      executor.capacity = CapacityFor(executor.cache, most_cached, o.max_num_seqs, o.max_num_batched_tokens);
    } else {
      ASSIGN_OR_RETURN(executor.capacity, PlanCapacity(executor.cache, most, o.max_num_seqs, o.max_num_batched_tokens));
    }
    // The workspaces that go with a cache's lengths must find room too, where the cache's share is everything.
    CountCache(ctx, config, &plan);
    const int64_t over = static_cast<int64_t>(plan.memory.total()) - static_cast<int64_t>(available);
    const auto cache = static_cast<int64_t>(plan.memory.kv_cache + plan.memory.kv_metadata);
    if (share == 1.0 && over > 0 && cache > 0) {
      ASSIGN_OR_RETURN(executor.capacity,
                       PlanCapacity(executor.cache, cache - over, o.max_num_seqs, o.max_num_batched_tokens));
    }
  }
  CountCache(ctx, config, &plan);
  return plan;
}

}  // namespace quire

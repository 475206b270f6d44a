#include "core/model/decoder_attention.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "core/base/check.h"
#include "core/base/clock.h"
#include "core/base/device_memory.h"
#include "kernels/attention_decode.h"
#include "kernels/attention_decode_sinks.h"
#include "kernels/attention_mass.h"
#include "kernels/elementwise.h"
#include "kernels/kv_append.h"
#include "kernels/selection/evicting.h"
#include "kernels/selection/missing_mass.h"

namespace quire {
namespace {

// Pages that hold the tokens a dense row of `len` tokens sees through `window` (0: all of them).
int64_t LivePages(int64_t len, int window, int page_size) {
  if (len <= 0) return 0;
  const int64_t first = window > 0 ? std::max<int64_t>(0, len - window) : 0;
  return (len - 1) / page_size - first / page_size + 1;
}

// Whether the policy keeps a history of the layer. A layer with a window attends densely to it: its older pages may be
// gone, and policies don't know of windows.
bool HasHistory(const LayerAttention& step, const AttentionPolicy* policy) {
  return policy != nullptr && step.window == 0 &&
         RemembersLayer(*policy, step.layer, step.table.format.page_size);
}

// The policy, if its history is made of the attention mass of rows, else null.
const AttentionPolicy* Remembering(const LayerAttention& step, const AttentionPolicy* policy) {
  return HasHistory(step, policy) && policy->Declare().mass ? policy : nullptr;
}

// The policy, if it weighs slots, in all layers then; else null.
const AttentionPolicy* Weighing(const AttentionPolicy* policy) {
  return policy != nullptr && policy->Declare().slot_map ? policy : nullptr;
}

// Whether the chunk's policy is shown rows of it.
bool RemembersPrompt(const LayerAttention& step, const ForwardChunk& chunk) {
  return Remembering(step, chunk.policy) != nullptr || Weighing(chunk.policy) != nullptr;
}

// K and V of a page and KV head.
int64_t BlockBytes(const PageFormat& f) { return (f.k_head_stride + f.v_head_stride) * ElementSize(f.dtype); }

// f(begin, count, mass_pages) → Status, until one isn't OK, of lots of a prompt's chunk: rows that its policy asks for,
// of [count][kv_heads][mass_pages] floats as many as are shown at once. Bits of a row don't depend on its lot. Ranks
// that share KV heads have one each, and the same lots; one without heads (kv_heads 0) has theirs.
Status ForEachLot(Device device, int kv_heads, const PrefillChunk& chunk, const PageDataNeeds& needs, int page_size,
                  const auto& f) {
  const int unit = needs.slot_map ? 1 : page_size;  // tokens that a number of mass is of
  const auto numbers = [&](int rows) { return (int64_t{chunk.start_pos} + rows + unit - 1) / unit; };
  const int64_t row_floats = std::max(1, kv_heads) * numbers(chunk.rows);
  const int64_t most = std::max<int64_t>(1, PromptMassFloats(device) / row_floats);
  const int wanted = needs.history_rows;
  for (int begin = wanted > 0 ? std::max(0, chunk.rows - wanted) : 0; begin < chunk.rows;) {
    const int count = static_cast<int>(std::min<int64_t>(most, chunk.rows - begin));
    RETURN_IF_ERROR(f(begin, count, numbers(begin + count)));
    begin += count;
  }
  return OkStatus();
}

// Of rows [begin, end).
RopeParams RopeOf(RopeParams rope, int begin, int end) {
  rope.x += begin * rope.x_stride;
  rope.rows = end - begin;
  if (rope.positions != nullptr) rope.positions += begin;
  if (rope.cos_sin != nullptr) rope.cos_sin += int64_t{begin} * rope.rotary_dim;
  return rope;
}

// Of the run's rows.
int32_t Longest(const DecoderRows& rows, const auto& run) { return rows.Longest(run.begin, run.end); }

}  // namespace

Result<AttentionRunner> AttentionRunner::Create(const Context& ctx, const ModelConfig& config, const ShardPlan& plan,
                                                Communicator* comm, int64_t max_length) {
  AttentionRunner runner;
  runner.ctx_ = ctx;
  runner.layers_ = config.layers;
  runner.q_heads_ = static_cast<int>(plan.q_heads.size());
  runner.kv_heads_ = static_cast<int>(plan.kv_heads.size());
  runner.head_dim_ = config.head_dim;
  runner.model_group_ = config.q_heads / config.kv_heads;
  runner.qkv_width_ = int64_t{runner.q_heads_ + 2 * runner.kv_heads_} * config.head_dim;
  runner.scale_ = config.attention_scale();
  runner.softcap_ = config.attention_softcap;
  runner.max_length_ = max_length;
  runner.counts_pages_ = plan.has_heads() && plan.replica_index == 0;
  ASSIGN_OR_RETURN(runner.replicas_, DecoderReplicas::Create(ctx, config, plan, comm));
  return runner;
}

size_t AttentionRunner::scratch_bytes() const {
  return workspace_.size() + selection_memory_.size() + counts_memory_.size() + replicas_.scratch_bytes() +
         turned_.size() + mass_.size() + lse_.size() + masks_.size() + correction_.size() + taken_.size();
}

Status AttentionRunner::BeginStep(const DecoderRows& rows) {
  counted_runs_.clear();
  counts_used_ = counts_seen_ = 0;
  const bool all_dense = std::all_of(rows.policy.begin(), rows.policy.end(), [](const auto* p) { return p == nullptr; });
  if (all_dense) return OkStatus();
  const auto most =
      static_cast<size_t>(layers_) * static_cast<size_t>(rows.counted_rows) * static_cast<size_t>(kv_heads_ + 1);
  RETURN_IF_ERROR(counts_memory_.Reserve(most * sizeof(int32_t), ctx_.device));
  if (counts_on_host_.size() == counts_memory_.size()) return OkStatus();
  ASSIGN_OR_RETURN(counts_on_host_, HostBuffer::Create(ctx_.device, counts_memory_.size()));
  return OkStatus();
}

Status AttentionRunner::Run(const LayerAttention& step, const DecoderRows& rows, const DecoderInputs& inputs,
                            AttentionStats& stats) {
  if (q_heads_ == 0) return RunWithoutHeads(step, rows);
  Append(step, rows, inputs);
  for (int begin = 0; begin < rows.decode_rows;) {
    const DecodeRun run = NextRun(step, rows, begin);
    RETURN_IF_ERROR(RunDecode(step, rows, inputs, run, stats));
    begin = run.end;
  }
  return RunPrefill(step, rows, inputs);
}

Status AttentionRunner::RunWithoutHeads(const LayerAttention& step, const DecoderRows& rows) {
  const int page_size = step.table.format.page_size;
  for (int begin = 0; begin < rows.decode_rows;) {
    const DecodeRun run = NextRun(step, rows, begin);
    SelectParams params;
    params.rows = run.end - run.begin;
    const bool selects = run.policy != nullptr && !run.overwrites;
    if (selects && run.policy->Declare().queries) RETURN_IF_ERROR(replicas_.GatherQueries(&params));
    const int64_t longest = Longest(rows, run);
    if (run.weighs != nullptr) {
      RETURN_IF_ERROR(replicas_.SumMass(nullptr, params.rows * longest));
    } else if (run.remembers != nullptr) {
      RETURN_IF_ERROR(replicas_.SumMass(nullptr, params.rows * ((longest + page_size - 1) / page_size)));
    }
    begin = run.end;
  }
  for (size_t i = 0; i < rows.prefill.size(); ++i) {
    if (!RemembersPrompt(step, *rows.prefill_source[i])) continue;
    const PageDataNeeds needs = rows.prefill_source[i]->policy->Declare();
    const auto sum = [&](int, int count, int64_t mass_pages) { return replicas_.SumMass(nullptr, count * mass_pages); };
    RETURN_IF_ERROR(ForEachLot(ctx_.device, kv_heads_, rows.prefill[i], needs, page_size, sum));
  }
  return OkStatus();
}

void AttentionRunner::Append(const LayerAttention& step, const DecoderRows& rows, const DecoderInputs& inputs) {
  const auto part = [&](int begin, int end) {
    const float* k = step.qkv + begin * qkv_width_ + int64_t{q_heads_} * head_dim_;
    return KvAppendParams{.pages = step.pages,
                          .table = step.table,
                          .k = k,
                          .k_stride = qkv_width_,
                          .v = k + int64_t{kv_heads_} * head_dim_,
                          .v_stride = qkv_width_,
                          .row_seq = inputs.seq + begin,
                          .row_pos = inputs.pos + begin,
                          .rows = end - begin};
  };
  if (!rows.overwrites) {
    RopeKvAppend(ctx_, step.rope, part(0, rows.rows));
    return;
  }
  CHECK_EQ(step.window, 0);
  for (int begin = 0; begin < rows.rows;) {
    int end = begin;
    while (end < rows.rows && !rows.Overwrites(end)) ++end;
    if (end > begin) RopeKvAppend(ctx_, RopeOf(step.rope, begin, end), part(begin, end));
    begin = end;
    while (begin < rows.rows && rows.Overwrites(begin)) ++begin;
  }
}

Status AttentionRunner::Overwrite(const LayerAttention& step, const DecoderInputs& inputs, const DecodeRun& run) {
  const int count = run.end - run.begin;
  KvAppendParams append;
  append.pages.k = step.pages.k;  // metadata is nobody's: an evicting policy reads none
  append.pages.v = step.pages.v;
  append.table = step.table;
  append.k = step.qkv + run.begin * qkv_width_ + int64_t{q_heads_} * head_dim_;
  append.v = append.k + int64_t{kv_heads_} * head_dim_;
  append.k_stride = append.v_stride = qkv_width_;
  append.row_seq = inputs.seq + run.begin;
  append.rows = count;
  if (run.weighs == nullptr) {
    append.row_pos = inputs.slot + run.begin;  // all heads give up the same slot
  } else {
    RETURN_IF_ERROR(taken_.Reserve(sizeof(int32_t) * int64_t{kv_heads_} * count, ctx_.device));
    run.weighs->EvictRows(ctx_, {.rows = count,
                                 .kv_heads = kv_heads_,
                                 .row_pos = inputs.pos + run.begin,
                                 .maps = inputs.Slots(step.layer) + run.begin,
                                 .taken = taken_.As<int32_t>()});
    append.row_pos = taken_.As<int32_t>();
    append.pos_head_stride = count;
  }
  RopeKvAppend(ctx_, RopeOf(step.rope, run.begin, run.end), append);
  return OkStatus();
}

Status AttentionRunner::FetchCounts() {
  return CopyFromDevice(ctx_.device, counts_on_host_.data(), counts_memory_.As<void>(), counts_used_ * sizeof(int32_t),
                        ctx_.stream);
}

void AttentionRunner::CountPages(const DecoderRows& rows, AttentionStats& stats) const {
  for (const CountedRun& run : counted_runs_) {
    const auto* counts = reinterpret_cast<const int32_t*>(counts_on_host_.data()) + run.first;
    const auto* bounds = reinterpret_cast<const float*>(counts + (run.end - run.begin) * kv_heads_);
    for (int row = run.begin; row < run.end; ++row, counts += kv_heads_, ++bounds) {
      if (rows.Fills(row)) continue;
      if (run.bounds) stats.Count(rows.source[row], {0, 0, 0, 0, q_heads_, std::llround(1e9 * *bounds)});
      if (!counts_pages_) continue;
      const int64_t read = std::accumulate(counts, counts + kv_heads_, int64_t{0});
      stats.Count(rows.source[row], {read, 0, read * run.block_bytes, 0});
    }
  }
}

AttentionRunner::DecodeRun AttentionRunner::NextRun(const LayerAttention& step, const DecoderRows& rows,
                                                    int begin) const {
  const auto effective = [&](int row) -> const AttentionPolicy* {
    const AttentionPolicy* policy = rows.policy[row];
    if (policy == nullptr || step.window > 0) return nullptr;
    if (policy->capacity() > 0) return rows.Overwrites(row) ? policy : nullptr;
    return policy->IsDense(rows.len[row], step.layer, step.table.format.page_size) ? nullptr : policy;
  };
  DecodeRun run{begin,
                begin + 1,
                effective(begin),
                Remembering(step, rows.policy[begin]),
                Weighing(rows.policy[begin]),
                rows.Overwrites(begin)};
  const auto joins = [&](int row) {
    return rows.Fills(row) || (effective(row) == run.policy && rows.seq[row] != rows.seq[row - 1] &&
                               Remembering(step, rows.policy[row]) == run.remembers &&
                               Weighing(rows.policy[row]) == run.weighs);
  };
  while (run.end < rows.decode_rows && joins(run.end)) ++run.end;
  return run;
}

Status AttentionRunner::RunDecode(const LayerAttention& step, const DecoderRows& rows, const DecoderInputs& inputs,
                                  const DecodeRun& run, AttentionStats& stats) {
  const bool timed = ctx_.device.kind == DeviceKind::kCpu;
  const double start = NowSeconds();
  if (run.policy != nullptr) {
    if (run.overwrites) {
      RETURN_IF_ERROR(Overwrite(step, inputs, run));
    } else {
      RETURN_IF_ERROR(Select(step, rows, inputs, run));
    }
    if (timed) stats.selection_seconds += NowSeconds() - start;
  }
  const double attention_start = NowSeconds();
  const int64_t out_width = int64_t{q_heads_} * head_dim_;
  AttentionDecodeParams params;
  params.q = step.qkv + run.begin * qkv_width_;
  params.q_stride = qkv_width_;
  params.out = step.out + run.begin * out_width;
  params.out_stride = out_width;
  params.rows = run.end - run.begin;
  params.q_heads = q_heads_;
  params.row_seq = inputs.seq + run.begin;
  params.row_len = inputs.len + run.begin;
  params.longest = Longest(rows, run);
  params.pages = step.pages;
  params.table = step.table;
  params.selection = run.policy != nullptr && !run.overwrites ? &selection_ : nullptr;
  params.model_group = model_group_;
  params.scale = scale_;
  if (run.remembers != nullptr) {
    params.mass_pages = (params.longest + step.table.format.page_size - 1) / step.table.format.page_size;
    RETURN_IF_ERROR(mass_.Reserve(sizeof(float) * int64_t{params.rows} * kv_heads_ * params.mass_pages, ctx_.device));
    params.mass = mass_.As<float>();
  }
  const bool bounds = Bounds(run);
  if (run.weighs != nullptr || bounds) {
    RETURN_IF_ERROR(lse_.Reserve(sizeof(float) * int64_t{rows.rows} * q_heads_, ctx_.device));
    params.lse = lse_.As<float>() + int64_t{run.begin} * q_heads_;
  }
  const SinkWindow window =
      run.policy == nullptr ? SinkWindow{} : run.policy->WindowAt(int64_t{rows.pos[run.begin]} + 1);
  if (window.window > 0) {
    RETURN_IF_ERROR(AttendSinks(step, params, run, window));
  } else {
    const ModelMod mod{softcap_, step.window};
    RETURN_IF_ERROR(workspace_.Reserve(AttentionDecodeWorkspace(ctx_, params, mod), ctx_.device));
    AttentionDecode(ctx_, params, workspace_.As<void>(), mod);
  }
  if (timed) stats.attention_seconds += NowSeconds() - attention_start;
  if (bounds) RETURN_IF_ERROR(BoundMissingMass(step, rows, inputs, run));
  if (run.weighs == nullptr && run.remembers == nullptr) return OkStatus();
  const double remember_start = NowSeconds();
  RETURN_IF_ERROR(run.weighs != nullptr ? RememberSlots(step, inputs, run, params.longest)
                                        : RememberDecode(step, inputs, run, params.mass_pages));
  if (timed) stats.selection_seconds += NowSeconds() - remember_start;
  return OkStatus();
}

bool AttentionRunner::Bounds(const DecodeRun& run) const {
  if (!missing_mass_bound_ || run.policy == nullptr || run.overwrites) return false;
  const PageDataNeeds needs = run.policy->Declare();
  return needs.min_max && !needs.slots;
}

Status AttentionRunner::BoundMissingMass(const LayerAttention& step, const DecoderRows& rows, const DecoderInputs& inputs,
                                         const DecodeRun& run) {
  const SelectParams params = ParamsOf(step, rows, inputs, run);
  RETURN_IF_ERROR(workspace_.Reserve(MissingMassWorkspace(ctx_, params), ctx_.device));
  MissingMassBounds(ctx_, params, selection_, lse_.As<float>() + int64_t{run.begin} * q_heads_, softcap_,
                    counts_memory_.As<float>() + counts_used_, workspace_.As<void>());
  counts_used_ += static_cast<size_t>(params.rows);
  return OkStatus();
}

void AttentionRunner::AppendKey(const LayerAttention& step, const DecoderRows& rows, std::vector<uint64_t>* key) const {
  for (int begin = 0; begin < rows.decode_rows;) {
    const DecodeRun run = NextRun(step, rows, begin);
    const auto longest = static_cast<uint64_t>(Longest(rows, run));
    const auto serial = [](const AttentionPolicy* policy) { return policy == nullptr ? 0 : policy->serial(); };
    key->insert(key->end(), {static_cast<uint64_t>(run.end), serial(run.policy), serial(run.remembers), longest});
    begin = run.end;
  }
}

void AttentionRunner::Count(const LayerAttention& step, const DecoderRows& rows, AttentionStats& stats) {
  if (q_heads_ == 0) return;
  for (int begin = 0; begin < rows.decode_rows;) {
    const DecodeRun run = NextRun(step, rows, begin);
    CountRun(step, rows, run, stats);
    begin = run.end;
  }
}

void AttentionRunner::CountRun(const LayerAttention& step, const DecoderRows& rows, const DecodeRun& run,
                               AttentionStats& stats) {
  const PageFormat& format = step.table.format;
  const int64_t block_bytes = BlockBytes(format);
  const bool selects = run.policy != nullptr && !run.overwrites;
  if (selects) {
    const bool bounds = Bounds(run);
    counted_runs_.push_back({run.begin, run.end, bounds, counts_seen_, block_bytes});
    counts_seen_ += static_cast<size_t>(run.end - run.begin) * static_cast<size_t>(kv_heads_ + (bounds ? 1 : 0));
  }
  if (!counts_pages_) return;
  if (selects) {
    SelectParams params;  // the formula looks at lengths, which are the host's here
    params.rows = 1;
    params.q_heads = q_heads_;
    params.longest = Longest(rows, run);
    params.layer = step.layer;
    params.pages = step.pages;
    params.table = step.table;
    params.scale = scale_;
    for (int row = run.begin; row < run.end && !rows.Fills(row); ++row) {
      params.row_seq = rows.seq.data() + row;
      params.row_len = rows.len.data() + row;
      stats.Count(rows.source[row], {0, 0, run.policy->SelectBytes(params), 0});
    }
  }
  for (int row = run.begin; row < std::min(run.end, rows.counted_rows); ++row) {
    if (rows.Fills(row)) continue;
    // Of all that the sequence has had, tokens that others have overwritten included.
    const int64_t live = kv_heads_ * LivePages(int64_t{rows.pos[row]} + 1, step.window, format.page_size);
    stats.Count(rows.source[row], {0, live, 0, live * block_bytes});
    if (selects) continue;  // CountPages looks how many they were
    const int64_t read = kv_heads_ * LivePages(rows.len[row], step.window, format.page_size);
    stats.Count(rows.source[row], {read, 0, read * block_bytes, 0});
    if (run.weighs == nullptr) continue;
    // K a second time for the weights, and the map.
    const int64_t again = read * format.k_head_stride * ElementSize(format.dtype) +
                          kv_heads_ * int64_t{rows.len[row]} * kSlotMapEntryBytes;
    stats.Count(rows.source[row], {0, 0, again, 0});
  }
}

Status AttentionRunner::AttendSinks(const LayerAttention& step, const AttentionDecodeParams& decode,
                                    const DecodeRun& run, const SinkWindow& window) {
  const int64_t width = int64_t{q_heads_} * head_dim_;
  AttentionSinksParams params;
  params.decode = decode;
  params.decode.selection = nullptr;
  params.sinks = window.sinks;
  params.window = window.window;
  params.q_sinks = decode.q;
  params.q_sinks_stride = decode.q_stride;
  params.softcap = softcap_;
  if (step.turns != nullptr && window.sinks > 0) {
    RETURN_IF_ERROR(turned_.Reserve(sizeof(float) * decode.rows * width, ctx_.device));
    RopeCopy(ctx_, decode.q, decode.q_stride,
             {.x = turned_.As<float>(),
              .x_stride = width,
              .rows = decode.rows,
              .heads = q_heads_,
              .head_dim = head_dim_,
              .rotary_dim = step.rope.rotary_dim,
              .interleaved = step.rope.interleaved,
              .cos_sin = step.turns + int64_t{run.begin} * step.rope.rotary_dim});
    params.q_sinks = turned_.As<float>();
    params.q_sinks_stride = width;
  }
  RETURN_IF_ERROR(workspace_.Reserve(AttentionSinksWorkspace(ctx_, params), ctx_.device));
  AttentionDecodeSinks(ctx_, params, workspace_.As<void>());
  return OkStatus();
}

Status AttentionRunner::RememberDecode(const LayerAttention& step, const DecoderInputs& inputs, const DecodeRun& run,
                                       int64_t mass_pages) {
  RememberParams params;
  params.mass = mass_.As<float>();
  params.mass_pages = mass_pages;
  params.rows = run.end - run.begin;
  params.kv_heads = kv_heads_;
  params.page_size = step.table.format.page_size;
  params.row_pos = inputs.pos + run.begin;
  params.selection = run.policy != nullptr ? &selection_ : nullptr;
  params.history = inputs.History(step.layer) + run.begin;
  RETURN_IF_ERROR(replicas_.SumMass(mass_.As<float>(), params.rows * mass_pages));
  run.remembers->RememberRows(ctx_, params);
  return OkStatus();
}

PrefillMassParams AttentionRunner::MassParams(const LayerAttention& step) {
  PrefillMassParams params;
  params.q = step.qkv;
  params.q_stride = qkv_width_;
  params.lse = lse_.As<float>();
  params.q_heads = q_heads_;
  params.pages = step.pages;
  params.table = step.table;
  params.scale = scale_;
  return params;
}

Status AttentionRunner::Mass(const PrefillMassParams& params) {
  RETURN_IF_ERROR(workspace_.Reserve(PrefillMassWorkspace(ctx_, params), ctx_.device));
  PrefillMass(ctx_, params, workspace_.As<void>(), {.softcap = softcap_});
  return OkStatus();
}

Status AttentionRunner::RememberSlots(const LayerAttention& step, const DecoderInputs& inputs, const DecodeRun& run,
                                      int64_t slots) {
  SlotMassParams params;
  params.q = step.qkv + run.begin * qkv_width_;
  params.q_stride = qkv_width_;
  params.lse = lse_.As<float>() + int64_t{run.begin} * q_heads_;
  params.rows = run.end - run.begin;
  params.q_heads = q_heads_;
  params.row_seq = inputs.seq + run.begin;
  params.row_len = inputs.len + run.begin;
  params.pages = step.pages;
  params.table = step.table;
  params.scale = scale_;
  params.mass_slots = slots;
  RETURN_IF_ERROR(mass_.Reserve(sizeof(float) * int64_t{params.rows} * kv_heads_ * slots, ctx_.device));
  params.mass = mass_.As<float>();
  RETURN_IF_ERROR(workspace_.Reserve(SlotMassWorkspace(ctx_, params), ctx_.device));
  SlotMass(ctx_, params, workspace_.As<void>(), softcap_);
  RETURN_IF_ERROR(replicas_.SumMass(params.mass, params.rows * slots));
  run.weighs->RememberSlotRows(ctx_, {.mass = params.mass,
                                      .mass_slots = slots,
                                      .rows = params.rows,
                                      .kv_heads = kv_heads_,
                                      .row_len = params.row_len,
                                      .maps = inputs.Slots(step.layer) + run.begin});
  return OkStatus();
}

SelectParams AttentionRunner::ParamsOf(const LayerAttention& step, const DecoderRows& rows, const DecoderInputs& inputs,
                                       const DecodeRun& run) const {
  SelectParams params;
  params.q = step.qkv + run.begin * qkv_width_;
  params.q_stride = qkv_width_;
  params.rows = run.end - run.begin;
  params.q_heads = q_heads_;
  params.row_seq = inputs.seq + run.begin;
  params.row_len = inputs.len + run.begin;
  params.longest = Longest(rows, run);
  params.layer = step.layer;
  params.pages = step.pages;
  params.table = step.table;
  params.scale = scale_;
  return params;
}

Status AttentionRunner::Select(const LayerAttention& step, const DecoderRows& rows, const DecoderInputs& inputs,
                               const DecodeRun& run) {
  SelectParams params = ParamsOf(step, rows, inputs, run);
  if (HasHistory(step, run.policy)) params.history = inputs.History(step.layer) + run.begin;
  if (run.policy->Declare().queries) RETURN_IF_ERROR(replicas_.GatherQueries(&params));

  const int64_t length = std::max<int64_t>(max_length_, params.longest);
  const int max_pages = run.policy->MaxPages(length, step.table.format.page_size);
  const size_t lists = static_cast<size_t>(params.rows) * kv_heads_;
  RETURN_IF_ERROR(selection_memory_.Reserve(lists * static_cast<size_t>(max_pages) * sizeof(int32_t), ctx_.device));
  selection_ = {};
  selection_.counts = counts_memory_.As<int32_t>() + counts_used_;
  selection_.pages = selection_memory_.As<int32_t>();
  counts_used_ += lists;
  selection_.max_pages = max_pages;
  const PageDataNeeds needs = run.policy->Declare();
  if (needs.slots) {
    selection_.mask_words = (step.table.format.page_size + 63) / 64;
    RETURN_IF_ERROR(
        masks_.Reserve(lists * static_cast<size_t>(max_pages * selection_.mask_words) * sizeof(uint64_t), ctx_.device));
    selection_.slot_mask = masks_.As<uint64_t>();
  }
  if (needs.correction) {
    const auto alphas = static_cast<size_t>(params.rows) * static_cast<size_t>(q_heads_);
    const auto means = lists * static_cast<size_t>(step.table.format.v_dim);
    RETURN_IF_ERROR(correction_.Reserve((alphas + means) * sizeof(float), ctx_.device));
    selection_.alpha = correction_.As<float>();
    selection_.v_mean = selection_.alpha + alphas;
  }
  RETURN_IF_ERROR(workspace_.Reserve(run.policy->SelectWorkspace(params), ctx_.device));
  run.policy->Select(ctx_, params, selection_, workspace_.As<void>());
  if (observer_ != nullptr && ctx_.device.kind == DeviceKind::kCpu) observer_->OnSelect(params, selection_);
  return OkStatus();
}

Status AttentionRunner::RunPrefill(const LayerAttention& step, const DecoderRows& rows, const DecoderInputs& inputs) {
  const auto remembers = [&](size_t i) { return RemembersPrompt(step, *rows.prefill_source[i]); };
  bool any_remembers = false;
  for (size_t i = 0; i < rows.prefill.size(); ++i) any_remembers |= remembers(i);
  // What is remembered is remembered of all rows.
  const bool whole = !step.last || any_remembers;
  const std::vector<PrefillChunk>& chunks = whole ? rows.prefill : rows.prefill_with_logits;
  if (chunks.empty()) return OkStatus();
  AttentionPrefillParams params;
  params.q = step.qkv;
  params.q_stride = qkv_width_;
  params.out = step.out;
  params.out_stride = int64_t{q_heads_} * head_dim_;
  params.q_heads = q_heads_;
  params.chunks = whole ? inputs.prefill : inputs.prefill_with_logits;
  params.num_chunks = static_cast<int>(chunks.size());
  params.pages = step.pages;
  params.table = step.table;
  params.scale = scale_;
  if (any_remembers) {
    RETURN_IF_ERROR(lse_.Reserve(sizeof(float) * int64_t{rows.rows} * q_heads_, ctx_.device));
    params.lse = lse_.As<float>();
  }
  for (const PrefillChunk& chunk : chunks) params.rows += chunk.rows;
  RETURN_IF_ERROR(workspace_.Reserve(AttentionPrefillWorkspace(ctx_, params), ctx_.device));
  AttentionPrefill(ctx_, params, workspace_.As<void>(), {softcap_, step.window});
  for (size_t i = 0; i < rows.prefill.size(); ++i) {
    if (remembers(i)) RETURN_IF_ERROR(RememberPrompt(step, rows, inputs, i));
  }
  return OkStatus();
}

Status AttentionRunner::RememberPrompt(const LayerAttention& step, const DecoderRows& rows, const DecoderInputs& inputs,
                                       size_t index) {
  const PrefillChunk& chunk = rows.prefill[index];
  const ForwardChunk& source = *rows.prefill_source[index];
  const PageDataNeeds needs = source.policy->Declare();
  PrefillMassParams params = MassParams(step);
  params.by_token = needs.slot_map;
  const auto show = [&](int begin, int count, int64_t mass_pages) -> Status {
    params.chunk = {chunk.seq, chunk.first_row + begin, count, chunk.start_pos + begin};
    params.mass_pages = mass_pages;
    RETURN_IF_ERROR(mass_.Reserve(sizeof(float) * count * kv_heads_ * mass_pages, ctx_.device));
    params.mass = mass_.As<float>();
    RETURN_IF_ERROR(Mass(params));
    RETURN_IF_ERROR(replicas_.SumMass(params.mass, count * mass_pages));
    const int64_t sequence = rows.decode_rows + static_cast<int64_t>(index);  // among histories and maps
    if (needs.slot_map) {
      source.policy->RememberSlotRows(ctx_, {.mass = params.mass,
                                             .mass_slots = mass_pages,
                                             .rows = count,
                                             .kv_heads = kv_heads_,
                                             .row_len = inputs.len + params.chunk.first_row,
                                             .maps = inputs.Slots(step.layer) + sequence,
                                             .one_sequence = true});
      return OkStatus();
    }
    source.policy->RememberRows(ctx_, {.mass = params.mass,
                                       .mass_pages = mass_pages,
                                       .rows = count,
                                       .kv_heads = kv_heads_,
                                       .page_size = step.table.format.page_size,
                                       .row_pos = inputs.pos + params.chunk.first_row,
                                       .history = inputs.History(step.layer) + sequence,
                                       .one_sequence = true});
    return OkStatus();
  };
  return ForEachLot(ctx_.device, kv_heads_, chunk, needs, step.table.format.page_size, show);
}

}  // namespace quire

#include "core/model/decoder_attention.h"

#include <algorithm>
#include <cstring>

#include "core/base/check.h"
#include "core/base/clock.h"
#include "core/model/weight_slices.h"
#include "kernels/attention_decode.h"
#include "kernels/attention_decode_sinks.h"
#include "kernels/attention_mass.h"
#include "kernels/elementwise.h"
#include "kernels/kv_append.h"

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
bool Remembers(const LayerAttention& step, const AttentionPolicy* policy) {
  return policy != nullptr && step.window == 0 &&
         RemembersLayer(*policy, step.layer, step.table.format.page_size);
}

}  // namespace

Result<AttentionRunner> AttentionRunner::Create(const Context& ctx, const ModelConfig& config, const ShardPlan& plan,
                                                Communicator* comm, int64_t max_length) {
  AttentionRunner runner;
  runner.ctx_ = ctx;
  runner.q_heads_ = static_cast<int>(plan.q_heads.size());
  runner.kv_heads_ = static_cast<int>(plan.kv_heads.size());
  runner.head_dim_ = config.head_dim;
  runner.qkv_width_ = int64_t{runner.q_heads_ + 2 * runner.kv_heads_} * config.head_dim;
  runner.scale_ = config.attention_scale();
  runner.softcap_ = config.attention_softcap;
  runner.max_length_ = max_length;
  runner.comm_ = comm;
  runner.rank_ = plan.rank;
  runner.counts_pages_ = plan.replica_index == 0;
  if (plan.tp > config.kv_heads) {
    for (int rank = 0; rank < plan.tp; ++rank) {
      ASSIGN_OR_RETURN(ShardPlan other, ShardPlan::Create(NumbersOf(config), plan.tp, rank));
      runner.replicated_.push_back(other);
    }
  }
  return runner;
}

size_t AttentionRunner::scratch_bytes() const {
  return workspace_.size() + selection_memory_.size() + group_send_.size() + group_all_.size() + group_q_.size() +
         turned_.size() + mass_.size() + lse_.size();
}

Status AttentionRunner::Run(const LayerAttention& step, DecoderRows& rows, AttentionStats& stats) {
  const int64_t k_offset = int64_t{q_heads_} * head_dim_;
  KvAppend(ctx_, {.pages = step.pages,
                  .table = step.table,
                  .k = step.qkv + k_offset,
                  .k_stride = qkv_width_,
                  .v = step.qkv + k_offset + int64_t{kv_heads_} * head_dim_,
                  .v_stride = qkv_width_,
                  .row_seq = rows.seq.data(),
                  .row_pos = rows.pos.data(),
                  .rows = rows.rows});
  for (int begin = 0; begin < rows.decode_rows;) {
    const DecodeRun run = NextRun(step, rows, begin);
    RETURN_IF_ERROR(RunDecode(step, rows, run, stats));
    begin = run.end;
  }
  return RunPrefill(step, rows);
}

AttentionRunner::DecodeRun AttentionRunner::NextRun(const LayerAttention& step, const DecoderRows& rows,
                                                    int begin) const {
  const auto effective = [&](int row) -> const AttentionPolicy* {
    const AttentionPolicy* policy = rows.policy[row];
    if (policy == nullptr || step.window > 0) return nullptr;
    return policy->IsDense(rows.len[row], step.layer, step.table.format.page_size) ? nullptr : policy;
  };
  DecodeRun run{begin, begin + 1, effective(begin), Remembers(step, rows.policy[begin])};
  while (run.end < rows.decode_rows && effective(run.end) == run.policy &&
         Remembers(step, rows.policy[run.end]) == run.remembers) {
    ++run.end;
  }
  return run;
}

Status AttentionRunner::RunDecode(const LayerAttention& step, const DecoderRows& rows, const DecodeRun& run,
                                  AttentionStats& stats) {
  const double start = NowSeconds();
  if (run.policy != nullptr) {
    RETURN_IF_ERROR(Select(step, rows, run, stats));
    stats.selection_seconds += NowSeconds() - start;
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
  params.row_seq = rows.seq.data() + run.begin;
  params.row_len = rows.len.data() + run.begin;
  params.pages = step.pages;
  params.table = step.table;
  params.selection = run.policy != nullptr ? &selection_ : nullptr;
  params.scale = scale_;
  params.window = step.window;
  if (run.remembers) {
    const int32_t longest = *std::max_element(params.row_len, params.row_len + params.rows);
    params.mass_pages = (longest + step.table.format.page_size - 1) / step.table.format.page_size;
    RETURN_IF_ERROR(mass_.Reserve(sizeof(float) * int64_t{params.rows} * kv_heads_ * params.mass_pages));
    params.mass = mass_.As<float>();
  }
  const SinkWindow window =
      run.policy == nullptr ? SinkWindow{} : run.policy->WindowAt(rows.len[run.begin]);
  if (window.window > 0) {
    RETURN_IF_ERROR(AttendSinks(step, params, run, window));
  } else {
    RETURN_IF_ERROR(workspace_.Reserve(AttentionDecodeWorkspace(params)));
    if (softcap_ > 0) {
      AttentionDecode(ctx_, params, SoftCapMod{{softcap_}, {}}, workspace_.As<void>());
    } else {
      AttentionDecode(ctx_, params, workspace_.As<void>());
    }
  }
  stats.attention_seconds += NowSeconds() - attention_start;
  if (run.remembers) {
    const double remember_start = NowSeconds();
    RETURN_IF_ERROR(RememberDecode(step, rows, run, params.mass_pages));
    stats.selection_seconds += NowSeconds() - remember_start;
  }

  const PageFormat& format = step.table.format;
  const int64_t block_bytes = (format.k_head_stride + format.v_head_stride) * ElementSize(format.dtype);
  for (int row = run.begin; row < run.end; ++row) {
    if (!counts_pages_) break;
    const int64_t live = kv_heads_ * LivePages(rows.len[row], step.window, step.table.format.page_size);
    int64_t read = run.policy == nullptr ? live : 0;
    if (run.policy != nullptr) {
      const int32_t* counts = selection_.counts + int64_t{row - run.begin} * kv_heads_;
      for (int head = 0; head < kv_heads_; ++head) read += counts[head];
    }
    stats.reads() += {read, live, read * block_bytes, live * block_bytes};
    stats.row_pages_total[rows.source[row]] += live;
    stats.row_pages_read[rows.source[row]] += read;
  }
  return OkStatus();
}

Status AttentionRunner::AttendSinks(const LayerAttention& step, const AttentionDecodeParams& decode,
                                    const DecodeRun& run, const SinkWindow& window) {
  const int64_t width = int64_t{q_heads_} * head_dim_;
  AttentionSinksParams params;
  params.decode = decode;
  params.decode.selection = nullptr;
  params.decode.window = window.window;
  params.sinks = window.sinks;
  params.q_sinks = decode.q;
  params.q_sinks_stride = decode.q_stride;
  params.softcap = softcap_;
  if (step.turns != nullptr && window.sinks > 0) {
    RETURN_IF_ERROR(turned_.Reserve(sizeof(float) * decode.rows * width));
    float* turned = turned_.As<float>();
    for (int64_t row = 0; row < decode.rows; ++row) {
      std::memcpy(turned + row * width, decode.q + row * decode.q_stride, sizeof(float) * width);
    }
    Rope(ctx_, {.x = turned,
                .x_stride = width,
                .rows = decode.rows,
                .heads = q_heads_,
                .head_dim = head_dim_,
                .rotary_dim = step.rope->rotary_dim,
                .interleaved = step.rope->interleaved,
                .cos_sin = step.turns + int64_t{run.begin} * step.rope->rotary_dim});
    params.q_sinks = turned;
    params.q_sinks_stride = width;
  }
  RETURN_IF_ERROR(workspace_.Reserve(AttentionSinksWorkspace(params)));
  AttentionDecodeSinks(ctx_, params, workspace_.As<void>());
  return OkStatus();
}

Status AttentionRunner::RememberDecode(const LayerAttention& step, const DecoderRows& rows, const DecodeRun& run,
                                       int64_t mass_pages) {
  RETURN_IF_ERROR(SumReplicas(int64_t{run.end - run.begin} * kv_heads_ * mass_pages));
  ctx_.pool->ParallelFor(int64_t{run.end - run.begin} * kv_heads_, [&](int64_t list, int) {
    const int row = run.begin + static_cast<int>(list / kv_heads_), head = static_cast<int>(list % kv_heads_);
    AttentionMass mass;
    mass.position = rows.pos[row];
    mass.mass = mass_.As<float>() + list * mass_pages;
    if (run.policy != nullptr) {
      mass.read = selection_.pages + list * selection_.max_pages;
      mass.read_count = selection_.counts[list];
    }
    rows.policy[row]->Remember(mass, head, &rows.history[row][step.layer]);
  });
  return OkStatus();
}

Status AttentionRunner::SumReplicas(int64_t floats) {
  if (replicated_.empty()) return OkStatus();
  const int ranks = static_cast<int>(replicated_.size());
  RETURN_IF_ERROR(group_all_.Reserve(sizeof(float) * floats * ranks));
  RETURN_IF_ERROR(comm_->AllGather({mass_.As<void>(), DType::kF32, {floats}, ctx_.device},
                                   {group_all_.As<void>(), DType::kF32, {floats * ranks}, ctx_.device}, ctx_.stream));
  const ShardPlan& mine = replicated_[rank_];
  const float* first = group_all_.As<float>() + floats * (rank_ - mine.replica_index);
  float* sum = mass_.As<float>();
  std::copy_n(first, floats, sum);
  for (int r = 1; r < mine.replicas; ++r) {
    for (int64_t i = 0; i < floats; ++i) sum[i] += first[r * floats + i];
  }
  return OkStatus();
}

Status AttentionRunner::Select(const LayerAttention& step, const DecoderRows& rows, const DecodeRun& run,
                               AttentionStats& stats) {
  SelectParams params;
  params.q = step.qkv + run.begin * qkv_width_;
  params.q_stride = qkv_width_;
  params.rows = run.end - run.begin;
  params.q_heads = q_heads_;
  params.row_seq = rows.seq.data() + run.begin;
  params.row_len = rows.len.data() + run.begin;
  params.layer = step.layer;
  params.pages = step.pages;
  params.table = step.table;
  params.scale = scale_;
  if (run.remembers) {
    histories_.clear();
    for (int row = run.begin; row < run.end; ++row) histories_.push_back(rows.history[row][step.layer]);
    params.history = histories_.data();
  }
  if (!replicated_.empty() && run.policy->Declare().queries) RETURN_IF_ERROR(GatherGroup(run, params));

  const int32_t longest = *std::max_element(params.row_len, params.row_len + params.rows);
  const int64_t length = std::max<int64_t>(max_length_, longest);
  const int max_pages = run.policy->MaxPages(length, step.table.format.page_size);
  const size_t lists = static_cast<size_t>(params.rows) * kv_heads_;
  RETURN_IF_ERROR(selection_memory_.Reserve(lists * (static_cast<size_t>(max_pages) + 1) * sizeof(int32_t)));
  selection_ = {};
  selection_.counts = selection_memory_.As<int32_t>();
  selection_.pages = selection_.counts + lists;
  selection_.max_pages = max_pages;
  RETURN_IF_ERROR(workspace_.Reserve(run.policy->SelectWorkspace(params)));
  run.policy->Select(ctx_, params, selection_, workspace_.As<void>());
  if (counts_pages_) stats.bytes_read += run.policy->SelectBytes(params);
  if (observer_ != nullptr) observer_->OnSelect(params, selection_);
  return OkStatus();
}

Status AttentionRunner::GatherGroup(const DecodeRun& run, SelectParams& params) {
  const int64_t rows = run.end - run.begin;
  const auto width_of = [&](int rank) { return replicated_[rank].q_heads.size() * head_dim_; };
  int64_t total = 0;
  counts_.clear();
  for (int rank = 0; rank < static_cast<int>(replicated_.size()); ++rank) {
    counts_.push_back(rows * width_of(rank));
    total += counts_.back();
  }
  const int64_t width = width_of(rank_);
  RETURN_IF_ERROR(group_send_.Reserve(sizeof(float) * rows * width));
  RETURN_IF_ERROR(group_all_.Reserve(sizeof(float) * total));
  for (int64_t row = 0; row < rows; ++row) {
    std::memcpy(group_send_.As<float>() + row * width, params.q + row * params.q_stride, sizeof(float) * width);
  }
  RETURN_IF_ERROR(comm_->AllGatherV({group_send_.As<void>(), DType::kF32, {rows * width}, ctx_.device},
                                    {group_all_.As<void>(), DType::kF32, {total}, ctx_.device}, counts_, ctx_.stream));
  // The replicas of this rank's KV head are neighbours; their heads put side by side are the group.
  const ShardPlan& mine = replicated_[rank_];
  const int first = rank_ - mine.replica_index;
  int64_t group_width = 0;
  for (int r = first; r < first + mine.replicas; ++r) group_width += width_of(r);
  RETURN_IF_ERROR(group_q_.Reserve(sizeof(float) * rows * group_width));
  int64_t from = 0, column = 0;
  for (int r = 0; r < first; ++r) from += counts_[r];
  for (int r = first; r < first + mine.replicas; ++r) {
    for (int64_t row = 0; row < rows; ++row) {
      std::memcpy(group_q_.As<float>() + row * group_width + column,
                  group_all_.As<float>() + from + row * width_of(r), sizeof(float) * width_of(r));
    }
    from += counts_[r];
    column += width_of(r);
  }
  params.q = group_q_.As<float>();
  params.q_stride = group_width;
  params.q_heads = static_cast<int>(group_width / head_dim_);
  return OkStatus();
}

Status AttentionRunner::RunPrefill(const LayerAttention& step, DecoderRows& rows) {
  const auto remembers = [&](size_t i) { return Remembers(step, rows.prefill_source[i]->policy); };
  const std::vector<PrefillChunk>& chunks = step.last ? rows.PrefillWithLogits(remembers) : rows.prefill;
  if (chunks.empty()) return OkStatus();
  bool any_remembers = false;
  for (size_t i = 0; i < rows.prefill.size(); ++i) any_remembers |= remembers(i);
  AttentionPrefillParams params;
  params.q = step.qkv;
  params.q_stride = qkv_width_;
  params.out = step.out;
  params.out_stride = int64_t{q_heads_} * head_dim_;
  params.q_heads = q_heads_;
  params.chunks = chunks.data();
  params.num_chunks = static_cast<int>(chunks.size());
  params.pages = step.pages;
  params.table = step.table;
  params.scale = scale_;
  params.window = step.window;
  if (any_remembers) {
    RETURN_IF_ERROR(lse_.Reserve(sizeof(float) * int64_t{rows.rows} * q_heads_));
    params.lse = lse_.As<float>();
  }
  RETURN_IF_ERROR(workspace_.Reserve(AttentionPrefillWorkspace(ctx_, params)));
  if (softcap_ > 0) {
    AttentionPrefill(ctx_, params, SoftCapMod{{softcap_}, {}}, workspace_.As<void>());
  } else {
    AttentionPrefill(ctx_, params, workspace_.As<void>());
  }
  for (size_t i = 0; i < rows.prefill.size(); ++i) {
    if (remembers(i)) RETURN_IF_ERROR(RememberPrompt(step, rows.prefill[i], *rows.prefill_source[i]));
  }
  return OkStatus();
}

Status AttentionRunner::RememberPrompt(const LayerAttention& step, const PrefillChunk& chunk,
                                       const ForwardChunk& source) {
  const int page_size = step.table.format.page_size;
  const int wanted = source.policy->Declare().history_rows;
  PrefillMassParams params;
  params.q = step.qkv;
  params.q_stride = qkv_width_;
  params.lse = lse_.As<float>();
  params.q_heads = q_heads_;
  params.pages = step.pages;
  params.table = step.table;
  params.scale = scale_;
  const int first = wanted > 0 ? std::max(0, chunk.rows - wanted) : 0;
  for (int begin = first; begin < chunk.rows;) {
    // Bits of a row don't depend on how many are done at once.
    const int64_t row_floats = kv_heads_ * ((int64_t{chunk.start_pos} + chunk.rows + page_size - 1) / page_size);
    const int count = static_cast<int>(std::clamp<int64_t>(kPromptMassFloats / row_floats, 1, chunk.rows - begin));
    params.chunk = {chunk.seq, chunk.first_row + begin, count, chunk.start_pos + begin};
    params.mass_pages = (int64_t{chunk.start_pos} + begin + count + page_size - 1) / page_size;
    const int64_t floats = int64_t{count} * kv_heads_ * params.mass_pages;
    RETURN_IF_ERROR(mass_.Reserve(sizeof(float) * floats));
    params.mass = mass_.As<float>();
    RETURN_IF_ERROR(workspace_.Reserve(PrefillMassWorkspace(ctx_, params)));
    if (softcap_ > 0) {
      PrefillMass(ctx_, params, SoftCapMod{{softcap_}, {}}, workspace_.As<void>());
    } else {
      PrefillMass(ctx_, params, workspace_.As<void>());
    }
    RETURN_IF_ERROR(SumReplicas(floats));
    ctx_.pool->ParallelFor(kv_heads_, [&](int64_t head, int) {
      for (int row = 0; row < count; ++row) {
        AttentionMass mass;
        mass.position = int64_t{params.chunk.start_pos} + row;
        mass.mass = params.mass + (int64_t{row} * kv_heads_ + head) * params.mass_pages;
        source.policy->Remember(mass, static_cast<int>(head), &source.history[step.layer]);
      }
    });
    begin += count;
  }
  return OkStatus();
}

}  // namespace quire

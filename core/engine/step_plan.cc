#include "core/engine/step_plan.h"

#include <string>

#include "core/engine/byte_stream.h"

namespace quire {
namespace {

constexpr uint32_t kMagic = 0x51535033;  // "QSP3"

void PutSampler(ByteWriter& w, const SamplerParams& p) {
  w.Put(p.temperature);
  w.Put(p.top_k);
  w.Put(p.top_p);
  w.Put(p.min_p);
  w.Put(p.repetition_penalty);
  w.Put(p.presence_penalty);
  w.Put(p.frequency_penalty);
  w.Put(p.seed);
  w.Put(p.logprobs);
  w.Put(p.min_tokens);
  w.Put(static_cast<uint32_t>(p.logit_bias.size()));
  for (const auto& [id, bias] : p.logit_bias) {
    w.Put(id);
    w.Put(bias);
  }
  w.PutAll(p.masked_ids);
}

SamplerParams GetSampler(ByteReader& r) {
  SamplerParams p;
  p.temperature = r.GetFloat();
  p.top_k = r.Get<int32_t>();
  p.top_p = r.GetFloat();
  p.min_p = r.GetFloat();
  p.repetition_penalty = r.GetFloat();
  p.presence_penalty = r.GetFloat();
  p.frequency_penalty = r.GetFloat();
  p.seed = r.Get<uint64_t>();
  p.logprobs = r.Get<int32_t>();
  p.min_tokens = r.Get<int32_t>();
  const uint32_t biases = r.GetCount(8);
  for (uint32_t i = 0; i < biases; ++i) {
    const int32_t id = r.Get<int32_t>();
    p.logit_bias.emplace_back(id, r.GetFloat());
  }
  p.masked_ids = r.GetAll<int32_t>();
  return p;
}

Status Bad(const char* what, int64_t value) {
  return InvalidArgument(std::string("the step plan is damaged: ") + what + " " + std::to_string(value));
}

bool In(int64_t value, int64_t end) { return value >= 0 && value < end; }

}  // namespace

int32_t StepPlan::rows() const {
  int32_t rows = 0;
  for (const PlanChunk& chunk : chunks) rows += chunk.rows;
  return rows;
}

void StepPlan::Serialize(std::vector<uint8_t>* out) const {
  out->clear();
  ByteWriter w(out);
  w.Put(kMagic);
  w.Put(step);
  w.PutAll(ends);
  w.Put(static_cast<uint32_t>(starts.size()));
  for (const SlotStart& start : starts) {
    w.Put(start.slot);
    w.Put(start.sequence);
    w.Put(start.output_begin);
    w.PutAll(start.tokens);
    PutSampler(w, start.sampler);
    w.Put(start.attention);
  }
  w.Put(static_cast<uint32_t>(forks.size()));
  for (const SlotFork& fork : forks) {
    w.Put(fork.from);
    w.Put(fork.to);
    w.Put(fork.sequence);
    w.Put(fork.attention);
  }
  w.PutAll(cache_ops.ops);
  w.PutAll(cache_ops.pages);
  w.PutAll(table_deltas);
  w.PutAll(table_values);
  w.PutAll(fills);
  w.PutAll(chunks);
  w.PutAll(logit_rows);
  w.PutAll(samples);
  w.PutAll(scores);
}

Result<StepPlan> StepPlan::Parse(std::span<const uint8_t> bytes, const PlanLimits& limits) {
  ByteReader r(bytes);
  if (r.Get<uint32_t>() != kMagic) return InvalidArgument("the message is no step plan of this version");
  StepPlan plan;
  plan.step = r.Get<uint64_t>();
  plan.ends = r.GetAll<int32_t>();
  const uint32_t starts = r.GetCount(64);
  for (uint32_t i = 0; i < starts && r.ok(); ++i) {
    SlotStart start;
    start.slot = r.Get<int32_t>();
    start.sequence = r.Get<int32_t>();
    start.output_begin = r.Get<int32_t>();
    start.tokens = r.GetAll<int32_t>();
    start.sampler = GetSampler(r);
    start.attention = r.GetString();
    plan.starts.push_back(std::move(start));
  }
  const uint32_t forks = r.GetCount(16);
  for (uint32_t i = 0; i < forks && r.ok(); ++i) {
    SlotFork fork;
    fork.from = r.Get<int32_t>();
    fork.to = r.Get<int32_t>();
    fork.sequence = r.Get<int32_t>();
    fork.attention = r.GetString();
    plan.forks.push_back(std::move(fork));
  }
  plan.cache_ops.ops = r.GetAll<CacheOp>();
  plan.cache_ops.pages = r.GetAll<int32_t>();
  plan.table_deltas = r.GetAll<TableDelta>();
  plan.table_values = r.GetAll<int32_t>();
  plan.fills = r.GetAll<RandomFill>();
  plan.chunks = r.GetAll<PlanChunk>();
  plan.logit_rows = r.GetAll<int32_t>();
  plan.samples = r.GetAll<PlanSample>();
  plan.scores = r.GetAll<PlanScore>();
  if (!r.done()) {
    return InvalidArgument("the step plan is cut short or over-long (" + std::to_string(bytes.size()) + " bytes)");
  }
  RETURN_IF_ERROR(plan.Check(limits));
  return plan;
}

Status StepPlan::Check(const PlanLimits& limits) const {
  for (int32_t slot : ends) {
    if (!In(slot, limits.slots)) return Bad("slot", slot);
  }
  for (const SlotStart& start : starts) {
    if (!In(start.slot, limits.slots)) return Bad("slot", start.slot);
    const int64_t length = static_cast<int64_t>(start.tokens.size());
    if (length < 1 || length > limits.longest()) return Bad("sequence length", length);
    if (start.output_begin < 0 || start.output_begin > length) return Bad("output_begin", start.output_begin);
    if (start.sampler.logprobs > limits.vocab) return Bad("logprobs", start.sampler.logprobs);
    for (int32_t id : start.tokens) {
      if (!In(id, limits.vocab)) return Bad("token id", id);
    }
  }
  for (const SlotFork& fork : forks) {
    if (!In(fork.from, limits.slots) || !In(fork.to, limits.slots)) return Bad("fork to slot", fork.to);
  }
  for (const CacheOp& op : cache_ops.ops) {
    if (!In(op.cache_group, limits.cache_groups)) return Bad("cache group", op.cache_group);
    if (!In(static_cast<int32_t>(op.kind), 5)) return Bad("cache op", static_cast<int32_t>(op.kind));
    if (op.pages_begin < 0 || op.columns < 0 ||
        (op.kind == CacheOp::Kind::kRecomputeMetadata &&
         int64_t{op.pages_begin} + op.columns > static_cast<int64_t>(cache_ops.pages.size()))) {
      return Bad("page list of a cache op at", op.pages_begin);
    }
  }
  for (const TableDelta& d : table_deltas) {
    if (!In(d.slot, limits.slots)) return Bad("slot", d.slot);
    if (!In(d.cache_group, limits.cache_groups)) return Bad("cache group", d.cache_group);
    if (!In(d.metadata, 2)) return Bad("table kind", d.metadata);
    if (d.size < 0 || d.size > limits.max_length || d.first < 0 || d.count < 0 || d.begin < 0 ||
        int64_t{d.first} + d.count > d.size || int64_t{d.begin} + d.count > static_cast<int64_t>(table_values.size())) {
      return Bad("table delta at", d.first);
    }
  }
  for (const RandomFill& fill : fills) {
    if (!In(fill.slot, limits.slots)) return Bad("slot", fill.slot);
    if (fill.length < 0 || fill.length > limits.max_length) return Bad("fill length", fill.length);
  }
  int64_t rows = 0;
  bool prefill_seen = false;
  for (const PlanChunk& chunk : chunks) {
    if (!In(chunk.slot, limits.slots)) return Bad("slot", chunk.slot);
    if (!In(chunk.decode, 2)) return Bad("decode flag", chunk.decode);
    if (chunk.decode == 1 ? (chunk.rows != 1 || prefill_seen) : chunk.rows < 1) return Bad("chunk of rows", chunk.rows);
    prefill_seen |= chunk.decode == 0;
    if (chunk.start_pos < 0 || int64_t{chunk.start_pos} + chunk.rows > limits.longest()) {
      return Bad("chunk at position", chunk.start_pos);
    }
    if (chunk.rope_length < 0) return Bad("rope length", chunk.rope_length);
    rows += chunk.rows;
  }
  if (rows > limits.max_rows) return Bad("number of rows", rows);
  int32_t before = -1;
  for (int32_t row : logit_rows) {
    if (row <= before || row >= rows) return Bad("logit row", row);
    before = row;
  }
  const int64_t logits = static_cast<int64_t>(logit_rows.size());
  if (logits > limits.max_logit_rows) return Bad("number of logit rows", logits);
  std::vector<bool> sampled(static_cast<size_t>(limits.slots));
  for (const PlanSample& sample : samples) {
    if (!In(sample.slot, limits.slots) || sampled[static_cast<size_t>(sample.slot)])
      return Bad("sample of slot", sample.slot);
    sampled[static_cast<size_t>(sample.slot)] = true;
    if (!In(sample.logit, logits)) return Bad("logit index", sample.logit);
    if (sample.forced < -1 || sample.forced >= limits.vocab) return Bad("forced token", sample.forced);
  }
  for (const PlanScore& score : scores) {
    if (!In(score.slot, limits.slots)) return Bad("slot", score.slot);
    if (!In(score.logit, logits)) return Bad("logit index", score.logit);
    if (!In(score.position, limits.longest()) || score.top < 0 || score.top > limits.vocab) {
      return Bad("score at position", score.position);
    }
  }
  return OkStatus();
}

}  // namespace quire

// StepPlan: one step as plain data, made by the scheduler on rank 0 apart from its execution, and all that a rank needs
// to execute it. It names slots, pages and rows; it never waits for token values: every rank keeps the tokens of a slot
// and appends what it draws itself, so chunks say "positions from … of slot …".
//
// Order of execution: ends, starts, forks, cache ops, table deltas, random fills, forward, samples.
//
// Serialize gives one fixed-layout message (little endian, arrays with their counts in front); Parse takes bytes that
// nobody vouches for, and checks everything that the executor relies on against PlanLimits.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "core/base/status.h"
#include "core/engine/sampling.h"
#include "kvstore/cache_ops.h"

namespace quire {

// A slot gets a sequence: a new one, or one that was preempted and starts again.
struct SlotStart {
  int32_t slot = 0;
  int32_t sequence = 0;         // of its request, for the draws
  int32_t output_begin = 0;     // tokens[output_begin …] are outputs
  std::vector<int32_t> tokens;  // known so far
  SamplerParams sampler;
  std::string attention;        // the policy of its decode rows, an AttentionSpec's text
  bool operator==(const SlotStart&) const = default;
};

// Slot `to` becomes a copy of slot `from` (tokens as before this step, sampler, policy), as another sequence of the request.
struct SlotFork {
  int32_t from = 0, to = 0, sequence = 0;
  std::string attention = {};  // its policy, an AttentionSpec's text; empty: that of `from`
  bool operator==(const SlotFork&) const = default;
};

// Entries [first, first + count) of a slot's page table, or of its table of metadata groups, become values[begin …).
struct TableDelta {
  int32_t slot = 0;
  int32_t cache_group = 0;
  int32_t metadata = 0;  // 0: pages, 1: metadata groups
  int32_t size = 0;      // of the table afterwards
  int32_t first = 0;
  int32_t count = 0;
  int32_t begin = 0;  // in StepPlan::table_values
  bool operator==(const TableDelta&) const = default;
};

// The first `length` tokens of the slot get seeded random K and V (benchmarks); of an evicting sequence those that it
// has kept.
struct RandomFill {
  int32_t slot = 0;
  int32_t reserved = 0;
  int64_t length = 0;
  uint64_t seed = 0;
  bool operator==(const RandomFill&) const = default;
};

// A run of rows of one slot: its tokens at positions [start_pos, start_pos + rows).
struct PlanChunk {
  int32_t slot = 0;
  int32_t start_pos = 0;
  int32_t rows = 0;
  int32_t decode = 0;       // 1: one row, decode kernel with the slot's policy
  int32_t rope_length = 0;  // that dynamic rope scaling counts with
  bool operator==(const PlanChunk&) const = default;
};

struct PlanSample {
  int32_t slot = 0;
  int32_t logit = 0;    // index into StepPlan::logit_rows
  int32_t forced = -1;  // ≥ 0: this token
  bool operator==(const PlanSample&) const = default;
};

// The log-probability of the slot's token at `position`, from the row before it.
struct PlanScore {
  int32_t slot = 0;
  int32_t logit = 0;
  int32_t position = 0;
  int32_t top = 0;
  bool operator==(const PlanScore&) const = default;
};

struct PlanLimits {
  int32_t slots = 0;
  int32_t cache_groups = 0;
  int32_t max_rows = 0;
  int32_t max_logit_rows = 0;
  int32_t vocab = 0;
  int64_t max_length = 0;  // tokens of a sequence in the cache
  int64_t max_tokens = 0;  // of a sequence that overwrites what it has in the cache, if that may be more
  int64_t longest() const { return max_tokens > max_length ? max_tokens : max_length; }
};

struct StepPlan {
  uint64_t step = 0;
  std::vector<int32_t> ends;  // slots that are given up
  std::vector<SlotStart> starts;
  std::vector<SlotFork> forks;
  CacheOps cache_ops;
  std::vector<TableDelta> table_deltas;
  std::vector<int32_t> table_values;
  std::vector<RandomFill> fills;
  std::vector<PlanChunk> chunks;    // decode chunks first
  std::vector<int32_t> logit_rows;  // ascending rows of the step
  std::vector<PlanSample> samples;  // at most one a slot
  std::vector<PlanScore> scores;

  int32_t rows() const;
  // Nothing for a rank to do.
  bool empty() const {
    return ends.empty() && starts.empty() && forks.empty() && cache_ops.empty() && table_deltas.empty() &&
           fills.empty() && chunks.empty();
  }
  bool operator==(const StepPlan&) const = default;

  void Serialize(std::vector<uint8_t>* out) const;
  static Result<StepPlan> Parse(std::span<const uint8_t> bytes, const PlanLimits& limits);
  // What the executor relies on and can be told from the plan alone. Ids of pages are checked by PageStorage.
  Status Check(const PlanLimits& limits) const;
};

}  // namespace quire

// Which part of each parameter a rank holds: pure arithmetic from a ShardPlan. Loading reads exactly these slices, and
// what it will read can be told without reading.
#pragma once

#include <cstdint>

#include "core/io/weight_source.h"
#include "core/model/families.h"
#include "core/model/model_config.h"
#include "parallel/shard_plan.h"

namespace quire {

// What a ShardPlan is made from. Blocks of quantised weights may be cut: they are expanded as they are read.
ModelNumbers NumbersOf(const ModelConfig& config);

// This rank's slice of a parameter; vectors are one row. The model must have the parameter.
TensorSlice SliceOf(const ModelConfig& config, const ShardPlan& plan, Param param);

// True when the model has the parameter and this rank holds a part of it: a bias that is added to a sum over ranks is
// rank 0's alone, norms of heads are those of ranks with heads. Embedding and head are one when tied. A held
// slice may still be empty.
bool Holds(const ModelConfig& config, const ShardPlan& plan, Param param);

// Bytes of the checkpoint that LoadWeights reads for this plan (whole blocks of quantised tensors, where a slice cuts
// one).
int64_t BytesToRead(const Checkpoint& checkpoint, const ShardPlan& plan);

}  // namespace quire

// Hybrid's selection on the GPU: page scores over the channels where the queries are largest, then the best pages as quest
// lists them. Pointers are device memory. The rules are those of kernels/selection/hybrid.cc.
#pragma once

#include "core/base/device.h"
#include "core/base/status.h"
#include "kernels/cuda/quest.h"

namespace quire::cuda {

// Scores as QuestScores writes them: reduce over the query group of Σ_c q_c · (max_c where the group's Σ q_c ≥ 0, else min_c),
// over the `channels` channels with the largest Σ|q_c|; equal ones to the lower channel, none where a query is NaN; NaN for no
// channels at all. Queries are f32, params.kept_groups null. f32; each page's sum is in one order.
// Bytes: rows * kv_heads * groups * channels * 16 * element size.
Status HybridScores(Stream stream, const QuestParams& params, int channels);

Status HybridSelect(Stream stream, const QuestParams& params, int channels, SelectionView selection);

}  // namespace quire::cuda

// Page scores over some channels, of each its min or its max alone (RocketKV's second stage, arXiv 2502.14051).
#pragma once

#include <cstdint>

#include "core/base/dtype.h"
#include "kernels/cpu/quest_scores.h"

namespace quire {

struct HybridScoreParams {
  DType dtype = DType::kBF16;
  const float* q = nullptr;  // [heads][num_runs], row stride q_stride: the query group at the channels of the runs
  int64_t q_stride = 0;
  int heads = 0;
  const int32_t* runs = nullptr;  // [num_runs]: which · k_dim + channel, which 0 = min, 1 = max
  int num_runs = 0;
  const void* meta = nullptr;          // as in QuestScoreParams
  int64_t group_stride = 0;            // elements
  const int32_t* group_ids = nullptr;  // [groups]; a negative id scores its pages NaN
  int groups = 0;
  GroupReduce reduce = GroupReduce::kMax;
  float* scores = nullptr;  // [groups][16], all columns written
};

// score = reduce over the heads of Σ_i q_i · (run i of the page), f32, runs in order; NaN for no runs at all.
// Bytes: groups * num_runs * 16 * element size. Not threaded: callers cut the groups.
void HybridScores(const HybridScoreParams& params);

}  // namespace quire

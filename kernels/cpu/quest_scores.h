// Quest's page scores from the channel-major page metadata (Tang et al., arXiv 2406.10774).
#pragma once

#include <cstdint>

#include "core/base/dtype.h"

namespace quire {

enum class GroupReduce { kMax, kMean, kSum };

struct QuestScoreParams {
  DType dtype = DType::kBF16;
  const float* q = nullptr;         // [heads][k_dim]: the query group of one KV head
  int heads = 0;
  int k_dim = 0;
  const void* meta = nullptr;       // one layer and KV head: group g at element offset group_ids[g] * group_stride
  int64_t group_stride = 0;         // elements
  const int32_t* group_ids = nullptr;  // [groups]; a negative id scores its pages NaN
  int groups = 0;
  GroupReduce reduce = GroupReduce::kMax;
  float* scores = nullptr;          // [groups][16], all columns written, also those past the last page
};

// score = reduce over the heads of Σ_c max(q_c · min_c, q_c · max_c), f32, channels in order.
// Bytes: groups * 2 * k_dim * 16 * element size. Not threaded: callers cut the groups.
void QuestScores(const QuestScoreParams& params);

}  // namespace quire

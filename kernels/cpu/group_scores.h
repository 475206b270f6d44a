// Quest's bound for whole metadata groups, from the min and max over their 16 pages: hierarchical quest's first look.
#pragma once

#include <cstdint>

#include "core/base/dtype.h"
#include "kernels/cpu/quest_scores.h"

namespace quire {

struct GroupScoreParams {
  DType dtype = DType::kBF16;
  const float* q = nullptr;  // [heads][k_dim]: the query group of one KV head
  int heads = 0;
  int k_dim = 0;
  const void* over = nullptr;  // one layer and KV head, [2][k_dim]: group g at element group_ids[g] * group_stride
  int64_t group_stride = 0;    // elements
  const int32_t* group_ids = nullptr;  // [groups]; a negative id scores NaN
  int groups = 0;
  GroupReduce reduce = GroupReduce::kMax;
  float* scores = nullptr;  // [groups]
};

// score = reduce over the heads of Σ_c max(q_c · min_c, q_c · max_c), f32; NaN if any head's is. The sum's order is the
// same for every vector width. Bytes: groups * 2 * k_dim * element size. Not threaded: callers cut the groups.
void GroupScores(const GroupScoreParams& params);

}  // namespace quire

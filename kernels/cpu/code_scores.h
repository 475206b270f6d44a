// Quest's page scores from metadata in 8 bits (kernels/metadata_codes.h).
#pragma once

#include <cstdint>

#include "kernels/cpu/quest_scores.h"
#include "kernels/page_table.h"

namespace quire {

struct CodeScoreParams {
  QuestScoreParams exact;  // as QuestScores takes it; all its groups are whole, or not there
  PageFormat format;
  const uint8_t* codes = nullptr;  // one layer and KV head: a group's at group_ids[g] * exact.group_stride
  const void* over = nullptr;      // of exact.dtype: a group's at group_ids[g] * format.over_group_stride
};

// score = reduce over the heads of Σ_c max(q_c · min_c, q_c · max_c) with min and max as the codes have them: never below
// QuestScores' (rounding aside). Groups without codes are scored from exact's metadata.
// Bytes: groups * k_dim * (2 * 16 + 2 * element size). Not threaded: callers cut the groups.
void CodeScores(const CodeScoreParams& params);

}  // namespace quire

// Hierarchical quest's page scores from metadata in 8 bits (kernels/metadata_codes.h), on the GPU. Pointers are device memory.
#pragma once

#include "core/base/device.h"
#include "core/base/status.h"
#include "kernels/cuda/quest.h"

namespace quire::cuda {

// QuestScores of the kept groups, with min and max of the pages as their codes have them where a group is whole at the row's
// length and has codes: never below QuestScores', rounding aside. Of other groups the scores are QuestScores'. kept_groups is not
// null, pages has codes; queries are f32. Each page's sum is in one order.
// Bytes: rows * kv_heads * kept groups * k_dim * (2 * 16 + 2 * element size).
Status CodeScores(Stream stream, const QuestParams& params);

}  // namespace quire::cuda

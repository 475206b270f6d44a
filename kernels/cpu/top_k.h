// Deterministic top-k of page scores: what quest and its kin share.
#pragma once

#include <cstdint>

namespace quire {

// Writes first + i of the k largest scores [n], ascending in i, to out [min(k, n)]; returns how many. Equal scores go to
// the lower index; a NaN is never taken (fewer than k may come back). At most 32 passes of comparisons, then one that
// writes. Not stable against the sign of zero: −0 equals +0.
int TopPages(const float* scores, int n, int k, int32_t first, int32_t* out);

}  // namespace quire

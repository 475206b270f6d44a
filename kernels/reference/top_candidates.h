// TopCandidates by a full stable sort and log-sum-exp in double. Slow; for tests.
#pragma once

#include "kernels/top_candidates.h"

namespace quire::reference {

void TopCandidates(const TopCandidatesParams& params);

}  // namespace quire::reference

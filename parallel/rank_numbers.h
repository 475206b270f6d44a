// Numbers that ranks tell each other, and what follows from them: each rank's share of the processors of its node. The
// calls are collectives of all ranks.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/base/status.h"
#include "parallel/communicator.h"
#include "parallel/group_topology.h"

namespace quire {

// All ranks' numbers, [size][mine.size()] by rank; every rank gives as many.
Result<std::vector<int64_t>> GatherNumbers(Communicator& comm, std::span<const int64_t> mine);

// How many threads this rank should run, at least 1: the processors it may use, each divided among the ranks of its
// node that may use it as well. So ranks that the launcher has bound keep what they are bound to, and ranks that share
// a node divide it.
Result<int> ShareOfProcessors(Communicator& comm, const GroupTopology& topology);

}  // namespace quire

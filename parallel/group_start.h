// What ranks settle before they work together: that they hold the same build, config and weights; that what one of them
// failed at ends all with that rank's reason; that sums over the network between them are right and end.
// Everything here is collective: all ranks call it, in the same order.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <string>

#include "core/base/progress.h"
#include "core/base/status.h"
#include "parallel/communicator.h"
#include "parallel/group_topology.h"

namespace quire {

// Something that must be the same on every rank. `name` is what an error calls it, up to 31 bytes; `remedy` what it
// tells the user to do, a sentence's end as in "start all ranks from the same program".
struct NamedHash {
  std::string name;
  uint64_t value = 0;
  std::string remedy;
};

// The build's hash (build_id.h) with its name and remedy: first in every list.
NamedHash BuildIdentity();
// Hashes of the model's configuration and of the index of its weights, as the caller computes them (hash.h).
NamedHash ConfigIdentity(uint64_t hash);
NamedHash WeightIndexIdentity(uint64_t hash);

// OK when all ranks hold equal lists (at most 8). FAILED_PRECONDITION on all ranks alike otherwise, naming each item that
// differs, the ranks that differ from most, and `phase`.
Status CheckSameOnAllRanks(Communicator& comm, const GroupTopology& topology, Phase phase,
                           std::span<const NamedHash> items);

// OK on all ranks when `local` is OK on all; else on all ranks the code and message of the lowest failing rank, with its
// name, host and `phase` before it; when all ranks say the same, that alone. A group of one returns `local` as it is.
Status AgreeOn(Communicator& comm, const GroupTopology& topology, Phase phase, const Status& local);

// The smallest of the ranks' values: what every one of them can do. Page capacity, free memory.
Result<int64_t> SmallestOfRanks(Communicator& comm, int64_t local);

struct SelfTestOptions {
  int64_t large = 1 << 20;               // elements of the sums that measure bandwidth
  std::chrono::milliseconds limit{30000};  // after which the job ends with a sentence; a busy machine needs seconds
};
struct SelfTestReport {
  double latency_seconds = 0;   // median of a sum of 16 floats
  double bytes_per_second = 0;  // size of the large sum by its median time
};
// All-reduces whose sums are known. UNAVAILABLE or DATA_LOSS, on all ranks alike, when a collective fails or a sum is
// wrong. When it doesn't end within the limit, EndJob (end_job.h) with a sentence that says what to look at: an MPI
// collective that hangs can't be left in any other way.
Result<SelfTestReport> RunSelfTest(Communicator& comm, const GroupTopology& topology, const SelfTestOptions& options = {});

}  // namespace quire

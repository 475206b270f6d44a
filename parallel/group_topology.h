// Where the ranks of a group are: host, process, and place among the ranks of the same node. For every communicator
// alike: it asks each rank about itself and gathers the answers.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/base/status.h"
#include "parallel/communicator.h"

namespace quire {

struct RankPlace {
  std::string host;          // as gethostname gives it, cut at 95 bytes
  int64_t pid = 0;
  uint64_t node = 0;         // equal for ranks of one node: as the communicator has it, or of one running system under
                             // one host name
  uint64_t network = 0;      // equal for ranks that reach each other over the loopback interface
  int local_rank = 0;        // among the ranks of the same node, in rank order
  int local_size = 1;
};

struct GroupTopology {
  int rank = 0;
  std::vector<RankPlace> ranks;  // [rank]

  int size() const { return static_cast<int>(ranks.size()); }
  const RankPlace& self() const { return ranks[rank]; }
  int nodes() const;             // how many there are
  bool OneProcess() const;       // ranks are threads
  bool OneNetwork() const;       // all on one loopback interface
  // "rank 1 (host a, pid 123)".
  std::string Name(int rank) const;
  // "rank 1 (host a, pid 123), rank 2 (host b, pid 77)".
  std::string Names(std::span<const int> ranks) const;
};

// Collective.
Result<GroupTopology> GatherTopology(Communicator& comm);

namespace internal {
// Fills local_rank and local_size from the places' nodes.
void NumberWithinNodes(std::vector<RankPlace>* ranks);
}  // namespace internal

}  // namespace quire

#include "parallel/rank_numbers.h"

#include <sched.h>

#include <algorithm>
#include <thread>

namespace quire {
namespace {

constexpr int kWords = CPU_SETSIZE / 64;

// A bit for each processor that this thread may use.
std::vector<int64_t> Processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  const bool known = sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0;
  const int fallback = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  std::vector<int64_t> words(kWords);
  for (int i = 0; i < CPU_SETSIZE; ++i) {
    const bool mine = known ? CPU_ISSET(i, &set) != 0 : i < fallback;
    if (mine) words[static_cast<size_t>(i / 64)] |= static_cast<int64_t>(uint64_t{1} << (i % 64));
  }
  return words;
}

}  // namespace

Result<std::vector<int64_t>> GatherNumbers(Communicator& comm, std::span<const int64_t> mine) {
  std::vector<int64_t> send(mine.begin(), mine.end()), all(mine.size() * static_cast<size_t>(comm.size()));
  const int64_t words = static_cast<int64_t>(mine.size()) * 2;  // a communicator's widest elements have 32 bits
  RETURN_IF_ERROR(
      comm.AllGather({send.data(), DType::kI32, {words}, {}}, {all.data(), DType::kI32, {words * comm.size()}, {}}));
  return all;
}

Result<int> ShareOfProcessors(Communicator& comm, const GroupTopology& topology) {
  ASSIGN_OR_RETURN(const std::vector<int64_t> all, GatherNumbers(comm, Processors()));
  const auto has = [&](int rank, int processor) {
    const auto word = static_cast<uint64_t>(all[static_cast<size_t>(rank * kWords + processor / 64)]);
    return (word >> (processor % 64) & 1) != 0;
  };
  double share = 0;
  for (int i = 0; i < CPU_SETSIZE; ++i) {
    if (!has(topology.rank, i)) continue;
    int users = 0;
    for (int rank = 0; rank < topology.size(); ++rank) {
      users += topology.ranks[rank].node == topology.self().node && has(rank, i);
    }
    share += 1.0 / users;
  }
  return std::max(1, static_cast<int>(share + 1e-6));
}

}  // namespace quire

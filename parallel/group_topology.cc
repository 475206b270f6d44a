#include "parallel/group_topology.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <set>
#include <string_view>

#include "parallel/hash.h"

namespace quire {
namespace {

// What travels. Ranks of another build must be able to read it: its layout stays.
struct PlaceRecord {
  uint64_t node = 0, network = 0;
  int64_t pid = 0;
  char host[104] = {};
};
static_assert(sizeof(PlaceRecord) == 128);

std::string ReadLine(const char* path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

PlaceRecord ThisPlace() {
  PlaceRecord place;
  char host[256] = {};
  if (gethostname(host, sizeof(host) - 1) != 0 || host[0] == 0) std::strcpy(host, "unnamed");
  std::memcpy(place.host, host, std::min(std::strlen(host), size_t{95}));
  place.pid = getpid();
  const std::string boot = ReadLine("/proc/sys/kernel/random/boot_id");
  place.node = HashBytes(boot + "\n" + host);
  char network[128] = {};
  [[maybe_unused]] const auto length = readlink("/proc/self/ns/net", network, sizeof(network) - 1);
  place.network = HashBytes(boot + "\n" + network);
  return place;
}

}  // namespace

int GroupTopology::nodes() const {
  std::set<uint64_t> seen;
  for (const RankPlace& place : ranks) seen.insert(place.node);
  return static_cast<int>(seen.size());
}

bool GroupTopology::OneProcess() const {
  return std::all_of(ranks.begin(), ranks.end(), [&](const RankPlace& place) {
    return place.pid == ranks[0].pid && place.node == ranks[0].node && place.network == ranks[0].network;
  });
}

bool GroupTopology::OneNetwork() const {
  return std::all_of(ranks.begin(), ranks.end(),
                     [&](const RankPlace& place) { return place.network == ranks[0].network; });
}

std::string GroupTopology::Name(int r) const {
  return "rank " + std::to_string(r) + " (host " + ranks[r].host + ", pid " + std::to_string(ranks[r].pid) + ")";
}

std::string GroupTopology::Names(std::span<const int> list) const {
  std::string names;
  for (int r : list) names += (names.empty() ? "" : ", ") + Name(r);
  return names;
}

Result<GroupTopology> GatherTopology(Communicator& comm) {
  PlaceRecord mine = ThisPlace();
  if (comm.node_leader() >= 0) mine.node = static_cast<uint64_t>(comm.node_leader());
  std::vector<PlaceRecord> all(comm.size());
  const auto bytes = static_cast<int64_t>(sizeof(PlaceRecord));
  RETURN_IF_ERROR(comm.AllGather({&mine, DType::kU8, {bytes}, {}}, {all.data(), DType::kU8, {bytes * comm.size()}, {}}));
  GroupTopology topology;
  topology.rank = comm.rank();
  for (PlaceRecord& record : all) {
    record.host[sizeof(record.host) - 1] = 0;
    RankPlace& place = topology.ranks.emplace_back();
    place.host = record.host;
    place.pid = record.pid;
    place.node = record.node;
    place.network = record.network;
  }
  internal::NumberWithinNodes(&topology.ranks);
  return topology;
}

void internal::NumberWithinNodes(std::vector<RankPlace>* ranks) {
  for (size_t r = 0; r < ranks->size(); ++r) {
    RankPlace& place = (*ranks)[r];
    place.local_rank = place.local_size = 0;
    for (size_t other = 0; other < ranks->size(); ++other) {
      if ((*ranks)[other].node != place.node) continue;
      ++place.local_size;
      if (other < r) ++place.local_rank;
    }
  }
}

}  // namespace quire

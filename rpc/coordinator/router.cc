// See router.h.
#include "rpc/coordinator/router.h"

#include <algorithm>
#include <tuple>

namespace quire::rpc {

int ChooseGroup(std::span<const RouteCandidate> groups, size_t turn) {
  int best = -1;
  std::tuple<int64_t, int, size_t> best_rank;
  for (size_t i = 0; i < groups.size(); ++i) {
    const RouteCandidate& group = groups[i];
    if (!group.room) continue;
    const size_t distance = (i + groups.size() - turn % groups.size()) % groups.size();
    const std::tuple<int64_t, int, size_t> rank(group.tokens - group.matched, group.sequences, distance);
    if (best < 0 || rank < best_rank) {
      best = static_cast<int>(i);
      best_rank = rank;
    }
  }
  return best;
}

bool WorthSpreading(int64_t prompt_tokens, int64_t max_tokens, int n, int groups) {
  if (n < 2 || groups < 2) return false;
  const int busiest = (n + groups - 1) / groups;
  return busiest * (prompt_tokens + max_tokens) < prompt_tokens + n * max_tokens;
}

std::vector<PrefixKey> PrefixKeys(std::span<const int32_t> prompt, int page_size) {
  std::vector<PrefixKey> keys;
  uint64_t hash = 0x9e3779b97f4a7c15;
  size_t end = static_cast<size_t>(std::max(page_size, 1));
  for (size_t i = 0; i < prompt.size() && end <= prompt.size(); ++i) {
    hash = (hash ^ static_cast<uint32_t>(prompt[i])) * 0x9fb21c651e98df25;
    hash ^= hash >> 29;
    if (i + 1 != end) continue;
    keys.push_back({static_cast<int64_t>(end), hash});
    end *= 2;
  }
  return keys;
}

void PrefixMap::Note(uint64_t group, std::span<const PrefixKey> keys) {
  Seen& seen = groups_[group];
  for (const PrefixKey& key : keys) {
    seen.young.insert(key.hash);
    if (seen.young.size() < capacity_) continue;
    seen.old = std::move(seen.young);
    seen.young.clear();
  }
}

int64_t PrefixMap::Match(uint64_t group, std::span<const PrefixKey> keys) const {
  const auto at = groups_.find(group);
  if (at == groups_.end()) return 0;
  for (size_t i = keys.size(); i > 0; --i) {
    const PrefixKey& key = keys[i - 1];
    if (at->second.young.contains(key.hash) || at->second.old.contains(key.hash)) return key.tokens;
  }
  return 0;
}

}  // namespace quire::rpc

// Which group gets a request: the one that has the least to compute, where the leading pages of the prompt that a group
// has seen before count as computed already. So affinity has a bound of its own: a group is never preferred by more
// than what its cached prefix may save. Pure functions and plain tables, without threads or clocks.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace quire::rpc {

// A group as a request sees it.
struct RouteCandidate {
  bool room = false;     // has a place and pages for it now
  int64_t tokens = 0;    // still to be computed there
  int64_t matched = 0;   // of this prompt, leading tokens that it has seen
  int sequences = 0;     // in flight there
};

// Index of the group to take, −1 when none has room. Among equals the one with fewer sequences, then the first from
// `turn` on, so that equals take turns.
int ChooseGroup(std::span<const RouteCandidate> groups, size_t turn);

// Whether a prompt's n sequences should run as submissions of their own over `groups` groups, each with a prefill of its
// own, rather than on one group behind one prefill: whichever leaves less for the busiest group to compute.
bool WorthSpreading(int64_t prompt_tokens, int64_t max_tokens, int n, int groups);

// A name for the first `tokens` tokens of a prompt.
struct PrefixKey {
  int64_t tokens = 0;
  uint64_t hash = 0;
};
// Of the first 1, 2, 4, … pages, whole ones only: a few keys whatever the length.
std::vector<PrefixKey> PrefixKeys(std::span<const int32_t> prompt, int page_size);

// The prefixes that each group has seen lately. Memory is bounded: `capacity` to 2 × `capacity` keys a group.
class PrefixMap {
 public:
  explicit PrefixMap(size_t capacity = 4096) : capacity_(capacity) {}
  void Note(uint64_t group, std::span<const PrefixKey> keys);
  int64_t Match(uint64_t group, std::span<const PrefixKey> keys) const;  // tokens of the longest that it has seen
  void Forget(uint64_t group) { groups_.erase(group); }

 private:
  // Two generations: when the young one is full it becomes the old one. What is used stays.
  struct Seen {
    std::unordered_set<uint64_t> young, old;
  };
  const size_t capacity_;
  std::unordered_map<uint64_t, Seen> groups_;
};

}  // namespace quire::rpc

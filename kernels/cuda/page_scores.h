// What the launchers of page scores share: how many query heads a warp scores together, and how metadata groups are dealt out.
#pragma once

#include <cstdint>
#include <type_traits>

namespace quire::cuda {

inline constexpr int kMostScoreWarps = 4;

// Of sizes alone. A score is the same whatever the cut.
struct GroupBlocks {
  int warps = 4;
  int groups_per_warp = 1;
  int parts = 1;  // blocks along the groups of a list

  // As many blocks as an H200 runs at once, where there is work for more: a block begins with reads that wait for one another.
  static GroupBlocks For(int64_t lists, int max_groups, int blocks_of_a_processor);
};

// Query heads that a lane has sums of at once, for groups of `heads`.
inline int HeadsAtOnce(int heads) { return heads == 1 ? 1 : heads == 2 ? 2 : heads % 8 == 0 ? 8 : 4; }

// f(constant of 1, 2, 4 or 8).
template <typename F>
auto VisitHeads(int heads_at_once, F&& f) {
  switch (heads_at_once) {
    case 1: return f(std::integral_constant<int, 1>());
    case 2: return f(std::integral_constant<int, 2>());
    case 4: return f(std::integral_constant<int, 4>());
    default: return f(std::integral_constant<int, 8>());
  }
}

}  // namespace quire::cuda

// Deterministic all-pairs table: every pair of values of every two factors occurs in some row.
#pragma once

#include <cstdint>
#include <set>
#include <tuple>
#include <vector>

namespace quire::testing {

// factors[i]: number of values of factor i. Greedy: each row takes, factor by factor, the value that covers most
// pairs not seen yet (ties to a rotating start), seeded with one uncovered pair.
inline std::vector<std::vector<int>> AllPairs(const std::vector<int>& factors) {
  using Pair = std::tuple<int, int, int, int>;  // factor, value, later factor, value
  std::set<Pair> open;
  const int n = static_cast<int>(factors.size());
  for (int a = 0; a < n; ++a)
    for (int b = a + 1; b < n; ++b)
      for (int x = 0; x < factors[a]; ++x)
        for (int y = 0; y < factors[b]; ++y) open.insert({a, x, b, y});
  const auto key = [](int f, int x, int g, int y) { return f < g ? Pair{f, x, g, y} : Pair{g, y, f, x}; };
  std::vector<std::vector<int>> rows;
  while (!open.empty()) {
    std::vector<int> row(static_cast<size_t>(n), -1);
    const auto [a, x, b, y] = *open.begin();
    row[static_cast<size_t>(a)] = x;
    row[static_cast<size_t>(b)] = y;
    for (int f = 0; f < n; ++f) {
      if (row[static_cast<size_t>(f)] >= 0) continue;
      int best = -1, best_gain = -1;
      for (int i = 0; i < factors[f]; ++i) {
        const int v = (i + static_cast<int>(rows.size())) % factors[f];
        int gain = 0;
        for (int g = 0; g < n; ++g) {
          if (g != f && row[static_cast<size_t>(g)] >= 0) gain += open.contains(key(f, v, g, row[static_cast<size_t>(g)]));
        }
        if (gain > best_gain) best = v, best_gain = gain;
      }
      row[static_cast<size_t>(f)] = best;
    }
    for (int f = 0; f < n; ++f)
      for (int g = f + 1; g < n; ++g) open.erase({f, row[static_cast<size_t>(f)], g, row[static_cast<size_t>(g)]});
    rows.push_back(row);
  }
  return rows;
}

}  // namespace quire::testing

// Counts of durations between fixed bounds, as Prometheus' histograms want them.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace quire {

struct DurationHistogram {
  // Seconds, upper bounds, each of its own bucket.
  static constexpr std::array kBounds = {0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5,
                                         1.0,   2.0,   5.0,   10.0, 20.0, 50.0, 100., 200., 500.};
  std::array<int64_t, kBounds.size() + 1> counts{};  // [i]: above bound i − 1, at most bound i; the last: above all
  double sum = 0;                                    // seconds

  void Add(double seconds) {
    ++counts[static_cast<size_t>(std::lower_bound(kBounds.begin(), kBounds.end(), seconds) - kBounds.begin())];
    sum += seconds;
  }
  int64_t count() const {
    int64_t all = 0;
    for (const int64_t n : counts) all += n;
    return all;
  }
};

}  // namespace quire

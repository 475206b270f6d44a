// Reference history: a log of all rows' masses of one KV head, from which each policy's scores are worked out anew. The
// policies keep numbers that they update, and must agree.
#pragma once

#include <vector>

#include "kernels/selection/policy.h"

namespace quire::reference {

struct MassRow {
  std::vector<double> mass;  // [pages that the row saw]
  std::vector<bool> read;    // [pages]
};
using MassLog = std::vector<MassRow>;  // of positions 0, 1, …

// Scores of `pages` pages, at least as many as any row saw; NaN: never chosen.
std::vector<double> H2oScores(const MassLog& log, int64_t pages);
// The sum over the last `rows` positions; what a row didn't read counts with the last row's that did.
std::vector<double> SwaScores(const MassLog& log, int64_t pages, int rows);
std::vector<double> TovaScores(const MassLog& log, int64_t pages);

}  // namespace quire::reference

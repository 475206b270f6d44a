#include "kernels/reference/history.h"

#include <algorithm>
#include <limits>

namespace quire::reference {

std::vector<double> H2oScores(const MassLog& log, int64_t pages) {
  std::vector<double> scores(static_cast<size_t>(pages));
  for (const MassRow& row : log) {
    for (size_t page = 0; page < row.mass.size(); ++page) {
      if (row.read[page]) scores[page] += row.mass[page];
    }
  }
  return scores;
}

std::vector<double> SwaScores(const MassLog& log, int64_t pages, int rows) {
  std::vector<double> scores(static_cast<size_t>(pages));
  const int64_t length = static_cast<int64_t>(log.size());
  for (size_t page = 0; page < scores.size(); ++page) {
    for (int64_t row = std::max<int64_t>(0, length - rows); row < length; ++row) {
      int64_t from = row;
      while (from >= 0 && page < log[static_cast<size_t>(from)].mass.size() &&
             !log[static_cast<size_t>(from)].read[page]) {
        --from;
      }
      if (from >= 0 && page < log[static_cast<size_t>(from)].mass.size()) {
        scores[page] += log[static_cast<size_t>(from)].mass[page];
      }
    }
  }
  return scores;
}

std::vector<double> TovaScores(const MassLog& log, int64_t pages) {
  std::vector<double> scores(static_cast<size_t>(pages), 0.0);
  if (log.empty()) return scores;
  for (size_t page = 0; page < log.back().mass.size(); ++page) {
    scores[page] = log.back().read[page] ? log.back().mass[page] : std::numeric_limits<double>::quiet_NaN();
  }
  return scores;
}

}  // namespace quire::reference

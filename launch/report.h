// Charts of what `quire eval` measured: accuracy against the share of the cache that was read, one line a policy, as one
// HTML page with SVG inside and nothing fetched from elsewhere. Pure functions of the evaluations' json.
#pragma once

#include <string>
#include <vector>

#include "core/base/status.h"
#include "launch/output.h"

namespace quire::launch {

// One policy at one budget.
struct ReportPoint {
  std::string budget;  // "512", or "" for a policy without
  double read = 0;     // bytes read / bytes of K and V there
  double value = 0;
};

struct ReportLine {
  std::string name;  // the policy with its options but the budget
  std::vector<ReportPoint> points;  // by share read
};

struct ReportChart {
  std::string title;    // "Perplexity, windows of 4096 tokens"
  std::string measure;  // what the vertical axis shows
  std::vector<ReportLine> lines;
  std::vector<ReportLine> beside;  // what isn't a policy: random pages, latest pages
};

// The charts of evaluations, objects with "results" as --format json prints them: one for each measure and context, in the
// order in which they come. INVALID_ARGUMENT for rows that no evaluation makes; of rows that are there twice the last counts.
Result<std::vector<ReportChart>> MakeCharts(const std::vector<Json>& evaluations);

// The page. Every point's numbers are in a table below its chart, too.
std::string WriteReport(const std::string& title, const std::vector<ReportChart>& charts);

}  // namespace quire::launch

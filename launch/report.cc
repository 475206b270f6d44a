// See report.h.
#include "launch/report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <optional>
#include <utility>

namespace quire::launch {
namespace {

// What an evaluation is known by, and how it is called.
struct Measure {
  const char* field;
  const char* title;
  const char* axis;
};
constexpr Measure kMeasures[] = {
    {"perplexity", "Perplexity", "perplexity (less is better)"},
    {"recall", "Recall of attention mass", "mass of the pages read / mass of the best as many"},
    {"agreement", "Agreement with dense", "share of dense attention's greedy tokens"},
    {"correct", "Pass keys", "share of keys found"},
    {"f1", "Tasks", "F1, mean over tasks"},
};

constexpr const char* kColors[] = {"#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e",
                                   "#17becf", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22"};

// The plot's box in the drawing, in pixels.
constexpr double kLeft = 70, kTop = 20, kWidth = 560, kHeight = 340, kLegend = 190;

std::string Number(double value, int digits = 4) {
  char text[32];
  std::snprintf(text, sizeof text, "%.*g", digits, value);
  return text;
}

std::string Pixels(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", value);
  return text;
}

std::string Escape(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      default: out += c;
    }
  }
  return out;
}

Result<double> NumberOf(const Json& row, const char* name) {
  const auto at = row.find(name);
  if (at != row.end() && at->is_number()) return at->get<double>();
  return InvalidArgument("a result has no number " + std::string(name) + ": " + row.dump().substr(0, 80));
}

const Measure* MeasureOf(const Json& row) {
  for (const Measure& measure : kMeasures) {
    if (row.is_object() && row.contains(measure.field)) return &measure;
  }
  return nullptr;
}

Result<double> ValueOf(const Json& row, const Measure& measure) {
  ASSIGN_OR_RETURN(const double value, NumberOf(row, measure.field));
  if (std::string(measure.field) != "correct") return value;
  ASSIGN_OR_RETURN(const double trials, NumberOf(row, "trials"));
  return trials > 0 ? value / trials : 0;
}

ReportLine* LineOf(std::vector<ReportLine>& lines, const std::string& name) {
  const auto at = std::find_if(lines.begin(), lines.end(), [&](const ReportLine& line) { return line.name == name; });
  if (at != lines.end()) return &*at;
  return &lines.emplace_back(ReportLine{name, {}});
}

void Put(ReportLine* line, ReportPoint point) {
  const auto same = [&](const ReportPoint& other) { return other.budget == point.budget; };
  std::erase_if(line->points, same);
  const auto later = [&](const ReportPoint& other) { return other.read > point.read; };
  line->points.insert(std::find_if(line->points.begin(), line->points.end(), later), std::move(point));
}

struct Axis {
  double low = 0, high = 1, step = 0.2;
};

// About five round steps over [low, high].
Axis MakeAxis(double low, double high) {
  if (high - low < 1e-9 * std::max(1.0, std::abs(high))) {
    low -= 0.05 * std::max(1e-3, std::abs(low));
    high += 0.05 * std::max(1e-3, std::abs(high));
  }
  const double raw = (high - low) / 5;
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  double step = 10 * power;
  for (const double nice : {1.0, 2.0, 2.5, 5.0}) {
    if (nice * power >= raw) {
      step = nice * power;
      break;
    }
  }
  return {std::floor(low / step + 1e-9) * step, std::ceil(high / step - 1e-9) * step, step};
}

class Plot {
 public:
  Plot(const ReportChart& chart) {
    double low = 0, high = 0, most = 0;
    bool first = true;
    for (const auto* lines : {&chart.lines, &chart.beside}) {
      for (const ReportLine& line : *lines) {
        for (const ReportPoint& point : line.points) {
          low = first ? point.value : std::min(low, point.value);
          high = first ? point.value : std::max(high, point.value);
          most = std::max(most, point.read);
          first = false;
        }
      }
    }
    x_ = MakeAxis(0, std::max(most, 1e-3));
    y_ = MakeAxis(low, high);
  }

  double X(double read) const { return kLeft + (read - x_.low) / (x_.high - x_.low) * kWidth; }
  double Y(double value) const { return kTop + (y_.high - value) / (y_.high - y_.low) * kHeight; }

  std::string Frame(const std::string& measure) const {
    std::string svg;
    for (double t = x_.low; t <= x_.high + x_.step / 2; t += x_.step) {
      svg += Line(X(t), kTop, X(t), kTop + kHeight, "grid");
      svg += Text(X(t), kTop + kHeight + 18, Number(100 * t, 3) + " %", "middle");
    }
    for (double t = y_.low; t <= y_.high + y_.step / 2; t += y_.step) {
      svg += Line(kLeft, Y(t), kLeft + kWidth, Y(t), "grid");
      svg += Text(kLeft - 8, Y(t) + 4, Number(std::abs(t) < y_.step / 1e6 ? 0 : t), "end");
    }
    svg += Text(kLeft + kWidth / 2, kTop + kHeight + 40, "bytes read of K and V there", "middle");
    svg += "<text class=\"axis\" text-anchor=\"middle\" transform=\"translate(16 " + Pixels(kTop + kHeight / 2) +
           ") rotate(-90)\">" + Escape(measure) + "</text>\n";
    return svg;
  }

  std::string Draw(const ReportLine& line, const std::string& color, bool dashed) const {
    std::string places, points;
    for (const ReportPoint& point : line.points) {
      places += (places.empty() ? "" : " ") + Pixels(X(point.read)) + "," + Pixels(Y(point.value));
      points += "<circle cx=\"" + Pixels(X(point.read)) + "\" cy=\"" + Pixels(Y(point.value)) + "\" r=\"4\" fill=\"" + color +
                "\"><title>" + Escape(line.name) + (point.budget.empty() ? "" : ", budget " + Escape(point.budget)) + ": " +
                Number(point.value, 5) + " at " + Number(100 * point.read, 3) + " % read</title></circle>\n";
    }
    return "<polyline points=\"" + places + "\" fill=\"none\" stroke=\"" + color + "\" stroke-width=\"2\"" +
           (dashed ? " stroke-dasharray=\"3 4\"" : "") + "/>\n" + points;
  }

  std::string Legend(const std::string& name, const std::string& color, int index) const {
    const double y = kTop + 10 + 20 * index;
    return "<circle cx=\"" + Pixels(kLeft + kWidth + 20) + "\" cy=\"" + Pixels(y - 4) + "\" r=\"4\" fill=\"" + color + "\"/>" +
           Text(kLeft + kWidth + 30, y, name, "start");
  }

  // Where dense stands, as a line across.
  std::string Across(double value, const std::string& color) const {
    return "<line x1=\"" + Pixels(kLeft) + "\" y1=\"" + Pixels(Y(value)) + "\" x2=\"" + Pixels(kLeft + kWidth) + "\" y2=\"" +
           Pixels(Y(value)) + "\" stroke=\"" + color + "\" stroke-dasharray=\"6 4\"/>\n";
  }

 private:
  static std::string Line(double x1, double y1, double x2, double y2, const char* name) {
    return "<line class=\"" + std::string(name) + "\" x1=\"" + Pixels(x1) + "\" y1=\"" + Pixels(y1) + "\" x2=\"" + Pixels(x2) +
           "\" y2=\"" + Pixels(y2) + "\"/>\n";
  }
  static std::string Text(double x, double y, const std::string& text, const char* anchor) {
    return "<text x=\"" + Pixels(x) + "\" y=\"" + Pixels(y) + "\" text-anchor=\"" + anchor + "\">" + Escape(text) + "</text>\n";
  }
  Axis x_, y_;
};

std::string WriteChart(const ReportChart& chart) {
  const Plot plot(chart);
  std::string svg = "<svg viewBox=\"0 0 " + Pixels(kLeft + kWidth + kLegend) + " " + Pixels(kTop + kHeight + 50) +
                    "\" role=\"img\" aria-label=\"" + Escape(chart.title) + "\">\n" + plot.Frame(chart.measure);
  std::string legend, table;
  int index = 0;
  const auto add = [&](const ReportLine& line, const std::string& color, bool dashed) {
    if (line.name == "dense" && !line.points.empty()) svg += plot.Across(line.points.front().value, color);
    svg += plot.Draw(line, color, dashed);
    legend += plot.Legend(line.name, color, index++);
    for (const ReportPoint& point : line.points) {
      table += "<tr><td>" + Escape(line.name) + "</td><td>" + Escape(point.budget.empty() ? "–" : point.budget) + "</td><td>" +
               Number(100 * point.read, 3) + " %</td><td>" + Number(point.value, 5) + "</td></tr>\n";
    }
  };
  for (const ReportLine& line : chart.lines) add(line, kColors[static_cast<size_t>(index) % std::size(kColors)], false);
  for (const ReportLine& line : chart.beside) add(line, line.name == chart.beside.front().name ? "#999999" : "#555555", true);
  return "<section>\n<h2>" + Escape(chart.title) + "</h2>\n" + svg + legend + "</svg>\n<details><summary>Numbers</summary>\n" +
         "<table>\n<tr><th>policy</th><th>budget</th><th>read</th><th>" + Escape(chart.measure) + "</th></tr>\n" + table +
         "</table></details>\n</section>\n";
}

}  // namespace

Result<std::vector<ReportChart>> MakeCharts(const std::vector<Json>& evaluations) {
  std::vector<ReportChart> charts;
  for (const Json& evaluation : evaluations) {
    if (!evaluation.is_object() || !evaluation.contains("results") || !evaluation["results"].is_array()) {
      return InvalidArgument("there are no results in it; give what an evaluation printed with --format json");
    }
    for (const Json& row : evaluation["results"]) {
      const Measure* measure = MeasureOf(row);
      if (measure == nullptr || !row.contains("spec") || !row["spec"].is_string()) {
        return InvalidArgument("a result is of no evaluation that can be drawn: " + row.dump().substr(0, 80));
      }
      if (row[measure->field].is_null()) continue;  // there was nothing to measure
      ASSIGN_OR_RETURN(const double value, ValueOf(row, *measure));
      ASSIGN_OR_RETURN(const double read, NumberOf(row, "bytes_read"));
      ASSIGN_OR_RETURN(const double total, NumberOf(row, "bytes_total"));
      ASSIGN_OR_RETURN(AttentionSpec spec, AttentionSpec::Parse(row["spec"].get<std::string>()));
      const double share = total > 0 ? read / total : 0;
      std::string budget;
      if (row.contains("token_budget") && row["token_budget"].is_number()) budget = row["token_budget"].dump();
      spec.options.erase("token_budget");
      std::string title = measure->title;
      if (row.contains("context")) title += ", context of " + row["context"].dump() + " tokens";
      const auto same = [&](const ReportChart& chart) { return chart.title == title; };
      auto chart = std::find_if(charts.begin(), charts.end(), same);
      if (chart == charts.end()) chart = charts.insert(charts.end(), ReportChart{title, measure->axis, {}, {}});
      Put(LineOf(chart->lines, spec.ToString()), {budget, share, value});
      // The first policy's choices at random and of the latest pages stand for all: as many pages each.
      if (row.contains("random") && row.contains("recent") && chart->lines.front().name == spec.ToString()) {
        ASSIGN_OR_RETURN(const double random, NumberOf(row, "random"));
        ASSIGN_OR_RETURN(const double recent, NumberOf(row, "recent"));
        Put(LineOf(chart->beside, "as many random pages"), {budget, share, random});
        Put(LineOf(chart->beside, "as many latest pages"), {budget, share, recent});
      }
    }
  }
  if (charts.empty()) return InvalidArgument("the evaluations have no result");
  return charts;
}

std::string WriteReport(const std::string& title, const std::vector<ReportChart>& charts) {
  std::string html =
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n<title>" + Escape(title) +
      "</title>\n<style>\n"
      "body { font: 15px/1.5 sans-serif; max-width: 860px; margin: 2em auto; padding: 0 1em; color: #222; }\n"
      "svg { width: 100%; } svg text { font: 12px sans-serif; fill: #222; } .grid { stroke: #e4e4e4; }\n"
      "table { border-collapse: collapse; } td, th { padding: 2px 12px; text-align: right; }\n"
      "td:first-child, th:first-child { text-align: left; }\n"
      "</style>\n</head>\n<body>\n<h1>" +
      Escape(title) + "</h1>\n";
  for (const ReportChart& chart : charts) html += WriteChart(chart);
  return html + "</body>\n</html>\n";
}

}  // namespace quire::launch

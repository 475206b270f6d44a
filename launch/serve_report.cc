// See serve_report.h.
#include "launch/serve_report.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <numeric>
#include <utility>

#include "launch/flags.h"

namespace quire::launch {
namespace {

// Requests between their sending and their last chunk, at the time when most were.
int64_t MostAtOnce(const std::vector<RequestRecord>& records) {
  std::vector<std::pair<double, int>> changes;
  for (const RequestRecord& r : records) {
    if (r.last_s <= 0) continue;
    changes.emplace_back(r.sent_s, 1);
    changes.emplace_back(r.last_s, -1);
  }
  std::sort(changes.begin(), changes.end());
  int64_t now = 0, most = 0;
  for (const auto& [time, change] : changes) most = std::max(most, now += change);
  return most;
}

void AddFigures(const std::string& name, std::vector<double> seconds, Json* json) {
  const Figures f = FiguresOf(std::move(seconds));
  (*json)["mean_" + name + "_ms"] = 1e3 * f.mean;
  (*json)["median_" + name + "_ms"] = 1e3 * f.median;
  (*json)["p90_" + name + "_ms"] = 1e3 * f.p90;
  (*json)["p99_" + name + "_ms"] = 1e3 * f.p99;
}

}  // namespace

Figures FiguresOf(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  const auto percentile = [&](double p) {
    const double place = p * static_cast<double>(values.size() - 1);
    const size_t below = static_cast<size_t>(place), above = std::min(below + 1, values.size() - 1);
    return values[below] + (place - static_cast<double>(below)) * (values[above] - values[below]);
  };
  const double sum = std::accumulate(values.begin(), values.end(), 0.0);
  return {sum / static_cast<double>(values.size()), percentile(0.5), percentile(0.9), percentile(0.99)};
}

Result<GoodputTargets> ParseGoodput(const std::string& text) {
  GoodputTargets targets;
  if (text.empty()) return targets;
  for (const std::string& part : SplitCommas(text)) {
    const size_t colon = part.find(':');
    const std::string name = part.substr(0, colon), value = colon == part.npos ? "" : part.substr(colon + 1);
    double ms = 0;
    const auto [rest, error] = std::from_chars(value.data(), value.data() + value.size(), ms);
    std::optional<double>* target = name == "ttft"   ? &targets.ttft
                                    : name == "tpot" ? &targets.tpot
                                    : name == "e2el" ? &targets.e2el
                                                     : nullptr;
    const bool number = error == std::errc() && rest == value.data() + value.size() && std::isfinite(ms) && ms >= 0;
    if (target == nullptr || !number || target->has_value()) {
      return InvalidArgument("--goodput has \"" + part +
                             "\"; it takes milliseconds for some of ttft, tpot and e2el, as in ttft:200,tpot:50");
    }
    *target = ms;
  }
  return targets;
}

bool IsGood(const RequestRecord& record, const GoodputTargets& targets) {
  const auto kept = [](const std::optional<double>& ms, double seconds) { return !ms || 1e3 * seconds <= *ms; };
  return record.status.ok() && kept(targets.ttft, record.ttft_s()) && kept(targets.tpot, record.tpot_s()) &&
         kept(targets.e2el, record.e2el_s());
}

Json ServeReport(const std::vector<RequestRecord>& records, const GoodputTargets& targets) {
  double begin = 0, end = 0;
  int64_t completed = 0, good = 0, input = 0, output = 0;
  std::vector<double> ttft, tpot, itl, e2el, delay;
  std::map<std::string, std::pair<int64_t, std::string>> failures;
  for (const RequestRecord& r : records) {
    begin = begin == 0 ? r.sent_s : std::min(begin, r.sent_s);
    end = std::max({end, r.sent_s, r.last_s});
    delay.push_back(r.sent_s - r.due_s);
    if (!r.status.ok()) {
      auto& [count, sentence] = failures[std::string(StatusCodeName(r.status.code()))];
      if (count++ == 0) sentence = r.status.message();
      continue;
    }
    ++completed;
    good += IsGood(r, targets);
    input += r.prompt_tokens;
    output += r.output_tokens;
    ttft.push_back(r.ttft_s());
    if (r.output_tokens > 1) tpot.push_back(r.tpot_s());
    itl.insert(itl.end(), r.gaps_s.begin(), r.gaps_s.end());
    e2el.push_back(r.e2el_s());
  }
  const double duration = end - begin;
  const auto rate = [&](int64_t count) { return duration > 0 ? static_cast<double>(count) / duration : 0; };
  Json json;
  json["duration"] = duration;
  json["completed"] = completed;
  json["failed"] = static_cast<int64_t>(records.size()) - completed;
  json["total_input_tokens"] = input;
  json["total_output_tokens"] = output;
  json["request_throughput"] = rate(completed);
  json["output_throughput"] = rate(output);
  json["total_token_throughput"] = rate(input + output);
  json["request_goodput"] = targets.ttft || targets.tpot || targets.e2el ? Json(rate(good)) : Json(nullptr);
  json["max_concurrent_requests"] = MostAtOnce(records);
  AddFigures("ttft", std::move(ttft), &json);
  AddFigures("tpot", std::move(tpot), &json);
  AddFigures("itl", std::move(itl), &json);
  AddFigures("e2el", std::move(e2el), &json);
  AddFigures("send_delay", std::move(delay), &json);
  json["failures"] = Json::object();
  json["errors"] = Json::object();
  for (const auto& [code, failure] : failures) {
    json["failures"][code] = failure.first;
    json["errors"][code] = failure.second;
  }
  return json;
}

void WriteServeReport(const Json& r) {
  const auto number = [&](const char* name, int digits) { return Fixed(r[name].get<double>(), digits); };
  std::vector<std::vector<std::string>> table = {
      {"", ""},
      {"requests completed", r["completed"].dump()},
      {"requests failed", r["failed"].dump()},
      {"most at once", r["max_concurrent_requests"].dump()},
      {"seconds", number("duration", 2)},
      {"input tokens", r["total_input_tokens"].dump()},
      {"output tokens", r["total_output_tokens"].dump()},
      {"requests / s", number("request_throughput", 2)},
      {"output tokens / s", number("output_throughput", 1)},
      {"all tokens / s", number("total_token_throughput", 1)}};
  if (!r["request_goodput"].is_null()) table.push_back({"good requests / s", number("request_goodput", 2)});
  table.erase(table.begin());
  WriteTable(table);
  WriteOut("\n");
  table = {{"milliseconds", "mean", "median", "p90", "p99"}};
  for (const auto& [name, title] : std::vector<std::pair<std::string, std::string>>{
           {"ttft", "to the first token (TTFT)"},
           {"tpot", "per output token after it (TPOT)"},
           {"itl", "between chunks (ITL)"},
           {"e2el", "to the last token (E2EL)"},
           {"send_delay", "sent after its time"}}) {
    table.push_back({title});
    for (const char* figure : {"mean_", "median_", "p90_", "p99_"}) {
      table.back().push_back(Fixed(r[figure + name + "_ms"].get<double>(), 2));
    }
  }
  WriteTable(table);
  for (const auto& [code, count] : r["failures"].items()) {
    WriteOut(count.dump() + " failed with " + code + ": " + r["errors"][code].get<std::string>() + "\n");
  }
}

}  // namespace quire::launch

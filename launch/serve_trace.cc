// See serve_trace.h.
#include "launch/serve_trace.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <optional>
#include <string_view>

#include "core/io/file_mapping.h"
#include "launch/output.h"

namespace quire::launch {
namespace {

constexpr std::string_view kAzureHeader = "TIMESTAMP,ContextTokens,GeneratedTokens";

// All of `text` as a whole number from 0 to INT32_MAX.
std::optional<int64_t> ReadCount(std::string_view text) {
  int64_t value = 0;
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || rest != text.data() + text.size() || value < 0 || value > INT32_MAX) return std::nullopt;
  return value;
}

// "2023-11-16 18:15:46.6805900" → seconds since 1970; a fraction of any length, or none.
std::optional<double> ReadTime(std::string_view text) {
  constexpr std::string_view kForm = "dddd-dd-dd dd:dd:dd";
  if (text.size() < kForm.size()) return std::nullopt;
  for (size_t i = 0; i < kForm.size(); ++i) {
    const bool digit = text[i] >= '0' && text[i] <= '9';
    if (kForm[i] == 'd' ? !digit : text[i] != kForm[i]) return std::nullopt;
  }
  const auto number = [&](size_t at, size_t size) { return static_cast<int>(*ReadCount(text.substr(at, size))); };
  const std::chrono::year_month_day date{std::chrono::year(number(0, 4)),
                                         std::chrono::month(static_cast<unsigned>(number(5, 2))),
                                         std::chrono::day(static_cast<unsigned>(number(8, 2)))};
  const int hour = number(11, 2), minute = number(14, 2), second = number(17, 2);
  if (!date.ok() || hour > 23 || minute > 59 || second > 60) return std::nullopt;
  double fraction = 0;
  if (const std::string_view rest = text.substr(kForm.size()); !rest.empty()) {
    if (rest[0] != '.' || rest.size() < 2) return std::nullopt;
    double unit = 0.1;
    for (const char c : rest.substr(1)) {
      if (c < '0' || c > '9') return std::nullopt;
      fraction += unit * (c - '0');
      unit /= 10;
    }
  }
  const auto days = std::chrono::sys_days(date).time_since_epoch();
  return 86400.0 * static_cast<double>(days.count()) + 3600 * hour + 60 * minute + second + fraction;
}

Result<TraceRequest> ReadAzure(std::string_view line) {
  const size_t first = line.find(','), second = first == line.npos ? first : line.find(',', first + 1);
  if (second == line.npos) return InvalidArgument("it should have three fields, " + std::string(kAzureHeader));
  const auto time = ReadTime(line.substr(0, first));
  const auto input = ReadCount(line.substr(first + 1, second - first - 1)), output = ReadCount(line.substr(second + 1));
  if (!time) return InvalidArgument("its time should look like 2023-11-16 18:15:46.6805900");
  if (!input || !output) return InvalidArgument("its numbers of tokens should be whole numbers");
  return TraceRequest{*time, *input, *output, {}};
}

Result<TraceRequest> ReadMooncake(std::string_view line) {
  const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return InvalidArgument("it should be a JSON object");
  const auto count = [&](const char* name) -> std::optional<int64_t> {
    const auto at = json.find(name);
    if (at == json.end() || !at->is_number_unsigned() || at->get<uint64_t>() > INT32_MAX) return std::nullopt;
    return at->get<int64_t>();
  };
  const auto input = count("input_length"), output = count("output_length");
  const auto time = json.find("timestamp");
  if (!input || !output) return InvalidArgument("input_length and output_length should be whole numbers");
  if (time == json.end() || !time->is_number() || !std::isfinite(time->get<double>())) {
    return InvalidArgument("timestamp should be a number of milliseconds");
  }
  TraceRequest request{time->get<double>() / 1000, *input, *output, {}};
  if (const auto hashes = json.find("hash_ids"); hashes != json.end()) {
    if (!hashes->is_array()) return InvalidArgument("hash_ids should be an array");
    for (const Json& hash : *hashes) {
      if (!hash.is_number_integer()) return InvalidArgument("hash_ids should hold whole numbers");
      request.blocks.push_back(hash.get<int64_t>());
    }
  }
  return request;
}

}  // namespace

Result<std::vector<TraceRequest>> ReadTrace(const std::string& path, int64_t limit) {
  ASSIGN_OR_RETURN(const std::string bytes, ReadTextFile(path));
  std::string_view left = bytes;
  std::vector<TraceRequest> requests;
  bool azure = false;
  for (int64_t number = 1; !left.empty() && static_cast<int64_t>(requests.size()) < limit; ++number) {
    const size_t end = std::min(left.find('\n'), left.size());
    std::string_view line = left.substr(0, end);
    left.remove_prefix(std::min(end + 1, left.size()));
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.remove_suffix(1);
    if (number == 1 && line == kAzureHeader) {
      azure = true;
      continue;
    }
    if (number == 1 && !line.starts_with('{')) {
      return InvalidArgument(path + " is no trace: its first line should be " + std::string(kAzureHeader) +
                             " (Azure's) or a JSON object with timestamp, input_length and output_length (Mooncake's)");
    }
    if (line.empty()) continue;
    auto request = azure ? ReadAzure(line) : ReadMooncake(line);
    if (!request.ok()) return request.status().WithContext(path + ":" + std::to_string(number));
    requests.push_back(std::move(request).value());
  }
  if (requests.empty()) return InvalidArgument(path + " holds no requests");
  std::stable_sort(requests.begin(), requests.end(),
                   [](const TraceRequest& a, const TraceRequest& b) { return a.time_s < b.time_s; });
  const double first = requests.front().time_s;
  for (TraceRequest& request : requests) request.time_s -= first;
  return requests;
}

}  // namespace quire::launch

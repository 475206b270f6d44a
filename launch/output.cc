// See output.h.
#include "launch/output.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <utility>

namespace quire::launch {
namespace {

int g_write_errno = 0;

// Code points, close enough to columns for what the tables hold.
size_t Width(const std::string& cell) {
  return static_cast<size_t>(std::count_if(cell.begin(), cell.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

}  // namespace

void WriteOut(std::string_view text) {
  if (g_write_errno != 0 || text.empty()) return;
  errno = 0;
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    g_write_errno = errno != 0 ? errno : EIO;
  }
}

bool OutputBroken() { return g_write_errno != 0; }

Status OutputStatus() {
  if (g_write_errno == 0) return OkStatus();
  if (g_write_errno == EPIPE) return Cancelled("whoever read the output went away");
  return DataLoss(std::string("writing to stdout failed: ") + std::strerror(g_write_errno));
}

void WriteJson(const Json& json) {
  WriteOut(json.dump(2, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace) + "\n");
}

void WriteTable(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], Width(row[i]));
  }
  std::string text;
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string padding(widths[i] - Width(row[i]), ' ');
      // The first column is a name and reads from the left; the rest are figures.
      text += i == 0 ? row[i] + padding : "  " + padding + row[i];
    }
    text += '\n';
  }
  WriteOut(text);
}

std::string Fixed(double value, int digits) {
  char buffer[64];
  std::snprintf(buffer, sizeof buffer, "%.*f", digits, value);
  return buffer;
}

std::string HumanBytes(double bytes) {
  const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  int unit = 0;
  while (bytes >= 1024 && unit < 4) bytes /= 1024, ++unit;
  return Fixed(bytes, unit == 0 ? 0 : 1) + " " + units[unit];
}

Status AddAttentionFields(const AttentionSpec& spec, int page_size, Json* row) {
  ASSIGN_OR_RETURN(const auto policy, MakePolicy(spec, page_size));
  (*row)["attention"] = spec.name;
  (*row)["token_budget"] = policy->token_budget() > 0 ? Json(policy->token_budget()) : Json(nullptr);
  (*row)["spec"] = spec.ToString();
  return OkStatus();
}

void AddReads(const AttentionReads& reads, Json* row) {
  (*row)["pages_read"] = reads.pages_read;
  (*row)["pages_total"] = reads.pages_total;
  (*row)["bytes_read"] = reads.bytes_read;
  (*row)["bytes_total"] = reads.bytes_total;
}

void WriteResults(const std::string& format, Json results, const std::vector<std::vector<std::string>>& table) {
  if (format == "json") {
    WriteJson({{"results", std::move(results)}});
  } else {
    WriteTable(table);
  }
}

}  // namespace quire::launch

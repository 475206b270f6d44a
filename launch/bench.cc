// See bench.h.
#include "launch/bench.h"

#include <algorithm>
#include <cmath>

#include "core/base/check.h"
#include "kernels/device_session.h"

namespace quire::launch {

double Median(std::vector<double> values) {
  CHECK(!values.empty());
  const size_t middle = values.size() / 2;
  std::nth_element(values.begin(), values.begin() + middle, values.end());
  if (values.size() % 2 == 1) return values[middle];
  return (values[middle] + *std::max_element(values.begin(), values.begin() + middle)) / 2;
}

void AddMachineFlag(CLI::App& app, double* seconds) {
  app.add_option("--machine-seconds", *seconds, "to measure the machine's own rates; under one they are rough")
      ->capture_default_str();
}

Status CheckMachineSeconds(double seconds) {
  if (seconds > 0 && seconds <= 600) return OkStatus();
  return InvalidArgument("--machine-seconds is " + Fixed(seconds, 2) + "; it must be above 0 and at most 600");
}

MachineRates MeasureRates(const Context& context, double seconds) {
  return MeasureMachine(context, seconds, seconds < 1 ? size_t{64} << 20 : 0);
}

MachineRates MeasureRates(int threads, double seconds) {
  ThreadPool pool(threads);
  Context context;
  context.pool = &pool;
  return MeasureRates(context, seconds);
}

Result<MachineRates> MeasureRates(const Engine& engine, int threads, double seconds) {
  if (!OnGpu(engine)) return MeasureRates(threads, seconds);
  ASSIGN_OR_RETURN(const auto session, DeviceSession::Create({DeviceKind::kCuda, 0}));
  return MeasureGpu(*session, seconds);
}

Json MachineJson(const MachineRates& rates, int threads) {
  return {{"threads", threads},
          {"read_gb_s", rates.read_gb_s},
          {"copy_gb_s", rates.copy_gb_s},
          {"matmul_gflop_s", rates.matmul_gflop_s},
          {"matmul_name", rates.matmul_name}};
}

std::string MachineText(const MachineRates& rates) {
  return "machine: read " + Fixed(rates.read_gb_s, 1) + " GB/s, copy " + Fixed(rates.copy_gb_s, 1) +
         " GB/s, products " + Fixed(rates.matmul_gflop_s, 0) + " GFLOP/s (" + rates.matmul_name + ")\n";
}

void AddBytes(double bytes, double seconds, const MachineRates& rates, Json* row) {
  const double rate = seconds > 0 ? bytes / seconds / 1e9 : 0;
  (*row)["bytes"] = static_cast<int64_t>(bytes);
  (*row)["gb_s"] = rate;
  (*row)["share_of_copy_bandwidth"] = rates.copy_gb_s > 0 ? rate / rates.copy_gb_s : 0;
  (*row)["share_of_read_bandwidth"] = rates.read_gb_s > 0 ? rate / rates.read_gb_s : 0;
}

void AddFlops(double flops, double seconds, const MachineRates& rates, Json* row) {
  const double rate = seconds > 0 ? flops / seconds / 1e9 : 0;
  (*row)["gflop"] = flops / 1e9;
  (*row)["gflop_s"] = rate;
  (*row)["share_of_matmul_rate"] = rates.matmul_gflop_s > 0 ? rate / rates.matmul_gflop_s : 0;
}

int64_t LayerMatrixParameters(const ModelConfig& c) {
  const int64_t qkv = int64_t{c.q_heads + 2 * c.kv_heads} * c.head_dim * c.hidden;
  const int64_t out = int64_t{c.q_heads} * c.head_dim * c.hidden;
  return c.layers * (qkv + out + 3 * int64_t{c.ffn} * c.hidden);
}

int64_t HeadParameters(const ModelConfig& c) { return int64_t{c.vocab} * c.hidden; }

void WriteBench(const std::string& format, const Json& results, const MachineRates& rates, int threads,
                const std::vector<std::string>& columns) {
  if (format == "json") {
    WriteJson({{"results", results}, {"machine", MachineJson(rates, threads)}});
    return;
  }
  std::vector<std::vector<std::string>> table = {columns};
  for (const Json& row : results) {
    table.emplace_back();
    for (const std::string& column : columns) {
      const auto field = row.find(column);
      std::string cell = "-";
      if (field != row.end() && field->is_string())
        cell = field->get<std::string>();
      else if (field != row.end() && field->is_number_float()) {
        const double value = field->get<double>();
        cell = Fixed(value, value != 0 && std::abs(value) < 1 ? 6 : 2);
        if (column.rfind("share", 0) == 0) cell = Fixed(100 * value, 1) + " %";
      } else if (field != row.end() && field->is_number()) {
        cell = field->dump();
      }
      table.back().push_back(std::move(cell));
    }
  }
  WriteOut(MachineText(rates));
  WriteTable(table);
}

}  // namespace quire::launch

// quire bench crossover: the length from which on quest is faster than dense attention, by the cost model that
// `--attention auto` decides with (kernels/selection/cost_model.h). Measures both at lengths and budgets, fits the
// model's four constants to what it measured, and prints them beside the committed ones, the predictions of both beside
// the times, and the crossovers. It changes nothing: new constants are committed by hand.
#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/selection/cost_model.h"
#include "launch/bench.h"
#include "launch/command.h"
#include "launch/flags.h"
#include "launch/group.h"
#include "launch/kernel_bench.h"
#include "launch/output.h"
#include "launch/progress.h"

namespace quire::launch {
namespace {

struct CrossoverFlags {
  std::string depth = "1024,1536,2048,2560,3072,4096,6144,8192,16384,32768,65536,131072", token_budget = "256,1024,2048";
  std::string format = "text", kv_cache_dtype = "bfloat16", device = "cpu";
  int threads = 0, page_size = 16, batch = 1, q_heads = 32, kv_heads = 8, head_dim = 128, repeats = 9;
  double machine_seconds = kMachineSeconds;
  uint64_t seed = 0;
};

// Of one KV head and sequence, in seconds.
struct Sample {
  int64_t depth = 0, budget = 0;
  double dense = 0, select = 0, attend = 0;
  double sparse() const { return select + attend; }
};

// seconds ≈ fixed + bytes · per_byte with the least sum of squared relative errors, neither below 0.
class Line {
 public:
  void Add(double bytes, double seconds) {
    const double w = 1 / (seconds * seconds);
    w_ += w, x_ += w * bytes, xx_ += w * bytes * bytes, y_ += w * seconds, xy_ += w * bytes * seconds;
  }
  double fixed() const { return std::max(0.0, (y_ * xx_ - xy_ * x_) / Determinant()); }
  double per_byte() const {
    if (Determinant() <= 1e-12 * w_ * xx_ || (y_ * xx_ - xy_ * x_) < 0) return xy_ / xx_;
    return std::max(0.0, (w_ * xy_ - x_ * y_) / Determinant());
  }

 private:
  double Determinant() const { return w_ * xx_ - x_ * x_; }
  double w_ = 0, x_ = 0, xx_ = 0, y_ = 0, xy_ = 0;
};

AttentionCosts FitCosts(const std::vector<Sample>& samples, const PolicyShape& shape) {
  Line dense, attend, select;
  for (const Sample& s : samples) {
    const auto depth = static_cast<double>(s.depth);
    dense.Add(depth * static_cast<double>(shape.TokenBytes()), s.dense);
    attend.Add(static_cast<double>(s.budget * shape.TokenBytes()), s.attend);
    select.Add(depth / shape.page_size * static_cast<double>(shape.MetadataBytes()), s.select);
  }
  return {.dense_byte = dense.per_byte(),
          .sparse_byte = attend.per_byte(),
          .select_byte = select.per_byte(),
          .fixed = std::max(0.0, attend.fixed() + select.fixed() - dense.fixed())};
}

Json CostsJson(const AttentionCosts& costs) {
  return {{"dense_byte", costs.dense_byte},
          {"sparse_byte", costs.sparse_byte},
          {"select_byte", costs.select_byte},
          {"fixed", costs.fixed}};
}

Json LengthJson(int64_t length) { return length == AttentionCostModel::kNever ? Json(nullptr) : Json(length); }

// Where the measured times of one budget cross for the last time, on a straight line between two lengths; null where
// quest never got faster, the shortest length measured where it always was.
Json MeasuredCrossover(const std::vector<Sample>& samples, int64_t budget) {
  const Sample* before = nullptr;
  const Sample* first_faster = nullptr;
  for (const Sample& s : samples) {  // depths ascend
    if (s.budget != budget) continue;
    if (s.sparse() >= s.dense) {
      before = &s;
      first_faster = nullptr;
    } else if (first_faster == nullptr) {
      first_faster = &s;
    }
  }
  if (first_faster == nullptr) return nullptr;
  if (before == nullptr) return first_faster->depth;
  const double lost = before->sparse() - before->dense, won = first_faster->dense - first_faster->sparse();
  const double share = lost / (lost + won);
  return std::llround(static_cast<double>(before->depth) +
                      share * static_cast<double>(first_faster->depth - before->depth));
}

Json SampleRow(const Sample& s, const AttentionCostModel& fitted, const AttentionCostModel& committed) {
  const double as_fitted = fitted.Dense(s.depth) / fitted.Sparse(s.depth);
  const double as_committed = committed.Dense(s.depth) / committed.Sparse(s.depth);
  return {{"depth", s.depth},
          {"token_budget", s.budget},
          {"dense_us", 1e6 * s.dense},
          {"dense_fitted_us", 1e6 * fitted.Dense(s.depth)},
          {"dense_committed_us", 1e6 * committed.Dense(s.depth)},
          {"quest_us", 1e6 * s.sparse()},
          {"selection_us", 1e6 * s.select},
          {"quest_fitted_us", 1e6 * fitted.Sparse(s.depth)},
          {"quest_committed_us", 1e6 * committed.Sparse(s.depth)},
          {"speedup", s.dense / s.sparse()},
          {"speedup_fitted", as_fitted},
          {"speedup_committed", as_committed}};
}

std::string Cell(const Json& value) {
  if (value.is_null()) return "never";
  if (!value.is_number_float()) return value.dump();
  const auto number = value.get<double>();
  return Fixed(number, number < 100 ? 2 : 1);
}

void WriteTables(const Json& json, const MachineRates& rates) {
  WriteOut(MachineText(rates) + "microseconds a KV head and sequence\n");
  const std::vector<std::string> columns = {"depth",          "token_budget",   "dense_us",
                                            "dense_fitted_us", "quest_us",       "quest_fitted_us",
                                            "speedup",         "speedup_fitted", "speedup_committed"};
  std::vector<std::vector<std::string>> table = {columns};
  for (const Json& row : json["results"]) {
    table.emplace_back();
    for (const std::string& column : columns) table.back().push_back(Cell(row[column]));
  }
  WriteTable(table);
  WriteOut("\nconstants, picoseconds a byte; fixed in microseconds a list\n");
  table = {{"", "dense_byte", "sparse_byte", "select_byte", "fixed"}};
  for (const char* which : {"fitted", "committed"}) {
    const Json& costs = json["costs"][which];
    table.push_back({which, Cell(costs["dense_byte"].get<double>() * 1e12), Cell(costs["sparse_byte"].get<double>() * 1e12),
                     Cell(costs["select_byte"].get<double>() * 1e12), Cell(costs["fixed"].get<double>() * 1e6)});
  }
  WriteTable(table);
  WriteOut("\nlength from which on quest is faster\n");
  table = {{"token_budget", "measured", "fitted", "committed"}};
  for (const Json& row : json["crossovers"]) {
    table.push_back({row["token_budget"].dump(), Cell(row["measured"]), Cell(row["fitted"]), Cell(row["committed"])});
  }
  WriteTable(table);
}

Status RunBenchCrossover(const CrossoverFlags& flags) {
  ASSIGN_OR_RETURN(std::vector<int64_t> depths, ParseIntList("--depth", flags.depth, 1));
  ASSIGN_OR_RETURN(std::vector<int64_t> budgets, ParseIntList("--token-budget", flags.token_budget, 1));
  std::sort(depths.begin(), depths.end());
  if (depths.back() <= *std::min_element(budgets.begin(), budgets.end())) {
    return InvalidArgument("no --depth is longer than a --token-budget; nothing is sparse at these lengths");
  }
  ASSIGN_OR_RETURN(const DType dtype, ParseFloatDType(flags.kv_cache_dtype));
  RETURN_IF_ERROR(CheckAtLeastOne({{"--repeats", flags.repeats}, {"--batch", flags.batch}}));
  ASSIGN_OR_RETURN(const PageFormat format,
                   CheckLayerFlags({flags.q_heads, flags.kv_heads, flags.head_dim, flags.page_size, flags.threads, dtype,
                                    flags.machine_seconds}));
  ASSIGN_OR_RETURN(const auto device, BenchDevice::Create(flags.device, flags.threads));
  ASSIGN_OR_RETURN(const size_t free_bytes, device->FreeBytes());
  for (const int64_t depth : depths) RETURN_IF_ERROR(BenchCache::CheckRoom(format, flags.batch, depth, free_bytes));
  const PolicyShape shape{flags.page_size, flags.head_dim, flags.head_dim, dtype, flags.q_heads / flags.kv_heads,
                          device->ctx().device.kind};

  ASSIGN_OR_RETURN(MachineRates rates, device->Measure(flags.machine_seconds));
  ASSIGN_OR_RETURN(BenchClock clock, BenchClock::Create(device->ctx()));
  Progress progress("bench crossover");
  std::vector<Sample> samples;
  for (size_t d = 0; d < depths.size(); ++d) {
    std::vector<AttentionSpec> specs = {{}};
    for (const int64_t budget : budgets) {
      if (budget < depths[d]) {
        specs.push_back({"quest", {{"token_budget", std::to_string(budget)}, {"dense_layers", "0"}}});
      }
    }
    if (specs.size() == 1) continue;
    ASSIGN_OR_RETURN(auto bench, PolicyBench::Create(device->ctx(),
                                                     {.format = format,
                                                      .q_heads = flags.q_heads,
                                                      .batch = flags.batch,
                                                      .depth = depths[d],
                                                      .seed = flags.seed},
                                                     specs));
    const double from = static_cast<double>(d) / static_cast<double>(depths.size());
    RETURN_IF_ERROR(TimeInTurns(flags.repeats, &bench->timed(), &clock, &progress, from,
                                from + 1.0 / static_cast<double>(depths.size())));
    const double lists = static_cast<double>(flags.batch) * flags.kv_heads;
    const auto seconds = [&](int part) { return Median(bench->timed()[static_cast<size_t>(part)].seconds) / lists; };
    const double dense = seconds(bench->steps().front().attend);
    for (size_t i = 1; i < specs.size(); ++i) {
      const PolicyBench::Step& step = bench->steps()[i];
      samples.push_back({depths[d], step.row["token_budget"].get<int64_t>(), dense, seconds(step.select),
                         seconds(step.attend)});
    }
  }
  progress.Finish();
  clock.TakeBandwidth(&rates);
  const AttentionCosts costs = FitCosts(samples, shape);
  Json json = {{"results", Json::array()},
               {"crossovers", Json::array()},
               {"costs", {{"fitted", CostsJson(costs)}, {"committed", CostsJson(MeasuredCosts(shape.device))}}},
               {"machine", MachineJson(rates, device->threads())}};
  for (const int64_t budget : budgets) {
    const AttentionCostModel fitted(costs, shape, budget, 0), committed(MeasuredCosts(shape.device), shape, budget, 0);
    for (const Sample& s : samples) {
      if (s.budget == budget) json["results"].push_back(SampleRow(s, fitted, committed));
    }
    json["crossovers"].push_back({{"token_budget", budget},
                                  {"measured", MeasuredCrossover(samples, budget)},
                                  {"fitted", LengthJson(fitted.Crossover())},
                                  {"committed", LengthJson(committed.Crossover())}});
  }
  if (flags.format == "json") {
    WriteJson(json);
  } else {
    WriteTables(json, rates);
  }
  return OkStatus();
}

}  // namespace

Command AddBenchCrossover(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand(
      "crossover", "The length from which on quest is faster than dense, and the cost model of --attention auto");
  auto flags = std::make_shared<CrossoverFlags>();
  app->footer("\nExample\n  quire bench crossover --q-heads 32 --kv-heads 8 --head-dim 128 --threads 2");
  AddListFlag(*app, "--depth", &flags->depth, "tokens in the cache");
  AddListFlag(*app, "--token-budget", &flags->token_budget, "tokens whose pages quest reads; those below a depth count");
  app->add_option("--batch", flags->batch, "sequences that decode together")->capture_default_str();
  app->add_option("--q-heads", flags->q_heads, "query heads")->capture_default_str();
  app->add_option("--kv-heads", flags->kv_heads, "KV heads")->capture_default_str();
  app->add_option("--head-dim", flags->head_dim, "channels of a head")->capture_default_str();
  app->add_option("--repeats", flags->repeats, "timings of each kernel, in turns")->capture_default_str();
  AddMachineFlag(*app, &flags->machine_seconds);
  AddFlag(*app, "--kv-cache-dtype", &flags->kv_cache_dtype, "of the cache: float32, bfloat16, float16");
  AddFlag(*app, "--page-size", &flags->page_size, "tokens in a page");
  AddFlag(*app, "--device", &flags->device, "cpu, cuda or auto");
  AddFlag(*app, "--threads,-t", &flags->threads, "0: the processors this process may use");
  AddFlag(*app, "--seed", &flags->seed, "of everything random");
  AddFormatFlag(*app, &flags->format);
  return {app, [flags] { return RunGroup({}, [&](const Seat&) { return RunBenchCrossover(*flags); }); }};
}

}  // namespace quire::launch

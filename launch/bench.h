// What the benches share: medians, the machine's own rates measured in the same run, and the rows they print.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "core/base/context.h"
#include "core/engine/engine.h"
#include "core/model/model_config.h"
#include "kernels/machine.h"
#include "launch/output.h"

namespace quire::launch {

double Median(std::vector<double> values);  // of at least one

inline constexpr double kMachineSeconds = 2;
// --machine-seconds, and what is wrong with one.
void AddMachineFlag(CLI::App& app, double* seconds);
Status CheckMachineSeconds(double seconds);
// Read and copy bandwidth and the matrix-product rate, with the context's threads or this many (0: all). Takes about
// `seconds`; under one, over 64 MiB instead of a gigabyte, it tells the order of magnitude.
MachineRates MeasureRates(const Context& context, double seconds);
MachineRates MeasureRates(int threads, double seconds);
// Of what the engine runs on: the first GPU where that is one.
Result<MachineRates> MeasureRates(const Engine& engine, int threads, double seconds);
inline bool OnGpu(const Engine& engine) { return engine.options().device == "cuda"; }
Json MachineJson(const MachineRates& rates, int threads);
// A line for people: "read 28.1 GB/s, copy 24.0 GB/s, products 1300 GFLOP/s (oneDNN bf16)".
std::string MachineText(const MachineRates& rates);

// Adds "bytes", "gb_s", "share_of_copy_bandwidth" and "share_of_read_bandwidth".
void AddBytes(double bytes, double seconds, const MachineRates& rates, Json* row);
// Adds "gflop", "gflop_s" and "share_of_matmul_rate".
void AddFlops(double flops, double seconds, const MachineRates& rates, Json* row);

// Parameters in the matrices of all layers, and in the head: what a decode step reads and a prompt's row is multiplied
// by.
int64_t LayerMatrixParameters(const ModelConfig& config);
int64_t HeadParameters(const ModelConfig& config);

// One json object {"results", "machine"}, or a table of the rows' fields `columns` under the machine's line.
void WriteBench(const std::string& format, const Json& results, const MachineRates& rates, int threads,
                const std::vector<std::string>& columns);

}  // namespace quire::launch

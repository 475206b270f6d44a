// See serve_workload.h.
#include "launch/serve_workload.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "launch/output.h"

namespace quire::launch {
namespace {

// What a stream of draws is for: streams of different kinds and indices have nothing to do with each other.
enum class Draw : uint32_t { kGaps, kLengths, kPrompt, kBlock };

std::mt19937_64 Generator(uint64_t seed, Draw kind, int64_t index) {
  const auto low = [](uint64_t x) { return static_cast<uint32_t>(x); };
  const uint64_t i = static_cast<uint64_t>(index);
  std::seed_seq sequence{low(seed), low(seed >> 32), static_cast<uint32_t>(kind), low(i), low(i >> 32)};
  return std::mt19937_64(sequence);
}

void AppendIds(std::mt19937_64 random, int64_t count, int vocab, std::vector<int32_t>* ids) {
  for (int64_t i = 0; i < count; ++i) ids->push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(vocab)));
}

Status CheckRange(const char* flag, double value, bool ok, const char* range) {
  if (ok) return OkStatus();
  return InvalidArgument(std::string(flag) + " is " + Fixed(value, 3) + "; it must be " + range);
}

Status CheckCommon(const WorkloadOptions& o) {
  RETURN_IF_ERROR(CheckRange("--num-prompts", static_cast<double>(o.num_prompts),
                             o.num_prompts >= 1 && o.num_prompts <= 10000000, "1 to 10000000"));
  RETURN_IF_ERROR(CheckRange("--burstiness", o.burstiness, o.burstiness > 0 && o.burstiness <= 1e6, "above 0"));
  return CheckRange("--request-rate", o.request_rate, o.request_rate >= 0, "above 0, or inf");
}

Status CheckLength(int64_t input, int64_t output, const WorkloadOptions& o, const std::string& remedy) {
  if (input + output <= o.max_model_len) return OkStatus();
  return InvalidArgument("a prompt of " + std::to_string(input) + " tokens and an output of " + std::to_string(output) +
                         " are more than the service's context of " + std::to_string(o.max_model_len) + "; " + remedy);
}

std::vector<double> Arrivals(size_t count, const WorkloadOptions& o) {
  std::vector<double> due(count, 0);
  if (std::isinf(o.request_rate)) return due;
  std::mt19937_64 random = Generator(o.seed, Draw::kGaps, 0);
  std::gamma_distribution<double> gap(o.burstiness, 1 / (o.request_rate * o.burstiness));
  for (size_t i = 1; i < count; ++i) due[i] = due[i - 1] + gap(random);
  return due;
}

}  // namespace

Result<std::vector<PlannedRequest>> RandomWorkload(const WorkloadOptions& o) {
  RETURN_IF_ERROR(CheckCommon(o));
  RETURN_IF_ERROR(CheckRange("--request-rate", o.request_rate, o.request_rate > 0, "above 0, or inf"));
  RETURN_IF_ERROR(CheckRange("--input-len", static_cast<double>(o.input_len), o.input_len >= 1, "at least 1"));
  RETURN_IF_ERROR(CheckRange("--output-len", static_cast<double>(o.output_len), o.output_len >= 1, "at least 1"));
  RETURN_IF_ERROR(
      CheckRange("--random-range-ratio", o.range_ratio, o.range_ratio >= 0 && o.range_ratio < 1, "0 to below 1"));
  const auto bound = [&](int64_t length, double sign) {
    return std::max<int64_t>(1, std::llround(static_cast<double>(length) * (1 + sign * o.range_ratio)));
  };
  RETURN_IF_ERROR(CheckLength(bound(o.input_len, 1), bound(o.output_len, 1), o,
                              "lower --input-len, --output-len or --random-range-ratio"));
  std::uniform_int_distribution<int64_t> input(bound(o.input_len, -1), bound(o.input_len, 1));
  std::uniform_int_distribution<int64_t> output(bound(o.output_len, -1), bound(o.output_len, 1));
  std::mt19937_64 lengths = Generator(o.seed, Draw::kLengths, 0);
  const std::vector<double> due = Arrivals(static_cast<size_t>(o.num_prompts), o);
  std::vector<PlannedRequest> requests(due.size());
  for (size_t i = 0; i < due.size(); ++i) {
    requests[i].due_s = due[i];
    AppendIds(Generator(o.seed, Draw::kPrompt, static_cast<int64_t>(i)), input(lengths), o.vocab, &requests[i].prompt);
    requests[i].output_tokens = static_cast<int>(output(lengths));
  }
  return requests;
}

Result<std::vector<PlannedRequest>> TraceWorkload(const std::vector<TraceRequest>& trace, const WorkloadOptions& o) {
  RETURN_IF_ERROR(CheckCommon(o));
  RETURN_IF_ERROR(CheckRange("--time-scale", o.time_scale, o.time_scale >= 0 && o.time_scale <= 1e6, "0 to 1000000"));
  RETURN_IF_ERROR(
      CheckRange("--length-scale", o.length_scale, o.length_scale > 0 && o.length_scale <= 1e3, "above 0, at most 1000"));
  RETURN_IF_ERROR(
      CheckRange("--max-input-len", static_cast<double>(o.max_input_len), o.max_input_len >= 0, "at least 1"));
  RETURN_IF_ERROR(
      CheckRange("--max-output-len", static_cast<double>(o.max_output_len), o.max_output_len >= 0, "at least 1"));
  const size_t count = std::min(trace.size(), static_cast<size_t>(o.num_prompts));
  // The trace's own gaps, stretched so that their mean is what --request-rate says.
  double scale = o.time_scale;
  if (const double span = trace[count - 1].time_s; o.request_rate > 0) {
    scale = std::isinf(o.request_rate) || span <= 0 ? 0 : static_cast<double>(count - 1) / o.request_rate / span;
  }
  const auto scaled = [&](int64_t length, int64_t most) {
    const int64_t tokens = std::max<int64_t>(1, std::llround(static_cast<double>(length) * o.length_scale));
    return most > 0 ? std::min(tokens, most) : tokens;
  };
  const int64_t block = scaled(kTraceBlock, 0);
  std::vector<PlannedRequest> requests(count);
  for (size_t i = 0; i < count; ++i) {
    const int64_t input = scaled(trace[i].input_tokens, o.max_input_len);
    const int64_t output = scaled(trace[i].output_tokens, o.max_output_len);
    RETURN_IF_ERROR(CheckLength(input, output, o, "give --length-scale, or --max-input-len and --max-output-len"));
    PlannedRequest& request = requests[i];
    request.due_s = scale * trace[i].time_s;
    request.output_tokens = static_cast<int>(output);
    for (const int64_t hash : trace[i].blocks) {
      const int64_t left = input - static_cast<int64_t>(request.prompt.size());
      AppendIds(Generator(o.seed, Draw::kBlock, hash), std::min(left, block), o.vocab, &request.prompt);
    }
    AppendIds(Generator(o.seed, Draw::kPrompt, static_cast<int64_t>(i)),
              input - static_cast<int64_t>(request.prompt.size()), o.vocab, &request.prompt);
  }
  return requests;
}

}  // namespace quire::launch

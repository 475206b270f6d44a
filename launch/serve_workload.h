// What `quire bench serve` sends: for each request when, which ids and how many tokens are asked for. A pure function of
// its options, so that a run can be repeated.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/base/status.h"
#include "launch/serve_trace.h"

namespace quire::launch {

struct WorkloadOptions {
  int64_t num_prompts = 1000;
  uint64_t seed = 0;
  int vocab = 0;              // ids are drawn below it
  int64_t max_model_len = 0;  // prompt and output together; longer ones are refused

  double request_rate = 0;  // a second; infinity: all at once; 0: as the trace has it
  double burstiness = 1;    // shape of the gamma distribution of the gaps: 1 is Poisson, below it comes in bursts

  // Without a trace: lengths drawn evenly from length × (1 ± range_ratio).
  int64_t input_len = 1024, output_len = 128;
  double range_ratio = 0;

  // With one.
  double time_scale = 1;                           // of the gaps, where request_rate is 0
  double length_scale = 1;                         // of prompts, outputs, and of the blocks that prompts share
  int64_t max_input_len = 0, max_output_len = 0;   // what is longer, scaled, is cut; 0: no limit
};

struct PlannedRequest {
  double due_s = 0;  // after the start; ascending
  std::vector<int32_t> prompt;
  int output_tokens = 0;
};

// INVALID_ARGUMENT for options out of range and lengths that the context doesn't take.
Result<std::vector<PlannedRequest>> RandomWorkload(const WorkloadOptions& options);
// At most num_prompts of the trace's. A block is the same ids wherever its hash stands.
Result<std::vector<PlannedRequest>> TraceWorkload(const std::vector<TraceRequest>& trace,
                                                  const WorkloadOptions& options);

}  // namespace quire::launch

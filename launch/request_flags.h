// Flags of one request, the same wherever it is sent: `quire generate` and `quire client`.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "core/base/status.h"
#include "core/engine/request.h"

namespace quire::launch {

struct RequestFlags {
  RequestFlags() {
    sampling.temperature = 0;
    stopping.max_tokens = 128;
  }
  SamplingParams sampling;
  StoppingParams stopping;
  std::vector<std::string> logit_bias;
  int logprobs = -1;
};
void AddRequestFlags(CLI::App& app, RequestFlags* flags);

// Everything but the prompt. INVALID_ARGUMENT for a --logit-bias that isn't ID=BIAS.
Result<GenerationRequest> MakeRequest(const RequestFlags& flags);

}  // namespace quire::launch

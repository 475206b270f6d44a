// Whether a request is one that the engine can run: every parameter looked at, each refusal a sentence with the value
// and what would be allowed. Pure functions.
#pragma once

#include <vector>

#include "core/base/status.h"
#include "core/engine/request.h"
#include "core/engine/sampling.h"

namespace quire {

struct RequestLimits {
  int64_t vocab = 0;
  int64_t max_model_len = 0;
  bool has_tokenizer = false;
  const std::vector<AttentionSpec>* attention = nullptr;  // not null; the first is the default
};

Status CheckRequest(const GenerationRequest& request, const RequestLimits& limits);

// Index of the request's policy. INVALID_ARGUMENT, naming those that there are, when it is none of them. A name without
// options means the first of that name.
Result<int> FindAttention(const std::optional<AttentionSpec>& wanted, const std::vector<AttentionSpec>& attention);

// The sampler's view of a checked request. stop_ids: what ends it, masked until min_tokens.
SamplerParams MakeSamplerParams(const GenerationRequest& request, uint64_t seed, const std::vector<int32_t>& stop_ids);

}  // namespace quire

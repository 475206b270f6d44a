// Whether a request is one that the engine can run: every parameter looked at, each refusal a sentence with the value
// and what would be allowed. Pure functions.
#pragma once

#include <string>
#include <vector>

#include "core/base/status.h"
#include "core/engine/request.h"
#include "core/engine/sampling.h"

namespace quire {

struct RequestLimits {
  int64_t vocab = 0;
  int64_t max_model_len = 0;
  bool has_tokenizer = false;
};

// All but the attention, which ResolveAttention looks at.
Status CheckRequest(const GenerationRequest& request, const RequestLimits& limits);

// The policy of a request's decode rows: the first of `attention`, the engine's, when it wants none; else what it wants,
// where options that it leaves out are those of the engine's first policy of that name. INVALID_ARGUMENT, naming those
// that there are, for another name, for their data may not be kept; and for options that MakePolicy refuses.
Result<AttentionSpec> ResolveAttention(const std::optional<AttentionSpec>& wanted,
                                       const std::vector<AttentionSpec>& attention, int page_size);

// Whether requests may go on behind one prompt with these policies (GenerationRequest::branches; their specs' texts,
// resolved): none evicts, and all remember a prompt alike.
Status CheckBranches(const std::vector<std::string>& branches, int page_size);

// The sampler's view of a checked request. stop_ids: what ends it, masked until min_tokens.
SamplerParams MakeSamplerParams(const GenerationRequest& request, uint64_t seed, const std::vector<int32_t>& stop_ids);

}  // namespace quire

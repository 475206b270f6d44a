// Evaluations of many policies take a prompt in once for all that can share it: those that remember it alike, and keep all
// of it (GenerationRequest::branches). A prompt of 8k tokens costs as much as hundreds of steps.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "core/base/status.h"
#include "core/engine/engine.h"

namespace quire::launch {

using PolicyGroup = std::vector<size_t>;  // indices into the evaluation's policies, ascending

// The policies in groups that share prompts, of no more than the engine runs sequences at once.
Result<std::vector<PolicyGroup>> GroupPolicies(const Engine& engine, const std::vector<AttentionSpec>& specs);

// "quest:token_budget=256", or "quest:token_budget=256 and 5 more".
std::string Named(const std::vector<AttentionSpec>& specs, const PolicyGroup& group);

// Sequence i of the request goes on behind its prompt with specs[group[i]].
void GoOnWith(const std::vector<AttentionSpec>& specs, const PolicyGroup& group, GenerationRequest* request);

// Sequences at once of an engine that evaluates these policies, where --max-num-seqs says nothing.
int SequencesFor(const std::vector<AttentionSpec>& specs);

}  // namespace quire::launch

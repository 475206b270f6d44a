// A text to be scored, as the engine takes it: its tokens as a prompt whose log-probabilities are wanted, except for the
// last, which is forced, so that a text may fill the whole context. Scored densely.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/engine/request.h"

namespace quire {

// top: best tokens wanted beside each one.
GenerationRequest ScoringRequest(const std::vector<int32_t>& ids, int top);

// Takes what an event of such a request brings: `scores` grows to one entry a token, the first of them absent.
void AddScores(const TokenEvent& event, std::vector<std::optional<TokenLogprobs>>* scores);

}  // namespace quire

#include "core/engine/scoring.h"

namespace quire {

GenerationRequest ScoringRequest(const std::vector<int32_t>& ids, int top) {
  GenerationRequest request;
  request.prompt = ids;
  if (ids.size() > 1) {
    request.prompt.pop_back();
    request.forced = {ids.back()};
    request.logprobs = top;
  }
  request.sampling.temperature = 0;
  request.stopping.max_tokens = 1;
  request.prompt_logprobs = top;
  return request;
}

void AddScores(const TokenEvent& event, std::vector<std::optional<TokenLogprobs>>* scores) {
  scores->insert(scores->end(), event.prompt_logprobs.begin(), event.prompt_logprobs.end());
  scores->insert(scores->end(), event.logprobs.begin(), event.logprobs.end());
}

}  // namespace quire

// A token's log-probabilities as json, the same wherever the program prints them.
#pragma once

#include <utility>

#include "core/engine/request.h"
#include "launch/output.h"

namespace quire::launch {

// [{"id", "logprob"}], the best first.
inline Json TopJson(const TokenLogprobs& token) {
  Json top = Json::array();
  for (const TokenLogprob& t : token.top) top.push_back({{"id", t.id}, {"logprob", t.logprob}});
  return top;
}

// {"id", "logprob", "top"}.
inline Json TokenJson(const TokenLogprobs& token) {
  return {{"id", token.chosen.id}, {"logprob", token.chosen.logprob}, {"top", TopJson(token)}};
}

}  // namespace quire::launch

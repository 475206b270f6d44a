// What `quire score` scores, and by whom: an engine of its own (score.cc) or a service (score_service.cc; in a program
// without gRPC, service_absent.cc).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/base/status.h"
#include "core/engine/request.h"

namespace quire::launch {

struct ScoreText {
  std::optional<std::string> text;  // absent: token_ids
  std::vector<int32_t> token_ids;
};

struct ScoredText {
  std::vector<int32_t> token_ids;                      // as the model saw it
  std::vector<std::optional<TokenLogprobs>> logprobs;  // [token_ids], the first one absent
};

// By the service at HOST:PORT, in order. connect_s, retry_s: see ClientOptions. Ctrl-C and a broken stdout end it with
// CANCELLED.
Result<std::vector<ScoredText>> ScoreByService(const std::string& address, double connect_s, double retry_s,
                                               const std::vector<ScoreText>& texts, int top);

}  // namespace quire::launch

// Requests with one thing wrong each, for every service that takes them: a group, and a coordinator in front of groups.
#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <vector>

#include "quire/v1/generation.grpc.pb.h"

namespace quire {

struct BadRequest {
  const char* what;
  std::function<void(v1::GenerateRequest*)> spoil;  // a good one, of one prompt, for stories260K (512 tokens) with dense alone
  grpc::StatusCode code;
  const char* says;  // part of the sentence
};

// Every field out of its range.
const std::vector<BadRequest>& BadRequests();

struct BadScore {
  const char* what;
  std::function<void(v1::ScoreRequest*)> spoil;  // a good one, of a text, likewise
  grpc::StatusCode code;
  const char* says;
};
const std::vector<BadScore>& BadScores();

// Scores one text.
grpc::Status ScoreOne(v1::Generation::Stub& generation, const v1::ScoreRequest& request, v1::ScoreResponse* response);
// Each of BadScores is refused, behind a text that is answered; and what is just in range is taken.
void ExpectBadScoresRefused(v1::Generation::Stub& generation);

}  // namespace quire

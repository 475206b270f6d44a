// Requests with one thing wrong each, for every service that takes them: a group, and a coordinator in front of groups.
#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <vector>

#include "quire/v1/generation.pb.h"

namespace quire {

struct BadRequest {
  const char* what;
  std::function<void(v1::GenerateRequest*)> spoil;  // a good one, of one prompt, for stories260K (512 tokens) with dense alone
  grpc::StatusCode code;
  const char* says;  // part of the sentence
};

// Every field out of its range.
const std::vector<BadRequest>& BadRequests();

}  // namespace quire

// The protocol's messages ↔ the engine's structs, field by field. Absent fields keep the structs' defaults. What only the
// engine can judge (ids against the vocabulary, lengths against the context) is left to its own checks; what the structs
// can't express is refused here. Internal to rpc/.
#pragma once

#include <cstddef>
#include <functional>
#include <string>

#include "core/base/status.h"
#include "core/engine/engine.h"
#include "core/engine/request.h"
#include "quire/v1/common.pb.h"
#include "quire/v1/control.pb.h"
#include "quire/v1/generation.pb.h"
#include "quire/v1/worker.pb.h"

namespace quire::rpc {

// Parameters only: not the prompt, nor the id. INVALID_ARGUMENT with a sentence.
Status ReadParameters(const v1::GenerateRequest& message, GenerationRequest* request);
// The other way, for a client; the seed only where there is one.
void WriteParameters(const GenerationRequest& request, v1::GenerateRequest* message);

// A request as a coordinator hands it to a group, without AttemptId and context. The id of the request is the attempt's.
void WriteSubmission(const GenerationRequest& request, v1::Submission* message);
Result<GenerationRequest> ReadSubmission(const v1::Submission& message);

// A message's bytes beside its prompts, which have limits of their own: they go to a group with every submission.
Status CheckParameterBytes(size_t message, size_t prompts);

// At most 256 bytes, no control characters (the services make ids of their own with those).
Status CheckRequestId(const std::string& id);

void WriteLogprobs(const TokenLogprobs& logprobs, v1::TokenLogprob* message);
TokenLogprobs ReadLogprobs(const v1::TokenLogprob& message);
void WriteUsage(const TokenEvent& event, v1::Usage* usage);
void WriteTimings(const RequestTimings& timings, v1::Timings* message);
RequestTimings ReadTimings(const v1::Timings& message);
void WriteFinished(const FinishedSequences& finished, v1::FinishedSequences* message);
// Adds what one group counted to a sum over groups.
void AddFinished(const v1::FinishedSequences& finished, v1::FinishedSequences* sum);
v1::FinishReason WriteReason(FinishReason reason);
FinishReason ReadReason(v1::FinishReason reason);  // kUnspecified for numbers that aren't known

// INVALID_ARGUMENT when an event's lists don't fit each other.
Status CheckEvent(const v1::TokenEvent& message);
// A group's event as the engine would have given it, one call a token (and one for what finishes the sequence), so that
// who gets them never sees how they were gathered; they may take it apart. No call when CheckEvent has something to say.
Status ReadEvent(const v1::TokenEvent& message, const std::function<void(TokenEvent&)>& callback);

}  // namespace quire::rpc

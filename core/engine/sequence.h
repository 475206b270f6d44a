// The state of requests in flight, as the scheduler and the engine share it. A request has n sequences; each is either
// waiting, running (it has a slot and pages) or finished. Touched by the thread that runs Engine::Step only.
//
// Positions below dense_length are written by prefill; each later one is a decode row of its own with the request's
// policy, first when its token has just been drawn, and again when the sequence was preempted and is recomputed. So a
// recomputed cache is the one that was lost. An evicting policy's prompt is prefilled up to the policy's capacity; its
// later positions come in chunks of their own, whose rows each overwrite a token (core/model/decoder.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/engine/request.h"
#include "core/engine/sampling.h"
#include "core/engine/stop_matcher.h"
#include "core/io/tokenizer.h"
#include "kvstore/kv_books.h"

namespace quire {

struct RequestState;

enum class SequenceState { kWaiting, kRunning, kFinished };

struct Sequence {
  RequestState* request = nullptr;
  int index = 0;  // of its request
  SequenceState state = SequenceState::kWaiting;
  std::vector<int32_t> tokens;  // prompt and outputs
  int64_t computed = 0;         // tokens in the cache, the planned step's included

  int slot = -1;                // running only
  SeqId kv = -1;                // running only; −1 for a fork that has no pages yet
  Sequence* fork_of = nullptr;  // running, not null: its pages are forked from this one after the step

  // Output side (engine).
  std::optional<StreamDecoder> decoder;
  StopMatcher stops;
  double first_scheduled = 0, first_token = 0;  // NowSeconds; 0: not yet
  AttentionReads attention;

  int64_t output_tokens() const;
  const std::string& policy() const;  // an AttentionSpec's text
};

// One request in flight.
struct RequestState {
  std::string id;
  GenerationRequest request;
  EventCallback callback;
  uint64_t arrival = 0;
  std::optional<int64_t> rank;  // priority and the step at which it was queued, as the scheduler weighs them; then fixed
  double submitted = 0;  // NowSeconds
  std::string attention;  // its policy, an AttentionSpec's text
  std::vector<std::string> branches;  // [n] instead of it, one a sequence; or none
  SamplerParams sampler;
  std::vector<int32_t> stop_ids;         // stop_token_ids and, unless ignored, the model's eos; ascending
  int64_t dense_length = 0;              // positions below are prefill
  int64_t output_begin = 0;              // tokens[output_begin …] are outputs
  int64_t max_output = 0;                // tokens of a sequence, context and forced tokens considered
  int64_t capacity = 0;                  // > 0: of an evicting policy, which keeps no more tokens of a sequence
  bool counts_inside = false;            // its positions are those in what it keeps
  std::optional<uint64_t> random_cache;  // the first dense_length tokens' cache is seeded noise
  bool spawned = false;                  // sequences 1 … n − 1 exist
  int preemptions = 0;
  std::vector<std::unique_ptr<Sequence>> sequences;
  int unfinished = 0;
  // Prompt log-probabilities collected so far; [0] is the absent first.
  std::vector<std::optional<TokenLogprobs>> prompt_logprobs;
  bool prompt_logprobs_sent = false;

  // The most tokens one sequence can have in the cache: its last token is never fed.
  int64_t max_cached() const { return cached(output_begin + max_output - 1); }
  // Of a sequence's first `tokens`, how many are in the cache.
  int64_t cached(int64_t tokens) const { return capacity > 0 ? std::min(tokens, capacity) : tokens; }
};

inline int64_t Sequence::output_tokens() const { return static_cast<int64_t>(tokens.size()) - request->output_begin; }
inline const std::string& Sequence::policy() const {
  return request->branches.empty() ? request->attention : request->branches[static_cast<size_t>(index)];
}

// Lower first: rank, then priority, then arrival, then index. Of requests that have been queued.
struct RunsBefore {
  bool operator()(const Sequence* a, const Sequence* b) const {
    if (a->request->rank != b->request->rank) return *a->request->rank < *b->request->rank;
    if (a->request->request.priority != b->request->request.priority) {
      return a->request->request.priority < b->request->request.priority;
    }
    if (a->request->arrival != b->request->arrival) return a->request->arrival < b->request->arrival;
    return a->index < b->index;
  }
};

}  // namespace quire

// What a client asks of the engine, and what it gets back. Field names and meanings follow SERVING.md, which the
// gRPC messages mirror.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/base/status.h"
#include "core/model/decoder.h"
#include "kernels/selection/policy.h"

namespace quire {

struct SamplingParams {
  float temperature = 1.0f;  // 0: greedy
  int top_k = 0;             // 0 or −1: off
  float top_p = 1.0f;        // (0, 1]
  float min_p = 0.0f;        // [0, 1]
  std::optional<uint64_t> seed;  // absent: the engine draws one and reports nothing else differently
  int n = 1;                 // sequences per prompt, by forking after prefill
  // Penalties as in vLLM: repetition over prompt and output, presence and frequency over output only.
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  std::map<int32_t, float> logit_bias;  // added to logits, [−100, 100]
};

struct StoppingParams {
  int max_tokens = 16;
  int min_tokens = 0;  // no eos, stop id or stop string ends it before
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
  bool include_stop = false;  // keep the matched stop string (or id) in the output
};

struct GenerationRequest {
  std::string request_id;        // empty: the engine makes one; a duplicate in flight is ALREADY_EXISTS
  std::vector<int32_t> prompt;   // token ids, not empty
  SamplingParams sampling;
  StoppingParams stopping;
  // ≥ 0: log-probability of each chosen token and of that many best ones; −1: none. Of the model's own distribution:
  // the raw logits, before bias, penalties and temperature.
  int logprobs = -1;
  int prompt_logprobs = -1;      // the same for every prompt token but the first
  // Absent: the engine's default. Of a policy that the engine knows, options that are left out are the engine's.
  std::optional<AttentionSpec> attention;
  int priority = 0;              // lower first; 256 steps of waiting make up for one
  // Teacher forcing: these tokens are taken instead of sampled ones, each as a decode step with the request's own policy,
  // logprobs reported as for sampled ones. Ends after the last. Used by evaluation.
  std::vector<int32_t> forced;
  // Evaluation of many policies behind one prompt: sequence i of n goes on with branches[i] in place of `attention`, so
  // that the prompt is taken in once for all. Empty, or n of them, that remember a prompt alike (policy.h) and keep all
  // of it. `forced` holds for each.
  std::vector<AttentionSpec> branches;
  // An output that another engine began (one that was lost): `tokens` were drawn and reported for sequence `sequence` of
  // this request. They are recomputed as those of a preempted sequence are, not reported again, and the next event goes on
  // behind them, ids and text; in batch-invariant mode with the ids that the lost engine would have drawn. Needs a seed
  // unless greedy, and n = 1. `tokens` may be empty: then only the number that keys the draws is another.
  struct Resume {
    int sequence = 0;  // events carry it too
    std::vector<int32_t> tokens;
  };
  std::optional<Resume> resume;
};

enum class FinishReason { kUnspecified = 0, kStop = 1, kLength = 2, kAborted = 3 };
const char* FinishReasonName(FinishReason reason);  // "stop", "length", "aborted", ""

struct TokenLogprob {
  int32_t id = 0;
  float logprob = 0;
};

struct TokenLogprobs {
  TokenLogprob chosen;
  std::vector<TokenLogprob> top;  // by descending logprob
};

struct RequestTimings {
  double queue_s = 0, prefill_s = 0, decode_s = 0, ttft_s = 0;
};

// One piece of one sequence's output. Text is held back at UTF-8 borders and while a stop string may be starting.
struct TokenEvent {
  std::string request_id;
  int sequence = 0;                   // 0 … n − 1
  int index = 0;                      // output tokens of the sequence before this event
  std::vector<int32_t> token_ids;     // new
  std::string text;                   // new; empty without a tokenizer
  std::vector<TokenLogprobs> logprobs;         // one per new id when asked for
  std::vector<std::optional<TokenLogprobs>> prompt_logprobs;  // in the first event of sequence 0; first entry absent
  bool finished = false;
  FinishReason reason = FinishReason::kUnspecified;
  std::string matched_stop;           // stop string
  std::optional<int32_t> matched_stop_id;
  // Valid when finished:
  int prompt_tokens = 0, completion_tokens = 0;  // completion: the ids of all events; a stop id left out doesn't count
  int preemptions = 0;
  // Of the sequence; rows that it recomputes after a preemption are not counted again, so the sums don't depend on who
  // else was there.
  AttentionReads attention;
  RequestTimings timings;
  Status status;  // not OK when the request failed after it was accepted
};

// Called from the thread that runs Engine::Step, in order per sequence, when the step's books are closed: a request whose
// last event comes is no longer counted by Stats, and its id is free. Must not call the engine but Submit, Cancel and Stats.
using EventCallback = std::function<void(const TokenEvent&)>;

}  // namespace quire

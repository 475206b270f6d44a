// Sampling: logits of a row → one token, the same on every rank.
//
// Order of operations, as vLLM documents it: stop ids masked until min_tokens, logit bias, penalties (repetition, then
// frequency and presence), [temperature 0: the best token], temperature, min_p, top_k, top_p, draw. Log-probabilities
// reported to the client are of the raw logits, before any of these (as vLLM v1's default).
//
// All filters keep a prefix of the tokens ordered by descending logit (ties: lower id first), so a draw needs only the
// best candidates and the log-sum-exp of the row: what ranks can exchange. DrawFromCandidates says when it needs more.
// Here is what a draw is; sampler.h runs the draws of a step.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/engine/request.h"
#include "kernels/logit_edit.h"
#include "parallel/shard_plan.h"

namespace quire {

// Below this a temperature means greedy (as vLLM), for logits divided by it may overflow.
inline constexpr float kGreedyTemperature = 1e-5f;

// What a rank must know to draw the tokens of one sequence. Plain data; travels in the StepPlan.
struct SamplerParams {
  float temperature = 1.0f;
  int32_t top_k = 0;
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  uint64_t seed = 0;
  int32_t logprobs = -1;
  int32_t min_tokens = 0;
  std::vector<std::pair<int32_t, float>> logit_bias = {};  // by ascending id
  std::vector<int32_t> masked_ids = {};                    // not drawn before min_tokens

  bool greedy() const { return temperature < kGreedyTemperature; }
  bool has_penalties() const {
    return repetition_penalty != 1.0f || presence_penalty != 0.0f || frequency_penalty != 0.0f;
  }
  bool edits(int64_t output_tokens) const {
    return has_penalties() || !logit_bias.empty() || (output_tokens < min_tokens && !masked_ids.empty());
  }
  bool operator==(const SamplerParams&) const = default;
};

// The tokens that penalties count. Kept only for sequences that have penalties.
class TokenHistory {
 public:
  void Clear() {
    seen_.clear();
    place_.clear();
  }
  void AddPrompt(int32_t id) { At(id); }
  void AddOutput(int32_t id) { ++At(id).output_count; }

  struct Seen {
    int32_t id = 0;
    int32_t output_count = 0;  // 0: only in the prompt
  };
  // Each token once, in the order of first sight: one run through memory a step.
  const std::vector<Seen>& seen() const { return seen_; }

 private:
  Seen& At(int32_t id) {
    const auto [it, added] = place_.try_emplace(id, seen_.size());
    if (added) seen_.push_back({id, 0});
    return seen_[it->second];
  }
  std::vector<Seen> seen_;
  std::unordered_map<int32_t, size_t> place_;  // id → index
};

// Appends what mask, bias and penalties do to a row's logits of `slice` of the vocabulary, no id twice.
void AppendEdits(const SamplerParams& params, const TokenHistory& history, int64_t output_tokens, Range slice,
                 std::vector<LogitEdit>* edits);

// The best candidates of a row whose logits were divided by the temperature.
struct Candidates {
  std::span<const float> values;  // descending
  float lse = 0;                  // log Σ exp over the whole row
  bool complete = false;          // there are no other tokens
};

// Index of the candidate drawn for the uniform number u in [0, 1); absent when the choice depends on tokens that
// are not among the candidates. With complete candidates there always is one.
std::optional<int> DrawFromCandidates(const Candidates& candidates, const SamplerParams& params, double u);

// One token wanted.
struct SampleJob {
  int32_t logit_row = 0;                  // row of `logits`
  const SamplerParams* params = nullptr;  // not null
  const TokenHistory* history = nullptr;  // not null
  int32_t sequence = 0;                   // of its request
  int64_t position = 0;                   // that the token will have
  int64_t output_tokens = 0;              // drawn before it
  int32_t forced = -1;                    // ≥ 0: this token instead of a drawn one
};
struct SampledToken {
  int32_t id = 0;
  bool finite = true;                     // false: the row's best logit is NaN or infinite; id means nothing
  std::optional<TokenLogprobs> logprobs;  // when params->logprobs ≥ 0
};

// Log-probabilities of a given token, for prompts.
struct ScoreJob {
  int32_t logit_row = 0;
  int32_t token = 0;
  int32_t top = 0;  // best tokens wanted
};

}  // namespace quire

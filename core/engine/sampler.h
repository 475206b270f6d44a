// Sampler: the draws and log-probabilities of one step, from the logits of this rank's slice of the vocabulary to the
// same tokens on every rank.
//
// Each rank takes the best candidates of its slice with the slice's log-sum-exp; one all-gather makes them known to
// all, and all merge them (by descending value, ties to the lower id) and draw alike, for the generator's numbers are
// functions of (seed, sequence, position). Exact for greedy rows and for top_k ≤ 64; a draw that needs more candidates
// (a flat distribution under top_p) gathers more, again and again until it is settled: whether it does follows from
// gathered values alone, so that all ranks go on together. Log-probabilities are exact: the log-sum-exp of the ranks'
// own ones, and the raw logit of each candidate travels with it.
//
// With one rank nothing travels and the rest is the same. local_candidates.h finds what a rank adds, on a GPU there.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/base/context.h"
#include "core/base/status.h"
#include "core/engine/local_candidates.h"
#include "core/engine/request.h"
#include "core/engine/sampling.h"
#include "parallel/communicator.h"
#include "parallel/shard_plan.h"

namespace quire {

struct SamplerOptions {
  int64_t vocab = 0;               // of the model
  int max_rows = 0;                // of logits in one step
  int max_jobs = 0;                // draws in one step
  std::vector<Range> slices = {};  // the vocabulary's, one a rank, in order; empty: one rank has it all
  Communicator* comm = nullptr;    // not owned; null: alone
};

class Sampler {
 public:
  static Result<Sampler> Create(const Context& ctx, SamplerOptions options);
  // Of this rank, whose slice has `local_vocab` tokens.
  static size_t ScratchBytes(const Context& ctx, int64_t local_vocab, int max_rows, int max_jobs) {
    return LocalCandidates::ScratchBytes(ctx, local_vocab, max_rows, max_jobs);
  }

  // On a GPU: enqueues what Run needs of the same arguments on the host, and so before Synchronize; nothing on the CPU.
  Status Fetch(const float* logits, int rows, std::span<const SampleJob> jobs, std::span<const ScoreJob> score_jobs);

  // logits: [rows][local vocabulary], not changed. tokens and scores are given one entry per job. A collective when
  // there are several ranks: jobs are the same on all. sums: numbers of this rank that become the sums over ranks, in
  // the same all-gather (same count everywhere). An error is the communicator's, or INTERNAL when ranks drew different
  // tokens before: then nothing they have in common is left.
  Status Run(const float* logits, int rows, std::span<const SampleJob> jobs, std::span<const ScoreJob> score_jobs,
             std::vector<SampledToken>* tokens, std::vector<TokenLogprobs>* scores, std::span<int64_t> sums = {});

  const LocalCandidates& local() const { return local_; }

 private:
  // Candidates of some rows, of the whole vocabulary. ids ascend among equal values.
  struct Lists {
    int rows = 0;
    int k = 0;  // of the whole vocabulary
    bool with_raw = false;
    std::vector<float> lse;     // [rows]
    std::vector<float> values;  // [rows][k]
    std::vector<int32_t> ids;   // [rows][k]
    std::vector<float> raw;     // [rows][k] the candidates' raw logits, when with_raw
    void Resize(int new_rows, int new_k, bool raw_too);
    size_t at(int row) const { return static_cast<size_t>(row) * static_cast<size_t>(k); }
  };
  explicit Sampler(LocalCandidates local) : local_(std::move(local)) {}
  int ranks() const { return static_cast<int>(options_.slices.size()); }
  const Range& mine() const { return options_.slices[static_cast<size_t>(rank_)]; }
  // What the jobs ask for → wants_ and work_of_.
  void Decide(int rows, std::span<const SampleJob> jobs, std::span<const ScoreJob> score_jobs);

  // The message: this rank appends, the gathered ones are merged in the same order. A list has k entries or, if that is
  // fewer, as many as the widest slice has tokens; where this rank's has fewer it is filled up.
  void AppendList(const LocalCandidates::List& list, int k, bool with_raw);
  void MergeList(int k, bool with_raw, Lists* lists, int row);
  float TakeKnown(int32_t token);
  Status Exchange();

  Status DrawAll(std::span<const SampleJob> jobs, std::vector<SampledToken>* tokens, std::vector<float>* chosen_raw);
  TokenLogprobs LogprobsOf(int row, int32_t token, float raw, int top) const;

  bool on_gpu_ = false;
  SamplerOptions options_;
  int rank_ = 0;
  int64_t widest_ = 0;  // slice
  LocalCandidates local_;
  CandidateWants wants_;      // of a step, as is the next
  std::vector<int> work_of_;  // [jobs] its edited and scaled row, or −1
  Lists raw_, drawn_;         // of the raw rows, and of the edited ones
  uint64_t history_ = 0xcbf29ce484222325u;  // a hash (FNV-1a) of every token drawn so far: the same on all ranks
  std::vector<uint32_t> send_, recv_;       // words of one message, and of all ranks'
  std::vector<size_t> read_;                // [ranks] next word of each rank's message
};

}  // namespace quire

// How good a selection is, against the attention that dense would have paid: recall and missing mass of every selection
// that an engine makes, per layer and KV head. Recall is the softmax mass of what was chosen over the mass of the best
// pages of the same number; beside it what as many random pages and the latest pages would have held. Missing mass is
// what dense attention would have given to tokens that were left out, beside quest's bound of it (ALGORITHMS.md,
// missing-mass bound): at most U / (U + S), U the sum over pages left out of n·exp(scale·bound), S = exp(lse of the rest).
#pragma once

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "core/base/context.h"
#include "core/base/thread_pool.h"
#include "core/model/decoder.h"
#include "core/model/decoder_scratch.h"

namespace quire::launch {

// Sums over (step, sequence) of one (layer, KV head). Mass: shares of softmax, a query group's mean, so in [0, 1].
struct SelectionSums {
  int64_t steps = 0;
  double chosen = 0, best = 0, random = 0, recent = 0;  // mass of as many pages each
  double recall = 0, random_recall = 0, recent_recall = 0;  // over best, step by step
  double missing = 0, bound = 0;  // of query heads; bound only where there is metadata
  int64_t bounds = 0;             // (step, query head) pairs that have one
  int64_t broken_bounds = 0;      // missing mass above its bound by more than rounding: must stay 0
  void Add(const SelectionSums& other);
};

// Give it to Engine::set_selection_observer; sees the KV heads of rank 0. Not thread safe.
class RecallRecorder : public SelectionObserver {
 public:
  // scale, softcap (0: none): of the model's attention (ModelConfig). threads: for the dense attention that it computes.
  RecallRecorder(float scale, float softcap, int threads, uint64_t seed)
      : scale_(scale), softcap_(softcap), pool_(threads), seed_(seed) {}

  void OnSelect(const SelectParams& params, const SelectionView& selection) override;
  void Clear() { sums_.clear(); }
  // By (layer, KV head), those that selected.
  const std::map<std::pair<int, int>, SelectionSums>& sums() const { return sums_; }
  SelectionSums Total() const;
  const Status& status() const { return status_; }  // RESOURCE_EXHAUSTED when the workspace could not be had

 private:
  void AddStep(const SelectParams& params, const SelectionView& selection, int row, int kv_head, int mass_pages);
  // Of one query head: the bound of its missing mass, given the log-sum-exp of what was read.
  double Bound(const SelectParams& params, const float* q, int row, int kv_head, const std::vector<bool>& read,
               float lse) const;

  float scale_, softcap_;
  ThreadPool pool_;
  uint64_t seed_;
  Status status_;
  std::map<std::pair<int, int>, SelectionSums> sums_;
  std::vector<float> out_, mass_, lse_, read_lse_;
  GrowBuffer workspace_;
};

}  // namespace quire::launch

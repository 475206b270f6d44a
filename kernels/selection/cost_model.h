// What a decode step of attention costs for one sequence and KV head, dense and by quest, from four constants a kind of
// device that were measured once, and the length from which on quest is the faster. With n tokens in the cache, t bytes of K and V a
// token and KV head, m bytes of min and max a page of S tokens, and B(n) = max(token_budget, budget_share · n):
//
//   dense(n)  = n · t · dense_byte
//   sparse(n) = fixed + n/S · m · select_byte + B(n) · t · sparse_byte
//   crossover = the shortest n > token_budget with sparse(n') < dense(n') for all n' ≥ n
//
// Both are straight lines beyond the budget, so the crossover is a division. Sequences, KV heads and threads multiply
// both sides alike and don't count; what does is how the four constants compare, and of the shape the page size, and
// t against `fixed`. Nothing here is measured at run time: the switch must be the same on all ranks, after a
// preemption and on another machine with the same kind of device. `quire bench crossover` measures the constants, and says how far off they are.
#pragma once

#include <cstdint>
#include <limits>

#include "kernels/selection/policy.h"

namespace quire {

// In seconds, of one KV head's share of a step.
struct AttentionCosts {
  double dense_byte = 0;   // of K and V that dense attention reads
  double sparse_byte = 0;  // of K and V in listed pages
  double select_byte = 0;  // of page metadata that is scored; the search for the largest scores is in it
  double fixed = 0;        // a list, however short: what a sparse step takes more than a dense one of no pages
};

// Both of 32 query and 8 KV heads of 128 in bf16, page 16.
// CPU: the medians of what nine runs of `quire bench crossover --q-heads 32 --kv-heads 8 --head-dim 128 --threads 2` fitted, on
// two idle processors of an AMD EPYC (Zen 4, AVX-512) that read 33 GB/s, 2026-11-28: 33.2 to 38.6, 40.4 to 45.1, 33.3 to 37.5 ps
// and 0 to 4.5 µs.
inline constexpr AttentionCosts kCpuCosts = {
    .dense_byte = 35.4e-12, .sparse_byte = 43.2e-12, .select_byte = 34.9e-12, .fixed = 2.7e-6};
// GPU: an H200, fitted to the times in tests/gpu_reports/h200.json by tests/gpu_reports/costs.py, which they meet within 7 % in the
// mean. There a call costs some 20 µs before its bytes, which lists share; `fixed` is of 64 lists, a batch of eight.
inline constexpr AttentionCosts kGpuCosts = {
    .dense_byte = 0.244e-12, .sparse_byte = 0.263e-12, .select_byte = 0.294e-12, .fixed = 0.156e-6};

inline constexpr const AttentionCosts& MeasuredCosts(DeviceKind device) {
  return device == DeviceKind::kCpu ? kCpuCosts : kGpuCosts;
}

class AttentionCostModel {
 public:
  static constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

  AttentionCostModel(const AttentionCosts& costs, const PolicyShape& shape, int64_t token_budget, double budget_share)
      : costs_(costs), shape_(shape), token_budget_(token_budget), budget_share_(budget_share) {}

  // Seconds of a step at n tokens, the current one included; Sparse is meant for n beyond the budget.
  double Dense(int64_t n) const;
  double Sparse(int64_t n) const;
  // kNever where reading the metadata costs as much as it saves, or the budget grows too fast.
  int64_t Crossover() const;

 private:
  double DenseSlope() const;   // seconds a token
  double SelectSlope() const;
  double ReadSlope() const;  // of a token of the budget

  AttentionCosts costs_;
  PolicyShape shape_;
  int64_t token_budget_;
  double budget_share_;
};

}  // namespace quire

// What ranks that share KV heads send each other so that all of them choose alike: the queries of a head's whole group,
// and the attention mass that its group has paid. Every rank of the model makes the same calls in the same order; one
// without heads sends nothing and keeps nothing.
#pragma once

#include <cstdint>
#include <vector>

#include "core/base/context.h"
#include "core/base/status.h"
#include "core/model/decoder_scratch.h"
#include "core/model/model_config.h"
#include "kernels/selection/policy.h"
#include "parallel/communicator.h"
#include "parallel/shard_plan.h"

namespace quire {

class DecoderReplicas {
 public:
  // comm outlives it.
  static Result<DecoderReplicas> Create(const Context& ctx, const ModelConfig& config, const ShardPlan& plan,
                                        Communicator* comm);

  // False while every KV head has one rank: then the calls do nothing. Otherwise no rank has more than one KV head.
  bool any() const { return !plans_.empty(); }
  // params' queries, of its rows and this rank's heads, become those of the KV head's whole group.
  Status GatherQueries(SelectParams* params);
  // mass [floats], of this rank's KV head, becomes the sum over the ranks that hold it. floats are the same on all
  // ranks; mass may be null on one without heads.
  Status SumMass(float* mass, int64_t floats);

  size_t scratch_bytes() const { return send_.size() + all_.size() + group_.size(); }

 private:
  const ShardPlan& mine() const { return plans_[static_cast<size_t>(rank_)]; }
  int first() const { return rank_ - mine().replica_index; }  // of the ranks that hold this one's KV head, neighbours

  Context ctx_;
  int head_dim_ = 0;
  int rank_ = 0;
  Communicator* comm_ = nullptr;
  std::vector<ShardPlan> plans_;  // of all ranks; empty: see any()
  std::vector<int64_t> counts_;   // [ranks] floats that each sends
  GrowBuffer send_, all_;
  GrowBuffer group_;  // [rows][the group's heads][head_dim]
};

}  // namespace quire

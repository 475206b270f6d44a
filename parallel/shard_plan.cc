#include "parallel/shard_plan.h"

#include <algorithm>
#include <string>

namespace quire {
namespace {

// Part `index` of `count` units dealt to `parts`: as even as can be, the first parts get one more.
Range Deal(int64_t count, int64_t parts, int64_t index) {
  const int64_t base = count / parts, extra = count % parts;
  const int64_t begin = index * base + std::min(index, extra);
  return {begin, begin + base + (index < extra ? 1 : 0)};
}

// Which part `unit` falls into when Deal hands out `count` units to `parts`.
int64_t PartOf(int64_t count, int64_t parts, int64_t unit) {
  const int64_t base = count / parts, extra = count % parts;
  const int64_t in_longer = extra * (base + 1);  // units of the first parts, which have one more
  return unit < in_longer ? unit / (base + 1) : extra + (unit - in_longer) / base;
}

Status CheckNumbers(const ModelNumbers& n, int tp, int rank) {
  if (n.kv_heads < 1 || n.q_heads < n.kv_heads || n.q_heads % n.kv_heads != 0) {
    return InvalidArgument(std::to_string(n.q_heads) + " query heads can't share " + std::to_string(n.kv_heads) +
                           " KV heads; the first must be a positive multiple of the second");
  }
  if (n.block < 1 || n.ffn < 1 || n.vocab < 1) {
    return InvalidArgument("ffn " + std::to_string(n.ffn) + ", vocabulary " + std::to_string(n.vocab) +
                           " and weight block " + std::to_string(n.block) + " must all be at least 1");
  }
  if (tp < 1 || tp > kMostRanks) {
    return InvalidArgument("tensor parallel size " + std::to_string(tp) + " is outside [1, " +
                           std::to_string(kMostRanks) + "]; use another number of ranks");
  }
  if (rank < 0 || rank >= tp) {
    return InvalidArgument("rank " + std::to_string(rank) + " is outside [0, " + std::to_string(tp) + ")");
  }
  return OkStatus();
}

}  // namespace

Result<ShardPlan> ShardPlan::Create(const ModelNumbers& numbers, int tp, int rank) {
  RETURN_IF_ERROR(CheckNumbers(numbers, tp, rank));
  ShardPlan plan;
  plan.tp = tp;
  plan.rank = rank;
  const int64_t group = numbers.q_heads / numbers.kv_heads;
  if (tp <= numbers.kv_heads) {
    plan.kv_heads = Deal(numbers.kv_heads, tp, rank);
    plan.q_heads = {plan.kv_heads.begin * group, plan.kv_heads.end * group};
  } else if (rank >= numbers.q_heads) {
    plan.kv_heads = {numbers.kv_heads, numbers.kv_heads};
    plan.q_heads = {numbers.q_heads, numbers.q_heads};
    plan.replicas = 0;
  } else {
    // Ranks are dealt to KV heads, then each head's query group to its ranks. There are no more of them than query
    // heads, so that no KV head has more ranks than queries and each of them has at least one query head.
    const int holders = std::min(tp, numbers.q_heads);
    const int64_t head = PartOf(holders, numbers.kv_heads, rank);
    const Range ranks = Deal(holders, numbers.kv_heads, head);
    plan.replicas = static_cast<int>(ranks.size());
    plan.replica_index = static_cast<int>(rank - ranks.begin);
    plan.kv_heads = {head, head + 1};
    const Range queries = Deal(group, plan.replicas, plan.replica_index);
    plan.q_heads = {head * group + queries.begin, head * group + queries.end};
  }
  // Whole blocks of the weight type; a last block that is cut short goes with the last blocks. With fewer blocks than
  // ranks the last ranks have no columns.
  const Range blocks = Deal((numbers.ffn + numbers.block - 1) / numbers.block, tp, rank);
  plan.ffn = {std::min(blocks.begin * numbers.block, numbers.ffn), std::min(blocks.end * numbers.block, numbers.ffn)};
  plan.vocab = Deal(numbers.vocab, tp, rank);
  return plan;
}

}  // namespace quire

// ShardPlan: pure arithmetic, (model numbers, tp, rank) → this rank's slices. While tp ≤ KV heads, whole KV heads are
// dealt out with their query groups, unevenly where they must be (the first ranks get one more). When tp > KV heads, a
// KV head is replicated and its query group split over the replicas.
#pragma once

#include <cstdint>

#include "core/base/status.h"

namespace quire {

struct Range {
  int64_t begin = 0, end = 0;  // half-open
  int64_t size() const { return end - begin; }
  bool operator==(const Range&) const = default;
};

struct ModelNumbers {
  int q_heads = 0, kv_heads = 0;
  int64_t ffn = 0, vocab = 0;
  int64_t block = 1;  // granularity of FFN columns: the weight type's block size
};

struct ShardPlan {
  int tp = 1, rank = 0;
  Range q_heads;     // global query heads of this rank
  Range kv_heads;    // global KV heads whose cache this rank holds
  Range ffn;         // columns of gate and up, rows' inputs of down
  Range vocab;       // rows of the embedding and the head
  int replicas = 1;       // ranks that hold this rank's KV head (1 while tp ≤ KV heads)
  int replica_index = 0;  // this rank's place among them

  // INVALID_ARGUMENT when tp < 1, rank outside [0, tp), tp > query heads, or query heads not a multiple of KV heads.
  static Result<ShardPlan> Create(const ModelNumbers& numbers, int tp, int rank);
};

}  // namespace quire

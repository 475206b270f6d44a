// ShardPlan: pure arithmetic, (model numbers, tp, rank) → this rank's slices. While tp ≤ KV heads, whole KV heads are
// dealt out with their query groups, unevenly where they must be (the first ranks get one more). When tp > KV heads, a
// KV head is replicated and its query group split over the replicas. When tp > query heads, each of the first ranks has
// one, and the last have none: they hold no cache, but their parts of the feed-forward columns and of the vocabulary.
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

inline constexpr int kMostRanks = 4096;

struct ShardPlan {
  int tp = 1, rank = 0;
  // Ranges of ranks beyond what there is to deal out are empty, at its end; rank 0's never are.
  Range q_heads;     // global query heads of this rank
  Range kv_heads;    // global KV heads whose cache this rank holds; empty exactly where q_heads is
  Range ffn;         // columns of gate and up, rows' inputs of down
  Range vocab;       // rows of the embedding and the head
  int replicas = 1;  // ranks that hold this rank's KV head (1 while tp ≤ KV heads, 0 on a rank without heads)
  int replica_index = 0;  // this rank's place among them

  bool has_heads() const { return kv_heads.size() > 0; }

  // INVALID_ARGUMENT when tp is outside [1, kMostRanks], rank outside [0, tp), or query heads no multiple of KV heads.
  static Result<ShardPlan> Create(const ModelNumbers& numbers, int tp, int rank);
};

}  // namespace quire

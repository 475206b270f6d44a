// The SlotMaps of the evicting sequences in a rank's slots of the step plan, by layer and KV head: which position's
// token lies where in the pages that a sequence keeps for good, and what weight it has. As attention history, they are
// made at the start for every slot, and counted in the engine's memory. A sequence begins with an empty map, and one
// that is recomputed makes it anew from the same rows in the same order.
//
// On a GPU they lie in its memory, and what is done to them here is enqueued on the context's stream.
//
// Not thread safe.
#pragma once

#include <cstdint>
#include <vector>

#include "core/base/buffer.h"
#include "core/base/context.h"
#include "core/base/status.h"
#include "kernels/selection/policy.h"
#include "kvstore/cache_config.h"

namespace quire {

class SlotMaps {
 public:
  // capacity: the most tokens that a policy with a map keeps; 0: there is none.
  static Result<SlotMaps> Create(const Context& ctx, const CacheConfig& cache, int64_t capacity, int slots);
  // What Create takes.
  static size_t Bytes(const CacheConfig& cache, int64_t capacity, int slots);

  // The slot begins a sequence of this policy; null, or one without a map: Of gives null.
  Status Start(int slot, const AttentionPolicy* policy);
  // [model layers]; null when the policy keeps none. Good until the next Start of the slot.
  SlotMap* Of(int slot);
  // `to` becomes a copy of `from`.
  Status Fork(int from, int to);

  // For benchmarks: as if the slot's sequence of `length` tokens had kept its first and its latest ones (evicting.h),
  // with weights that are seeded numbers in (0, 1). first_kv_head: the rank's first, so that values don't depend on the
  // number of ranks.
  Status FillRandom(int slot, int64_t length, uint64_t seed, int first_kv_head);

  size_t bytes() const { return memory_.size(); }

 private:
  // Gives the slot maps of so many slots each, those of all layers and heads side by side.
  void Place(int slot, int64_t capacity);

  Context ctx_;
  int64_t capacity_ = 0;
  int64_t heads_ = 0;                        // of all layers together
  std::vector<int> layer_heads_;             // [model layers] KV heads
  std::vector<std::vector<SlotMap>> slots_;  // [slots][model layers]; empty: none
  Buffer memory_;                            // [slots] positions [heads_][its capacity], then weights
};

}  // namespace quire

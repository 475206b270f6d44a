// What attention policies remember of the sequences in a rank's slots, by layer, KV head and logical page: the memory
// behind PageHistory. Every slot has room for the longest sequence, made at the start and counted in the engine's
// memory, so that no step can fail for want of it. A slot's history belongs to its sequence: it begins empty with
// it, and a sequence that is recomputed makes it anew from the same rows in the same order.
//
// On a GPU the floats lie in its memory, and what is done to them here is enqueued on the context's stream.
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

class AttentionHistory {
 public:
  // width: the most floats a page that a policy may keep (PageDataNeeds::history). max_length: of a sequence, in tokens.
  // Layers with a window have none, for policies don't choose there.
  static Result<AttentionHistory> Create(const Context& ctx, const CacheConfig& cache, int width, int slots,
                                         int64_t max_length);
  // What Create takes.
  static size_t Bytes(const CacheConfig& cache, int width, int slots, int64_t max_length);

  // The slot begins a sequence.
  Status Start(int slot);
  // The slot's history by model layer, with entries (new ones are 0) for the pages of `length` tokens; null when the policy
  // keeps none. A sequence has one policy, which lives as long. The pointer is good until the next call for the slot.
  PageHistory* Of(int slot, const AttentionPolicy* policy, int64_t length);
  // `to`, which has begun no sequence since Start, becomes a copy of `from`, to go on with this policy: the same, or one
  // that remembers alike (policy.h).
  Status Fork(int from, int to, const AttentionPolicy* policy);
  // The slot's sequence now has `length` tokens. (On a GPU later pages' entries become 0, whatever else the policy
  // would do.)
  Status Truncate(int slot, int64_t length);
  // For benchmarks: entries of the first `length` tokens' pages become seeded numbers in (0, 1); first_kv_head: the rank's
  // first, so that values don't depend on the number of ranks.
  Status FillRandom(int slot, const AttentionPolicy* policy, int64_t length, uint64_t seed, int first_kv_head);

  size_t bytes() const { return memory_.size(); }

 private:
  struct Layer {
    int kv_heads = 0;
    int64_t offset = 0;  // floats, within a slot
  };
  struct Slot {
    const AttentionPolicy* policy = nullptr;  // null: no history yet
    std::vector<PageHistory> layers;          // [model layers]
  };
  struct Shape {
    std::vector<Layer> layers;  // [model layers]; kv_heads 0: none is kept
    int64_t head_floats = 0;
    int64_t slot_floats = 0;
    static Shape Create(const CacheConfig& cache, int width, int64_t max_length);
  };

  PageHistory* Begin(Slot& slot, int index, const AttentionPolicy* policy);
  bool on_gpu() const { return ctx_.device.kind == DeviceKind::kCuda; }
  size_t slot_bytes() const { return static_cast<size_t>(shape_.slot_floats) * sizeof(float); }
  float* SlotValues(int slot) { return reinterpret_cast<float*>(memory_.data()) + slot * shape_.slot_floats; }

  Context ctx_;
  int page_size_ = 0;
  Shape shape_;
  std::vector<Slot> slots_;
  Buffer memory_;
};

}  // namespace quire

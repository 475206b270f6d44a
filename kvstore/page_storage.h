// PageStorage: one rank's memory behind the page ids: K, V and metadata of every cache group, each one Buffer over all
// of its layers. It knows no sequences: it executes CacheOps and hands out LayerPages to kernels.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "core/base/buffer.h"
#include "core/base/context.h"
#include "core/base/status.h"
#include "kernels/page_ops.h"
#include "kernels/page_table.h"
#include "kvstore/cache_config.h"
#include "kvstore/cache_ops.h"

namespace quire {

class PageStorage {
 public:
  // capacity: one per cache group. RESOURCE_EXHAUSTED when the memory can't be had.
  static Result<PageStorage> Create(CacheConfig config, std::vector<GroupCapacity> capacity, Device device = {});

  // The memory of one model layer, and the cache group that it belongs to. CHECK-fails for a layer of no cache group.
  LayerPages Layer(int layer) const;
  int CacheGroupOf(int layer) const;
  const PageFormat& format(int cache_group) const { return groups_[static_cast<size_t>(cache_group)].format; }

  // Runs the ops in order, on the memory's device; before any kernel of the step. CHECK-fails for ids outside the capacity.
  void Execute(const Context& ctx, const CacheOps& ops);

  // Bytes of all buffers: {K and V, metadata}.
  int64_t kv_bytes() const;
  int64_t metadata_bytes() const;

  // For benchmarks: fills the first `length` tokens of a sequence, given by its physical pages [ceil(length /
  // page_size)] and metadata groups [ceil(pages / 16)] (empty without metadata), with seeded values close to N(0, 1),
  // in all layers of the cache group, with the metadata that appending them would have left. Values depend on (seed,
  // layer, first_kv_head + head, logical page) alone, not on the ids nor the threads. Slots past the length become 0.
  // Errors are a GPU's.
  Status FillRandom(const Context& ctx, int cache_group, std::span<const int32_t> pages,
                  std::span<const int32_t> metadata_groups, int64_t length, uint64_t seed, int first_kv_head = 0);

 private:
  struct GroupMemory {
    PageFormat format;
    GroupCapacity capacity;
    Buffer k, v, meta, over, codes;  // [layer of the group][id]…, see kernels/page_table.h
  };

  PageStorage() = default;
  LayerPages LayerOf(const GroupMemory& memory, int index) const;
  LayersOfPages LayersOf(size_t cache_group) const;
  void CheckOp(const CacheOps& ops, const CacheOp& op) const;

  CacheConfig config_;
  std::vector<GroupMemory> groups_;                  // [cache group]
  std::vector<std::pair<int, int>> layer_to_group_;  // [model layer] → (cache group or −1, index in it)
  std::vector<PageOp> page_ops_;                     // of one Execute and cache group
};

}  // namespace quire

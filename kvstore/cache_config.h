// What a paged cache is made of: the kinds of cache a model has, what a page of each costs in bytes, and how many pages
// fit in so much memory. Pure arithmetic: the same numbers on every rank give the same plan.
#pragma once

#include <cstdint>
#include <vector>

#include "core/base/dtype.h"
#include "core/base/status.h"
#include "kernels/page_table.h"

namespace quire {

// Layers that share KV heads, widths, window and dtype, and so one page table: one cache group for Llama, two for
// Gemma.
struct CacheGroupConfig {
  std::vector<int> layers;  // indices in the model, ascending; each layer is in one cache group only
  int kv_heads = 1;         // local to this rank; 0 where it holds no heads: its pages are ids alone, of no bytes
  int k_dim = 64;
  int v_dim = 64;
  int window = 0;  // > 0: a query sees its own and the window − 1 earlier tokens; pages that fell out are freed
  DType dtype = DType::kBF16;
};

struct CacheConfig {
  std::vector<CacheGroupConfig> groups;
  int page_size = 16;
  bool metadata = true;  // keep min and max of K per page (PageDataNeeds::min_max of any policy in use)
  bool codes = false;    // and in 8 bits, too (PageDataNeeds::codes)
};

// INVALID_ARGUMENT for no groups, a group without layers, a layer twice, a negative window, a dtype that is not a
// floating one, or sizes that PageFormat refuses (but 0 KV heads).
Status ValidateCacheConfig(const CacheConfig& config);

// The format of one cache group of a valid config.
PageFormat FormatOf(const CacheConfig& config, int cache_group);

// Bytes of one page id (K and V in all layers of the cache group), and of one metadata group (0 without metadata).
int64_t PageBytes(const CacheConfig& config, int cache_group);
int64_t MetadataGroupBytes(const CacheConfig& config, int cache_group);

// How many ids of each kind a cache group has. Rank 0 takes the minimum over ranks before it makes the books.
struct GroupCapacity {
  int32_t pages = 0;
  int32_t metadata_groups = 0;  // 0 without metadata
  bool operator==(const GroupCapacity&) const = default;
};

// Metadata groups beside `pages` pages: one per 16 pages, plus one per sequence for its partly filled last group, plus
// one per sequence for the group that a window has half freed.
int32_t MetadataGroupsFor(const CacheConfig& config, int cache_group, int64_t pages, int max_sequences);

// Bytes that PageStorage takes for these capacities (one per cache group).
int64_t CacheBytes(const CacheConfig& config, const std::vector<GroupCapacity>& capacity);

// The most pages that fit in `bytes`, shared out so that `max_sequences` sequences reach the same length in every cache
// group: a windowed group gets no more than max_sequences windows (each with max_append tokens on top), the rest grows
// alike. RESOURCE_EXHAUSTED, with the bytes it would take, when not even one page a group fits. Of pages without bytes
// there are as many as ids can name.
Result<std::vector<GroupCapacity>> PlanCapacity(const CacheConfig& config, int64_t bytes, int max_sequences,
                                                int max_append);

// Capacities that hold exactly `sequences` sequences of `tokens` tokens each, nothing shared (benchmarks,
// --max-model-len).
std::vector<GroupCapacity> CapacityFor(const CacheConfig& config, int64_t tokens, int sequences, int max_append);

// The most pages a sequence holds at once in a cache group when it grows to `tokens` by at most max_append a step.
int64_t MaxLivePages(const CacheConfig& config, int cache_group, int64_t tokens, int max_append);
int64_t MaxLiveMetadataGroups(const CacheConfig& config, int cache_group, int64_t tokens, int max_append);

}  // namespace quire

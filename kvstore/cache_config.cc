#include "kvstore/cache_config.h"

#include <algorithm>
#include <set>
#include <string>

#include "core/base/check.h"

namespace quire {
namespace {

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

const CacheGroupConfig& GroupOf(const CacheConfig& config, int cache_group) {
  CHECK_GE(cache_group, 0);
  CHECK_LT(static_cast<size_t>(cache_group), config.groups.size());
  return config.groups[static_cast<size_t>(cache_group)];
}

// A group without KV heads keeps its books as the others do: kv_heads and the strides over heads are 0.
Result<PageFormat> MakeFormat(const CacheConfig& config, const CacheGroupConfig& group) {
  const int heads = group.kv_heads == 0 ? 1 : group.kv_heads;
  ASSIGN_OR_RETURN(PageFormat format,
                   PageFormat::Create(group.dtype, config.page_size, heads, group.k_dim, group.v_dim));
  if (group.kv_heads > 0) return format;
  format.kv_heads = 0;
  format.k_page_stride = format.v_page_stride = format.meta_group_stride = format.over_group_stride = 0;
  return format;
}

// Capacities when every group without a window has `pages` pages; monotone in `pages`.
std::vector<GroupCapacity> CapacityAt(const CacheConfig& config, int64_t pages, int max_sequences, int max_append) {
  std::vector<GroupCapacity> capacity(config.groups.size());
  for (size_t g = 0; g < capacity.size(); ++g) {
    const int group = static_cast<int>(g);
    int64_t n = pages;
    if (config.groups[g].window > 0) {
      n = std::min(n, max_sequences * MaxLivePages(config, group, INT32_MAX, max_append));
    }
    capacity[g].pages = static_cast<int32_t>(n);
    capacity[g].metadata_groups = MetadataGroupsFor(config, group, n, max_sequences);
  }
  return capacity;
}

}  // namespace

Status ValidateCacheConfig(const CacheConfig& config) {
  if (config.groups.empty()) return InvalidArgument("a cache without cache groups can't be made; list at least one");
  std::set<int> seen;
  for (const CacheGroupConfig& group : config.groups) {
    if (group.layers.empty()) return InvalidArgument("a cache group has no layers; leave it out");
    for (int layer : group.layers) {
      if (layer < 0) return InvalidArgument("layer " + std::to_string(layer) + " of a cache group is below 0");
      if (!seen.insert(layer).second) {
        return InvalidArgument("layer " + std::to_string(layer) +
                               " is in two places of the cache groups; list it once");
      }
    }
    if (group.window < 0) {
      return InvalidArgument("window " + std::to_string(group.window) + " is below 0; use 0 for no window");
    }
    if (group.dtype != DType::kF32 && group.dtype != DType::kBF16 && group.dtype != DType::kF16) {
      return InvalidArgument("a cache of " + std::string(DTypeName(group.dtype)) +
                             " is not supported; use float32, bfloat16 or float16");
    }
    RETURN_IF_ERROR(MakeFormat(config, group).status());
  }
  return OkStatus();
}

PageFormat FormatOf(const CacheConfig& config, int cache_group) {
  const Result<PageFormat> format = MakeFormat(config, GroupOf(config, cache_group));
  CHECK(format.ok());
  return *format;
}

int64_t PageBytes(const CacheConfig& config, int cache_group) {
  const PageFormat format = FormatOf(config, cache_group);
  const int64_t layers = static_cast<int64_t>(GroupOf(config, cache_group).layers.size());
  return layers * (format.k_page_stride + format.v_page_stride) * ElementSize(format.dtype);
}

int64_t MetadataGroupBytes(const CacheConfig& config, int cache_group) {
  if (!config.metadata) return 0;
  const PageFormat format = FormatOf(config, cache_group);
  const int64_t layers = static_cast<int64_t>(GroupOf(config, cache_group).layers.size());
  return layers * ((format.meta_group_stride + format.over_group_stride) * ElementSize(format.dtype) +
                   (config.codes ? format.meta_group_stride : 0));
}

int32_t MetadataGroupsFor(const CacheConfig& config, int cache_group, int64_t pages, int max_sequences) {
  if (!config.metadata) return 0;
  const int64_t slack = int64_t{max_sequences} * (GroupOf(config, cache_group).window > 0 ? 2 : 1);
  // A group has at least one page, and two sequences rarely share all pages of one but not the group itself.
  return static_cast<int32_t>(std::min(pages, CeilDiv(pages, kPagesPerGroup) + slack));
}

int64_t CacheBytes(const CacheConfig& config, const std::vector<GroupCapacity>& capacity) {
  CHECK_EQ(capacity.size(), config.groups.size());
  int64_t bytes = 0;
  for (size_t g = 0; g < capacity.size(); ++g) {
    bytes += capacity[g].pages * PageBytes(config, static_cast<int>(g));
    bytes += capacity[g].metadata_groups * MetadataGroupBytes(config, static_cast<int>(g));
  }
  return bytes;
}

int64_t MaxLivePages(const CacheConfig& config, int cache_group, int64_t tokens, int max_append) {
  const int64_t all = CeilDiv(tokens, config.page_size);
  const int window = GroupOf(config, cache_group).window;
  if (window == 0) return all;
  // Live are the pages from that of token length − window to that of token length + max_append − 1.
  return std::min(all, CeilDiv(int64_t{window} + max_append - 1, config.page_size) + 1);
}

int64_t MaxLiveMetadataGroups(const CacheConfig& config, int cache_group, int64_t tokens, int max_append) {
  if (!config.metadata) return 0;
  const int64_t group_tokens = int64_t{config.page_size} * kPagesPerGroup;
  const int64_t all = CeilDiv(tokens, group_tokens);
  const int window = GroupOf(config, cache_group).window;
  if (window == 0) return all;
  return std::min(all, CeilDiv(int64_t{window} + max_append - 1, group_tokens) + 1);
}

Result<std::vector<GroupCapacity>> PlanCapacity(const CacheConfig& config, int64_t bytes, int max_sequences,
                                                int max_append) {
  RETURN_IF_ERROR(ValidateCacheConfig(config));
  if (max_sequences < 1 || max_append < 1) {
    return InvalidArgument("a cache for " + std::to_string(max_sequences) + " sequences of " +
                           std::to_string(max_append) + " tokens a step can't be planned; both must be at least 1");
  }
  const int64_t least = CacheBytes(config, CapacityAt(config, 1, max_sequences, max_append));
  if (least > bytes) {
    return ResourceExhausted("one page of every cache group takes " + std::to_string(least) + " bytes, but only " +
                             std::to_string(bytes) + " are there for the cache; give it more memory");
  }
  int64_t page_bytes = INT64_MAX;
  for (size_t g = 0; g < config.groups.size(); ++g) {
    page_bytes = std::min(page_bytes, PageBytes(config, static_cast<int>(g)));
  }
  // Bisection: `low` fits, `high` doesn't (or is a number of pages that ids can't name).
  int64_t low = 1, high = page_bytes > 0 ? std::min<int64_t>(bytes / page_bytes + 1, INT32_MAX) : INT32_MAX;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (CacheBytes(config, CapacityAt(config, middle, max_sequences, max_append)) <= bytes ? low : high) = middle;
  }
  return CapacityAt(config, low, max_sequences, max_append);
}

std::vector<GroupCapacity> CapacityFor(const CacheConfig& config, int64_t tokens, int sequences, int max_append) {
  std::vector<GroupCapacity> capacity(config.groups.size());
  for (size_t g = 0; g < capacity.size(); ++g) {
    const int group = static_cast<int>(g);
    const int64_t pages = sequences * MaxLivePages(config, group, tokens, max_append);
    const int64_t groups = sequences * MaxLiveMetadataGroups(config, group, tokens, max_append);
    CHECK_LE(pages, INT32_MAX);
    capacity[g] = {static_cast<int32_t>(pages), static_cast<int32_t>(groups)};
  }
  return capacity;
}

}  // namespace quire

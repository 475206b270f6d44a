#include "kvstore/page_storage.h"

#include "core/base/check.h"
#include "core/base/dtype.h"
#include "kernels/page_ops.h"

namespace quire {
namespace {

std::byte* At(const Buffer& buffer, int64_t elements, DType dtype) {
  if (buffer.data() == nullptr) return nullptr;
  return const_cast<std::byte*>(buffer.data()) + elements * ElementSize(dtype);
}

PageOp OpOf(const CacheOp& op) {
  PageOp page;
  switch (op.kind) {
    case CacheOp::Kind::kZeroPage: page.kind = PageOp::Kind::kZeroPage; break;
    case CacheOp::Kind::kCopyPage: page.kind = PageOp::Kind::kCopyPage; break;
    case CacheOp::Kind::kResetGroup: page.kind = PageOp::Kind::kResetGroup; break;
    case CacheOp::Kind::kCopyGroup: page.kind = PageOp::Kind::kCopyGroup; break;
    case CacheOp::Kind::kRecomputeMetadata: page.kind = PageOp::Kind::kRecomputeMetadata; break;
  }
  page.from = op.from;
  page.to = op.to;
  page.columns = op.columns;
  page.slots = op.slots;
  page.pages_begin = op.pages_begin;
  return page;
}

}  // namespace

Result<PageStorage> PageStorage::Create(CacheConfig config, std::vector<GroupCapacity> capacity, Device device) {
  RETURN_IF_ERROR(ValidateCacheConfig(config));
  if (capacity.size() != config.groups.size()) {
    return InvalidArgument(std::to_string(capacity.size()) + " capacities were given for " +
                           std::to_string(config.groups.size()) + " cache groups; give one each");
  }
  PageStorage storage;
  for (size_t g = 0; g < capacity.size(); ++g) {
    GroupMemory memory;
    memory.format = FormatOf(config, static_cast<int>(g));
    memory.capacity = capacity[g];
    if (!config.metadata) memory.capacity.metadata_groups = 0;
    const std::vector<int>& layers = config.groups[g].layers;
    const size_t element_size = static_cast<size_t>(ElementSize(memory.format.dtype));
    const size_t pages = layers.size() * static_cast<size_t>(memory.capacity.pages);
    const size_t groups = layers.size() * static_cast<size_t>(memory.capacity.metadata_groups);
    const auto create = [&](size_t count, int64_t stride) {
      return Buffer::Create(count * static_cast<size_t>(stride) * element_size, device);
    };
    ASSIGN_OR_RETURN(memory.k, create(pages, memory.format.k_page_stride));
    ASSIGN_OR_RETURN(memory.v, create(pages, memory.format.v_page_stride));
    ASSIGN_OR_RETURN(memory.meta, create(groups, memory.format.meta_group_stride));
    ASSIGN_OR_RETURN(memory.over, create(groups, memory.format.over_group_stride));
    if (config.codes) {
      ASSIGN_OR_RETURN(memory.codes, Buffer::Create(groups * static_cast<size_t>(memory.format.meta_group_stride), device));
    }
    for (size_t i = 0; i < layers.size(); ++i) {
      const size_t layer = static_cast<size_t>(layers[i]);
      if (layer >= storage.layer_to_group_.size()) storage.layer_to_group_.resize(layer + 1, {-1, -1});
      storage.layer_to_group_[layer] = {static_cast<int>(g), static_cast<int>(i)};
    }
    storage.groups_.push_back(std::move(memory));
  }
  storage.config_ = std::move(config);
  return storage;
}

int PageStorage::CacheGroupOf(int layer) const {
  CHECK_GE(layer, 0);
  CHECK_LT(static_cast<size_t>(layer), layer_to_group_.size());
  const int group = layer_to_group_[static_cast<size_t>(layer)].first;
  CHECK_GE(group, 0);
  return group;
}

LayerPages PageStorage::Layer(int layer) const {
  const int group = CacheGroupOf(layer);
  return LayerOf(groups_[static_cast<size_t>(group)], layer_to_group_[static_cast<size_t>(layer)].second);
}

LayerPages PageStorage::LayerOf(const GroupMemory& memory, int index) const {
  const PageFormat& f = memory.format;
  const int64_t first_page = int64_t{index} * memory.capacity.pages;
  const int64_t first_group = int64_t{index} * memory.capacity.metadata_groups;
  LayerPages pages;
  pages.k = At(memory.k, first_page * f.k_page_stride, f.dtype);
  pages.v = At(memory.v, first_page * f.v_page_stride, f.dtype);
  pages.meta = At(memory.meta, first_group * f.meta_group_stride, f.dtype);
  pages.over = At(memory.over, first_group * f.over_group_stride, f.dtype);
  pages.codes = reinterpret_cast<uint8_t*>(At(memory.codes, first_group * f.meta_group_stride, DType::kU8));
  return pages;
}

LayersOfPages PageStorage::LayersOf(size_t cache_group) const {
  const GroupMemory& memory = groups_[cache_group];
  const PageFormat& f = memory.format;
  LayersOfPages layers;
  layers.first = LayerOf(memory, 0);
  layers.format = f;
  layers.layers = static_cast<int>(config_.groups[cache_group].layers.size());
  layers.k_layer_stride = memory.capacity.pages * f.k_page_stride;
  layers.v_layer_stride = memory.capacity.pages * f.v_page_stride;
  layers.meta_layer_stride = memory.capacity.metadata_groups * f.meta_group_stride;
  layers.over_layer_stride = memory.capacity.metadata_groups * f.over_group_stride;
  return layers;
}

void PageStorage::Execute(const Context& ctx, const CacheOps& ops) {
  // Cache groups don't meet.
  for (size_t g = 0; g < groups_.size(); ++g) {
    page_ops_.clear();
    for (const CacheOp& op : ops.ops) {
      if (g == 0) CheckOp(ops, op);
      if (op.cache_group == static_cast<int>(g)) page_ops_.push_back(OpOf(op));
    }
    if (groups_[g].format.kv_heads == 0) continue;  // ids without memory
    if (!page_ops_.empty()) RunPageOps(ctx, LayersOf(g), page_ops_, ops.pages);
  }
}

void PageStorage::CheckOp(const CacheOps& ops, const CacheOp& op) const {
  CHECK_GE(op.cache_group, 0);
  CHECK_LT(static_cast<size_t>(op.cache_group), groups_.size());
  const GroupCapacity& capacity = groups_[static_cast<size_t>(op.cache_group)].capacity;
  const bool is_page = op.kind == CacheOp::Kind::kZeroPage || op.kind == CacheOp::Kind::kCopyPage;
  const bool has_from = op.kind == CacheOp::Kind::kCopyPage || op.kind == CacheOp::Kind::kCopyGroup;
  const int32_t ids = is_page ? capacity.pages : capacity.metadata_groups;
  CHECK_GE(op.to, 0);
  CHECK_LT(op.to, ids);
  if (has_from) {
    CHECK_GE(op.from, 0);
    CHECK_LT(op.from, ids);
    CHECK_NE(op.from, op.to);
  }
  if (op.kind == CacheOp::Kind::kCopyGroup || op.kind == CacheOp::Kind::kRecomputeMetadata) {
    CHECK_GE(op.columns, 1);
    CHECK_LE(op.columns, kPagesPerGroup);
  }
  if (op.kind != CacheOp::Kind::kRecomputeMetadata) return;
  CHECK_GE(op.slots, 1);
  CHECK_LE(op.slots, config_.page_size);
  CHECK_GE(op.pages_begin, 0);
  CHECK_LE(static_cast<size_t>(op.pages_begin) + static_cast<size_t>(op.columns), ops.pages.size());
  for (int32_t i = 0; i < op.columns; ++i) {
    CHECK_LT(ops.pages[static_cast<size_t>(op.pages_begin + i)], capacity.pages);
  }
  CHECK_GE(ops.pages[static_cast<size_t>(op.pages_begin + op.columns - 1)], 0);
}

int64_t PageStorage::kv_bytes() const {
  int64_t bytes = 0;
  for (const GroupMemory& memory : groups_) bytes += static_cast<int64_t>(memory.k.size() + memory.v.size());
  return bytes;
}

int64_t PageStorage::metadata_bytes() const {
  int64_t bytes = 0;
  for (const GroupMemory& memory : groups_) {
    bytes += static_cast<int64_t>(memory.meta.size() + memory.over.size() + memory.codes.size());
  }
  return bytes;
}

}  // namespace quire

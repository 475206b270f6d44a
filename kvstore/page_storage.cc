#include "kvstore/page_storage.h"

#include <algorithm>

#include "core/base/check.h"
#include "core/base/dtype.h"
#include "kernels/kv_append.h"

namespace quire {
namespace {

std::byte* At(const Buffer& buffer, int64_t elements, DType dtype) {
  if (buffer.data() == nullptr) return nullptr;
  return const_cast<std::byte*>(buffer.data()) + elements * ElementSize(dtype);
}

// Sets a metadata group's min and max over all pages to those of its columns [0, columns).
template <typename T>
void OverFromColumns(const LayerPages& pages, const PageFormat& f, int32_t group, int columns) {
  for (int head = 0; head < f.kv_heads; ++head) {
    const T* meta = static_cast<const T*>(pages.meta) + group * f.meta_group_stride + head * f.meta_head_stride;
    T* over = static_cast<T*>(pages.over) + group * f.over_group_stride + head * f.over_head_stride;
    for (int which = 0; which < 2; ++which) {
      for (int c = 0; c < f.k_dim; ++c) {
        T best = meta[f.MetaOffset(which, c, 0)];
        for (int column = 1; column < columns; ++column) {
          const T value = meta[f.MetaOffset(which, c, column)];
          if (which == 0 ? ToFloat(value) < ToFloat(best) : ToFloat(value) > ToFloat(best)) best = value;
        }
        over[f.OverOffset(which, c)] = best;
      }
    }
  }
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
  return pages;
}

void PageStorage::Execute(const Context& ctx, const CacheOps& ops) {
  // Ops of one layer run in order; layers don't meet, so they run side by side. Recomputing metadata brings its
  // own parallelism, which doesn't nest, and so ends a run.
  size_t begin = 0;
  for (size_t i = 0; i < ops.ops.size(); ++i) {
    CheckOp(ops, ops.ops[i]);
    if (ops.ops[i].kind != CacheOp::Kind::kRecomputeMetadata) continue;
    RunOps(ctx, ops, begin, i);
    Recompute(ctx, ops, ops.ops[i]);
    begin = i + 1;
  }
  RunOps(ctx, ops, begin, ops.ops.size());
}

void PageStorage::RunOps(const Context& ctx, const CacheOps& ops, size_t begin, size_t end) {
  if (begin == end) return;
  ctx.pool->ParallelFor(static_cast<int64_t>(layer_to_group_.size()), [&](int64_t layer, int) {
    const auto [group, index] = layer_to_group_[static_cast<size_t>(layer)];
    if (group < 0) return;
    const GroupMemory& memory = groups_[static_cast<size_t>(group)];
    const LayerPages pages = LayerOf(memory, index);
    for (size_t i = begin; i < end; ++i) {
      const CacheOp& op = ops.ops[i];
      if (op.cache_group != group) continue;
      switch (op.kind) {
        case CacheOp::Kind::kZeroPage: ZeroPage(pages, memory.format, op.to); break;
        case CacheOp::Kind::kCopyPage: CopyPage(pages, memory.format, op.from, op.to); break;
        case CacheOp::Kind::kResetGroup: ResetGroup(pages, memory.format, op.to); break;
        case CacheOp::Kind::kCopyGroup: CopyGroup(pages, memory.format, op.from, op.to, op.columns); break;
        case CacheOp::Kind::kRecomputeMetadata: CHECK(false); break;
      }
    }
  });
}

void PageStorage::Recompute(const Context& ctx, const CacheOps& ops, const CacheOp& op) {
  const GroupMemory& memory = groups_[static_cast<size_t>(op.cache_group)];
  const int layers = static_cast<int>(config_.groups[static_cast<size_t>(op.cache_group)].layers.size());
  const int32_t* listed = ops.pages.data() + op.pages_begin;
  // Pages that a window has freed have no K to read, but their columns are still right: the last page stands in for
  // them, and what that does to the min and max over the group is set right from the columns.
  int32_t ids[kPagesPerGroup];
  std::transform(listed, listed + op.columns, ids, [&](int32_t id) { return id < 0 ? listed[op.columns - 1] : id; });
  const bool has_freed = !std::equal(ids, ids + op.columns, listed);
  for (int index = 0; index < layers; ++index) {
    MetadataRecomputeParams params;
    params.pages = LayerOf(memory, index);
    params.format = memory.format;
    params.group_id = op.to;
    params.group_pages = ids;
    params.column = op.columns - 1;
    params.slots = op.slots;
    RecomputeMetadata(ctx, params);
    if (!has_freed) continue;
    VisitFloatDType(memory.format.dtype,
                    [&]<typename T>(T) { OverFromColumns<T>(params.pages, memory.format, op.to, op.columns); });
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
  for (const GroupMemory& memory : groups_) bytes += static_cast<int64_t>(memory.meta.size() + memory.over.size());
  return bytes;
}

}  // namespace quire

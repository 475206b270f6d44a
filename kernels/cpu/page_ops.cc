// Page operations on the CPU: those of one layer run in order, layers don't meet and so run side by side.
#include "kernels/page_ops.h"

#include <algorithm>

#include "core/base/check.h"
#include "core/base/dtype.h"
#include "kernels/cpu/ops.h"
#include "kernels/kv_append.h"
#include "kernels/metadata_codes.h"

namespace quire::cpu {
namespace {

void* Behind(void* first, int64_t elements, DType dtype) {
  return first == nullptr ? nullptr : static_cast<std::byte*>(first) + elements * ElementSize(dtype);
}

LayerPages LayerOf(const LayersOfPages& l, int64_t layer) {
  const DType dtype = l.format.dtype;
  return {Behind(l.first.k, layer * l.k_layer_stride, dtype), Behind(l.first.v, layer * l.v_layer_stride, dtype),
          Behind(l.first.meta, layer * l.meta_layer_stride, dtype),
          Behind(l.first.over, layer * l.over_layer_stride, dtype),
          l.first.codes == nullptr ? nullptr : l.first.codes + layer * l.meta_layer_stride};
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

void Recompute(const Context& ctx, const LayerPages& pages, const PageFormat& format, const PageOp& op,
               const int32_t* listed) {
  // Pages that a window has freed have no K to read, but their columns are still right: the last page stands in for
  // them, and what that does to the min and max over the group is set right from the columns.
  int32_t ids[kPagesPerGroup];
  std::transform(listed, listed + op.columns, ids, [&](int32_t id) { return id < 0 ? listed[op.columns - 1] : id; });
  MetadataRecomputeParams params;
  params.pages = pages;
  params.format = format;
  params.group_id = op.to;
  params.group_pages = ids;
  params.column = op.columns - 1;
  params.slots = op.slots;
  RecomputeMetadata(ctx, params);
  if (!std::equal(ids, ids + op.columns, listed)) {
    VisitFloatDType(format.dtype, [&]<typename T>(T) { OverFromColumns<T>(pages, format, op.to, op.columns); });
  }
  const bool whole = op.columns == kPagesPerGroup && op.slots == format.page_size;
  if (whole && pages.codes != nullptr) EncodeMetadata(pages, format, op.to);
}

}  // namespace

void RunPageOps(const Context& ctx, const LayersOfPages& layers, std::span<const PageOp> ops,
                std::span<const int32_t> listed) {
  if (ops.empty()) return;
  const PageFormat& format = layers.format;
  ctx.pool->ParallelFor(layers.layers, [&](int64_t layer, int) {
    const LayerPages pages = LayerOf(layers, layer);
    for (const PageOp& op : ops) {
      switch (op.kind) {
        case PageOp::Kind::kZeroPage: ZeroPage(pages, format, op.to); break;
        case PageOp::Kind::kCopyPage: CopyPage(pages, format, op.from, op.to); break;
        case PageOp::Kind::kResetGroup: ResetGroup(pages, format, op.to); break;
        case PageOp::Kind::kCopyGroup: CopyGroup(pages, format, op.from, op.to, op.columns); break;
        case PageOp::Kind::kRecomputeMetadata:
          Recompute(ctx, pages, format, op, listed.data() + op.pages_begin);
          break;
      }
    }
  });
}

}  // namespace quire::cpu

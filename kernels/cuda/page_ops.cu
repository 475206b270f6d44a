// Blocks: x cuts a page (or a KV head of a group), y is the entry of the list, z the layer.
#include "kernels/cuda/page_ops.h"

#include <algorithm>

#include "kernels/cuda/metadata_codes.cuh"
#include "kernels/cuda/simt.h"

namespace quire::cuda {
namespace {

constexpr int kMaxThreads = 256;
constexpr int kUnitsPerThread = 4;

// from null: zeroes.
struct BytesParams {
  std::byte* base = nullptr;
  int64_t layer_bytes = 0, page_bytes = 0;
  const int32_t* from = nullptr;
  const int32_t* to = nullptr;
};

template <typename Unit>
struct PageBytesKernel {
  using Params = BytesParams;
  static constexpr const char* kName = "page_bytes";
  static constexpr int kMaxThreads = cuda::kMaxThreads;
  static constexpr int kMinBlocks = 4;
  QUIRE_DEVICE static void Run(const Params& p) {
    std::byte* layer = p.base + simt::BlockZ() * p.layer_bytes;
    std::byte* to = layer + p.to[simt::BlockY()] * p.page_bytes;
    const std::byte* from = p.from == nullptr ? nullptr : layer + p.from[simt::BlockY()] * p.page_bytes;
    const int64_t units = p.page_bytes / static_cast<int64_t>(sizeof(Unit));
    const int64_t first = int64_t{simt::BlockX()} * simt::BlockThreads() * kUnitsPerThread + simt::ThreadIndex();
    Unit v[kUnitsPerThread] = {};
#pragma unroll
    for (int i = 0; i < kUnitsPerThread; ++i) {
      const int64_t at = first + int64_t{i} * simt::BlockThreads();
      if (from != nullptr && at < units) v[i] = simt::LoadStreaming<Unit>(from + at * static_cast<int64_t>(sizeof(Unit)));
    }
#pragma unroll
    for (int i = 0; i < kUnitsPerThread; ++i) {
      const int64_t at = first + int64_t{i} * simt::BlockThreads();
      if (at < units) simt::Store(to + at * static_cast<int64_t>(sizeof(Unit)), v[i]);
    }
  }
};

struct GroupParams {
  LayersOfPages layers;
  const int32_t* from = nullptr;
  const int32_t* to = nullptr;
  const int32_t* columns = nullptr;
};

template <typename T>
QUIRE_DEVICE bool Wins(bool is_min, T x, T best) {
  return is_min ? simt::ToFloat(x) < simt::ToFloat(best) : simt::ToFloat(x) > simt::ToFloat(best);
}

// A block a KV head; a thread a (min or max, channel).
template <typename T>
struct CopyGroupKernel {
  using Params = GroupParams;
  static constexpr const char* kName = "copy_groups";
  static constexpr int kMaxThreads = cuda::kMaxThreads;
  static constexpr int kMinBlocks = 2;
  QUIRE_DEVICE static void Run(const Params& p) {
    const PageFormat& f = p.layers.format;
    const int h = simt::BlockX(), i = simt::BlockY();
    const int64_t layer = simt::BlockZ();
    T* meta = static_cast<T*>(p.layers.first.meta) + layer * p.layers.meta_layer_stride + h * f.meta_head_stride;
    T* over = static_cast<T*>(p.layers.first.over) + layer * p.layers.over_layer_stride + h * f.over_head_stride;
    const T* from = meta + p.from[i] * f.meta_group_stride;
    T* to = meta + p.to[i] * f.meta_group_stride;
    over += p.to[i] * f.over_group_stride;
    const int columns = p.columns[i];
    for (int row = simt::ThreadIndex(); row < 2 * f.k_dim; row += simt::BlockThreads()) {
      const bool is_min = row < f.k_dim;
      T best{};
      for (int column = 0; column < kPagesPerGroup; ++column) {
        const int64_t at = int64_t{row} * kPagesPerGroup + column;
        const T x = column < columns ? from[at] : T{};
        to[at] = x;
        if (column < columns && (column == 0 || Wins(is_min, x, best))) best = x;
      }
      over[row] = best;
    }
  }
};

struct RecomputeParams {
  LayersOfPages layers;
  const MetadataRecompute* list = nullptr;
};

// A block a KV head; a thread a channel, and in the end a warp a block of codes.
template <typename T>
struct RecomputeKernel {
  using Params = RecomputeParams;
  static constexpr const char* kName = "recompute_metadata";
  static constexpr int kMaxThreads = cuda::kMaxThreads;
  static constexpr int kMinBlocks = 2;
  QUIRE_DEVICE static void Run(const Params& p) {
    const PageFormat& f = p.layers.format;
    const int h = simt::BlockX();
    const int64_t layer = simt::BlockZ();
    const MetadataRecompute& r = p.list[simt::BlockY()];
    const T* k = static_cast<const T*>(p.layers.first.k) + layer * p.layers.k_layer_stride + h * f.k_head_stride;
    T* meta = static_cast<T*>(p.layers.first.meta) + layer * p.layers.meta_layer_stride + r.group * f.meta_group_stride +
              h * f.meta_head_stride;
    T* over = static_cast<T*>(p.layers.first.over) + layer * p.layers.over_layer_stride + r.group * f.over_group_stride +
              h * f.over_head_stride;
    for (int c = simt::ThreadIndex(); c < f.k_dim; c += simt::BlockThreads()) {
      T over_min{}, over_max{};
      bool any = false;
      for (int column = 0; column <= r.column; ++column) {
        if (r.pages[column] < 0) continue;
        const T* page = k + r.pages[column] * f.k_page_stride;
        T min = page[f.KOffset(0, c)], max = min;
        const int slots = column == r.column ? r.slots : f.page_size;
        for (int slot = 1; slot < slots; ++slot) {
          const T x = page[f.KOffset(slot, c)];
          if (Wins(true, x, min)) min = x;
          if (Wins(false, x, max)) max = x;
        }
        if (!any || Wins(true, min, over_min)) over_min = min;
        if (!any || Wins(false, max, over_max)) over_max = max;
        any = true;
        if (column < r.column) continue;
        meta[f.MetaOffset(0, c, column)] = min;
        meta[f.MetaOffset(1, c, column)] = max;
      }
      over[f.OverOffset(0, c)] = over_min;
      over[f.OverOffset(1, c)] = over_max;
    }
    if (p.layers.first.codes == nullptr || r.column != kPagesPerGroup - 1 || r.slots != f.page_size) return;
    simt::SyncThreads();
    EncodeHead(meta, over, f,
               p.layers.first.codes + layer * p.layers.meta_layer_stride + r.group * f.meta_group_stride + h * f.meta_head_stride);
  }
};

// One array (K, V, meta or over) of all layers.
Status Bytes(Stream stream, void* base, int64_t layer_bytes, int64_t page_bytes, const int32_t* from, const int32_t* to, int n,
             int layers) {
  const PageCopyConfig config = PageCopyConfig::For(page_bytes);
  simt::LaunchShape shape;
  shape.grid_x = config.blocks;
  shape.grid_y = n;
  shape.grid_z = layers;
  shape.threads = config.threads;
  const BytesParams params{static_cast<std::byte*>(base), layer_bytes, page_bytes, from, to};
  if (config.unit == 16) return simt::Launch<PageBytesKernel<simt::U32x4>>(shape, stream, params);
  return simt::Launch<PageBytesKernel<uint32_t>>(shape, stream, params);
}

Status PagesOf(Stream stream, const LayersOfPages& l, const int32_t* from, const int32_t* to, int n) {
  const int64_t size = ElementSize(l.format.dtype);
  RETURN_IF_ERROR(Bytes(stream, l.first.k, l.k_layer_stride * size, l.format.k_page_stride * size, from, to, n, l.layers));
  return Bytes(stream, l.first.v, l.v_layer_stride * size, l.format.v_page_stride * size, from, to, n, l.layers);
}

simt::LaunchShape HeadsShape(const LayersOfPages& l, int n, int work) {
  simt::LaunchShape shape;
  shape.grid_x = l.format.kv_heads;
  shape.grid_y = n;
  shape.grid_z = l.layers;
  shape.threads = std::clamp((work + 31) / 32 * 32, 32, kMaxThreads);
  return shape;
}

}  // namespace

PageCopyConfig PageCopyConfig::For(int64_t page_bytes) {
  PageCopyConfig c;
  c.unit = page_bytes % 16 == 0 ? 16 : 4;
  const int64_t units = page_bytes / c.unit;
  c.threads = static_cast<int>(std::clamp<int64_t>((units + 31) / 32 * 32, 32, kMaxThreads));
  const int64_t per_block = int64_t{c.threads} * kUnitsPerThread;
  c.blocks = static_cast<int>((units + per_block - 1) / per_block);
  return c;
}

std::string PageCopyConfig::ToString() const {
  return std::to_string(blocks) + " blocks of " + std::to_string(threads) + " threads, " + std::to_string(unit) + " B an access";
}

Status CopyPages(Stream stream, const LayersOfPages& layers, const PageCopies& copies) {
  return PagesOf(stream, layers, copies.from, copies.to, copies.n);
}

Status ZeroPages(Stream stream, const LayersOfPages& layers, const int32_t* pages, int n) {
  return PagesOf(stream, layers, nullptr, pages, n);
}

Status CopyGroups(Stream stream, const LayersOfPages& l, const PageCopies& copies, const int32_t* columns) {
  if (l.first.meta == nullptr) return OkStatus();
  if (l.first.codes != nullptr) {  // which count where all columns are whole
    RETURN_IF_ERROR(Bytes(stream, l.first.codes, l.meta_layer_stride, l.format.meta_group_stride, copies.from, copies.to, copies.n,
                          l.layers));
  }
  const simt::LaunchShape shape = HeadsShape(l, copies.n, 2 * l.format.k_dim);
  return VisitFloatDType(l.format.dtype, [&](auto t) {
    return simt::Launch<CopyGroupKernel<decltype(t)>>(shape, stream, {l, copies.from, copies.to, columns});
  });
}

Status ResetGroups(Stream stream, const LayersOfPages& l, const int32_t* groups, int n) {
  if (l.first.meta == nullptr) return OkStatus();
  const int64_t size = ElementSize(l.format.dtype);
  RETURN_IF_ERROR(Bytes(stream, l.first.meta, l.meta_layer_stride * size, l.format.meta_group_stride * size, nullptr, groups, n,
                        l.layers));
  return Bytes(stream, l.first.over, l.over_layer_stride * size, l.format.over_group_stride * size, nullptr, groups, n, l.layers);
}

Status RecomputeMetadata(Stream stream, const LayersOfPages& l, const MetadataRecompute* list, int n) {
  if (l.first.meta == nullptr) return OkStatus();
  const simt::LaunchShape shape = HeadsShape(l, n, l.format.k_dim);
  return VisitFloatDType(l.format.dtype, [&](auto t) {
    return simt::Launch<RecomputeKernel<decltype(t)>>(shape, stream, {l, list});
  });
}

}  // namespace quire::cuda

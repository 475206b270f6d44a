// CPU append of K and V rows with their metadata, and the page and group copies.
//
// Bytes: rows * kv_heads * (k_dim + v_dim) * (4 read + element size written). Work is cut by (KV head, channel block), so
// one task sees all rows of its channels in order: neither page nor group metadata is ever shared by two tasks, and the
// min and max of a page stay in registers or L1 until its last row. Slots of one page are written to the same lines one
// row after the other.
#include "kernels/kv_append.h"

#include <algorithm>
#include <cstring>

#include "core/base/check.h"
#include "kernels/cpu/ops.h"
#include "kernels/metadata_codes.h"

namespace quire {
namespace {

constexpr int kChannels = kCodeChannels;  // per task; a multiple of every word

template <typename T>
inline T* At(void* base, int64_t offset) {
  return static_cast<T*>(base) + offset;
}

// Widens [min, max] by the rounded value; a NaN widens nothing.
inline void Widen(float x, float& min, float& max) {
  min = x < min ? x : min;
  max = x > max ? x : max;
}

// Channels [c0, c1) of KV head h for all rows.
template <typename T>
void AppendK(const KvAppendParams& p, int h, int c0, int c1) {
  const PageFormat& f = p.table.format;
  const int32_t* row_pos = p.row_pos + h * p.pos_head_stride;
  const bool with_meta = p.pages.meta != nullptr;
  float min[kChannels], max[kChannels], over_min[kChannels], over_max[kChannels];
  const int n = c1 - c0;
  for (int64_t r = 0; r < p.rows;) {
    const int seq = p.row_seq[r];
    const int page = row_pos[r] / f.page_size;
    const int32_t id = p.table.page_ids[p.table.page_begin[seq] + page];
    T* k = At<T>(p.pages.k, id * f.k_page_stride + h * f.k_head_stride);
    T *meta = nullptr, *over = nullptr;
    const int first_slot = row_pos[r] % f.page_size;
    const int column = page % kPagesPerGroup;
    if (with_meta) {
      const int64_t group = p.table.group_ids[p.table.group_begin[seq] + page / kPagesPerGroup];
      meta = At<T>(p.pages.meta, group * f.meta_group_stride + h * f.meta_head_stride);
      over = At<T>(p.pages.over, group * f.over_group_stride + h * f.over_head_stride);
      const float* row = p.k + r * p.k_stride + int64_t{h} * f.k_dim;
      for (int i = 0; i < n; ++i) {
        const int c = c0 + i;
        const float x = ToFloat(FromFloat<T>(row[c]));
        min[i] = first_slot == 0 ? x : ToFloat(meta[f.MetaOffset(0, c, column)]);
        max[i] = first_slot == 0 ? x : ToFloat(meta[f.MetaOffset(1, c, column)]);
        const bool reset = first_slot == 0 && column == 0;
        over_min[i] = reset ? x : ToFloat(over[f.OverOffset(0, c)]);
        over_max[i] = reset ? x : ToFloat(over[f.OverOffset(1, c)]);
      }
    }
    // All rows of this call that fall into the page.
    for (; r < p.rows && p.row_seq[r] == seq && row_pos[r] / f.page_size == page; ++r) {
      const int slot = row_pos[r] % f.page_size;
      const float* row = p.k + r * p.k_stride + int64_t{h} * f.k_dim;
      T rounded[kChannels];
      for (int i = 0; i < n; ++i) rounded[i] = FromFloat<T>(row[c0 + i]);
      constexpr int kWord = 4 / static_cast<int>(sizeof(T));
      T* dst = k + f.KOffset(slot, c0);
      for (int i = 0; i < n; i += kWord, dst += int64_t{f.page_size} * kWord) std::memcpy(dst, rounded + i, 4);
      if (!with_meta) continue;
      for (int i = 0; i < n; ++i) {
        const float x = ToFloat(rounded[i]);
        Widen(x, min[i], max[i]);
        Widen(x, over_min[i], over_max[i]);
      }
    }
    if (!with_meta) continue;
    for (int i = 0; i < n; ++i) {
      const int c = c0 + i;
      meta[f.MetaOffset(0, c, column)] = FromFloat<T>(min[i]);
      meta[f.MetaOffset(1, c, column)] = FromFloat<T>(max[i]);
      over[f.OverOffset(0, c)] = FromFloat<T>(over_min[i]);
      over[f.OverOffset(1, c)] = FromFloat<T>(over_max[i]);
    }
    const bool whole = column == kPagesPerGroup - 1 && row_pos[r - 1] % f.page_size == f.page_size - 1;
    if (whole && p.pages.codes != nullptr) {
      EncodeMetadata(p.pages, f, p.table.group_ids[p.table.group_begin[seq] + page / kPagesPerGroup], h, c0, c1);
    }
  }
}

template <typename T>
void AppendV(const KvAppendParams& p, int h, int c0, int c1) {
  const PageFormat& f = p.table.format;
  const int32_t* row_pos = p.row_pos + h * p.pos_head_stride;
  for (int64_t r = 0; r < p.rows; ++r) {
    const int32_t id = p.table.page_ids[p.table.page_begin[p.row_seq[r]] + row_pos[r] / f.page_size];
    T* dst = At<T>(p.pages.v, id * f.v_page_stride + h * f.v_head_stride + f.VOffset(row_pos[r] % f.page_size, c0));
    const float* row = p.v + r * p.v_stride + int64_t{h} * f.v_dim;
    for (int c = c0; c < c1; ++c, dst += f.word) *dst = FromFloat<T>(row[c]);
  }
}

template <typename T>
void Recompute(const MetadataRecomputeParams& p, int h) {
  const PageFormat& f = p.format;
  T* meta = At<T>(p.pages.meta, p.group_id * f.meta_group_stride + h * f.meta_head_stride);
  T* over = At<T>(p.pages.over, p.group_id * f.over_group_stride + h * f.over_head_stride);
  for (int c = 0; c < f.k_dim; ++c) {
    float over_min = 0, over_max = 0;
    for (int column = 0; column <= p.column; ++column) {
      const T* k = At<T>(p.pages.k, p.group_pages[column] * f.k_page_stride + h * f.k_head_stride);
      float min = ToFloat(k[f.KOffset(0, c)]), max = min;
      if (column == 0) over_min = over_max = min;
      const int slots = column == p.column ? p.slots : f.page_size;
      for (int slot = 0; slot < slots; ++slot) {
        const float x = ToFloat(k[f.KOffset(slot, c)]);
        Widen(x, min, max);
        Widen(x, over_min, over_max);
      }
      if (column < p.column) continue;
      meta[f.MetaOffset(0, c, column)] = FromFloat<T>(min);
      meta[f.MetaOffset(1, c, column)] = FromFloat<T>(max);
    }
    over[f.OverOffset(0, c)] = FromFloat<T>(over_min);
    over[f.OverOffset(1, c)] = FromFloat<T>(over_max);
  }
}

void CopyBytes(void* base, int64_t from, int64_t to, int64_t bytes) {
  std::memcpy(static_cast<char*>(base) + to * bytes, static_cast<const char*>(base) + from * bytes,
              static_cast<size_t>(bytes));
}

}  // namespace

namespace cpu {

void KvAppend(const Context& ctx, const KvAppendParams& p) {
  if (p.rows == 0) return;
  const PageFormat& f = p.table.format;
  CHECK((p.pages.meta == nullptr) == (p.pages.over == nullptr));
  CHECK(p.pages.meta == nullptr || p.table.group_ids != nullptr);
  CHECK(p.pages.meta == nullptr || p.pos_head_stride == 0);
  const int k_blocks = (f.k_dim + kChannels - 1) / kChannels;
  const int v_blocks = (f.v_dim + kChannels - 1) / kChannels;
  VisitFloatDType(f.dtype, [&](auto t) {
    using T = decltype(t);
    const auto task = [&](int64_t i, int) {
      const int h = static_cast<int>(i / (k_blocks + v_blocks));
      const int block = static_cast<int>(i % (k_blocks + v_blocks));
      if (block < k_blocks) {
        AppendK<T>(p, h, block * kChannels, std::min(f.k_dim, (block + 1) * kChannels));
      } else {
        AppendV<T>(p, h, (block - k_blocks) * kChannels, std::min(f.v_dim, (block - k_blocks + 1) * kChannels));
      }
    };
    const int64_t tasks = int64_t{f.kv_heads} * (k_blocks + v_blocks);
    // A decode step's few rows cost less than waking a thread.
    if (p.rows * f.kv_heads * (f.k_dim + f.v_dim) < 16384) {
      for (int64_t i = 0; i < tasks; ++i) task(i, 0);
    } else {
      ctx.pool->ParallelFor(tasks, task);
    }
  });
}

}  // namespace cpu

void RecomputeMetadata(const Context& ctx, const MetadataRecomputeParams& p) {
  CHECK(p.pages.meta != nullptr && p.pages.over != nullptr);
  CHECK(p.column >= 0 && p.column < kPagesPerGroup);
  CHECK(p.slots >= 1 && p.slots <= p.format.page_size);
  VisitFloatDType(p.format.dtype, [&](auto t) {
    for (int h = 0; h < p.format.kv_heads; ++h) Recompute<decltype(t)>(p, h);
  });
}

void CopyPage(const LayerPages& pages, const PageFormat& f, int32_t from, int32_t to) {
  CopyBytes(pages.k, from, to, f.k_page_stride * ElementSize(f.dtype));
  CopyBytes(pages.v, from, to, f.v_page_stride * ElementSize(f.dtype));
}

void ZeroPage(const LayerPages& pages, const PageFormat& f, int32_t page) {
  const int64_t k_bytes = f.k_page_stride * ElementSize(f.dtype), v_bytes = f.v_page_stride * ElementSize(f.dtype);
  std::memset(static_cast<char*>(pages.k) + page * k_bytes, 0, static_cast<size_t>(k_bytes));
  std::memset(static_cast<char*>(pages.v) + page * v_bytes, 0, static_cast<size_t>(v_bytes));
}

void CopyGroup(const LayerPages& pages, const PageFormat& f, int32_t from, int32_t to, int columns) {
  if (pages.meta == nullptr) return;
  CHECK(columns >= 0 && columns <= kPagesPerGroup);
  if (pages.codes != nullptr) {  // which count where all columns are whole
    std::memcpy(pages.codes + to * f.meta_group_stride, pages.codes + from * f.meta_group_stride,
                static_cast<size_t>(f.meta_group_stride));
  }
  VisitFloatDType(f.dtype, [&](auto t) {
    using T = decltype(t);
    for (int h = 0; h < f.kv_heads; ++h) {
      const T* src = At<T>(pages.meta, from * f.meta_group_stride + h * f.meta_head_stride);
      T* dst = At<T>(pages.meta, to * f.meta_group_stride + h * f.meta_head_stride);
      T* over = At<T>(pages.over, to * f.over_group_stride + h * f.over_head_stride);
      for (int which = 0; which < 2; ++which) {
        for (int c = 0; c < f.k_dim; ++c) {
          T best{};
          for (int column = 0; column < kPagesPerGroup; ++column) {
            const T x = column < columns ? src[f.MetaOffset(which, c, column)] : T{};
            dst[f.MetaOffset(which, c, column)] = x;
            if (column >= columns) continue;
            const bool wins = which == 0 ? ToFloat(x) < ToFloat(best) : ToFloat(x) > ToFloat(best);
            if (column == 0 || wins) best = x;
          }
          over[f.OverOffset(which, c)] = best;
        }
      }
    }
  });
}

void ResetGroup(const LayerPages& pages, const PageFormat& f, int32_t group) {
  if (pages.meta == nullptr) return;
  const int64_t meta = f.meta_group_stride * ElementSize(f.dtype), over = f.over_group_stride * ElementSize(f.dtype);
  std::memset(static_cast<char*>(pages.meta) + group * meta, 0, static_cast<size_t>(meta));
  std::memset(static_cast<char*>(pages.over) + group * over, 0, static_cast<size_t>(over));
}

}  // namespace quire

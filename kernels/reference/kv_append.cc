#include "kernels/reference/kv_append.h"

namespace quire::reference {
namespace {

template <typename T>
void Append(const KvAppendParams& p) {
  const PageFormat& f = p.table.format;
  for (int64_t r = 0; r < p.rows; ++r) {
    for (int h = 0; h < f.kv_heads; ++h) {
      const int seq = p.row_seq[r], pos = p.row_pos[h * p.pos_head_stride + r];
      const int page = pos / f.page_size, slot = pos % f.page_size;
      const int64_t id = p.table.page_ids[p.table.page_begin[seq] + page];
      T* k = static_cast<T*>(p.pages.k) + id * f.k_page_stride + h * f.k_head_stride;
      T* v = static_cast<T*>(p.pages.v) + id * f.v_page_stride + h * f.v_head_stride;
      for (int c = 0; c < f.k_dim; ++c) k[f.KOffset(slot, c)] = FromFloat<T>(p.k[r * p.k_stride + h * f.k_dim + c]);
      for (int c = 0; c < f.v_dim; ++c) v[f.VOffset(slot, c)] = FromFloat<T>(p.v[r * p.v_stride + h * f.v_dim + c]);
      if (p.pages.meta == nullptr) continue;
      const int64_t group = p.table.group_ids[p.table.group_begin[seq] + page / kPagesPerGroup];
      const int column = page % kPagesPerGroup;
      T* meta = static_cast<T*>(p.pages.meta) + group * f.meta_group_stride + h * f.meta_head_stride;
      T* over = static_cast<T*>(p.pages.over) + group * f.over_group_stride + h * f.over_head_stride;
      for (int c = 0; c < f.k_dim; ++c) {
        for (int which = 0; which < 2; ++which) {
          const auto pick = [&](T old, T now, bool reset) {
            if (reset) return now;
            return (which == 0 ? ToFloat(now) < ToFloat(old) : ToFloat(now) > ToFloat(old)) ? now : old;
          };
          T& m = meta[f.MetaOffset(which, c, column)];
          m = pick(m, k[f.KOffset(slot, c)], slot == 0);
          T& o = over[f.OverOffset(which, c)];
          o = pick(o, k[f.KOffset(slot, c)], slot == 0 && column == 0);
        }
      }
    }
  }
}

}  // namespace

void KvAppend(const KvAppendParams& params) {
  VisitFloatDType(params.table.format.dtype, [&](auto t) { Append<decltype(t)>(params); });
}

}  // namespace quire::reference

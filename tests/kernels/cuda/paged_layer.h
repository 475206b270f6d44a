// One layer's paged memory for the kernels' tests: pages and metadata groups in reversed order, filled with a byte pattern,
// every array of the exact size.
#pragma once

#include <vector>

#include "core/base/dtype.h"
#include "kernels/page_table.h"

namespace quire::testing {

struct PagedLayer {
  // lengths: tokens of each sequence that there is room for. with_codes: metadata in 8 bits, too.
  PagedLayer(DType dtype, int page_size, int kv_heads, int k_dim, int v_dim, const std::vector<int>& lengths,
             bool metadata = true, bool with_codes = false)
      : format(*PageFormat::Create(dtype, page_size, kv_heads, k_dim, v_dim)) {
    for (const int n : lengths) {
      begin.push_back(begin.back() + (n + page_size - 1) / page_size);
      group_begin.push_back(group_begin.back() + (begin.back() - begin[begin.size() - 2] + kPagesPerGroup - 1) / kPagesPerGroup);
    }
    for (int i = 0; i < begin.back(); ++i) ids.push_back(begin.back() - i);
    for (int i = 0; i < group_begin.back(); ++i) groups.push_back(group_begin.back() - i);
    const auto bytes = [&](int64_t elements) { return static_cast<size_t>(elements) * static_cast<size_t>(ElementSize(dtype)); };
    k.assign(bytes((begin.back() + 1) * format.k_page_stride), std::byte{0x11});
    v.assign(bytes((begin.back() + 1) * format.v_page_stride), std::byte{0x11});
    if (metadata) {
      meta.assign(bytes((group_begin.back() + 1) * format.meta_group_stride), std::byte{0x11});
      over.assign(bytes((group_begin.back() + 1) * format.over_group_stride), std::byte{0x11});
    }
    if (with_codes) codes.assign(static_cast<size_t>((group_begin.back() + 1) * format.meta_group_stride), std::byte{0x11});
  }
  LayerPages Pages() {
    if (meta.empty()) return {k.data(), v.data(), nullptr, nullptr};
    uint8_t* in_8_bits = codes.empty() ? nullptr : reinterpret_cast<uint8_t*>(codes.data());
    return {k.data(), v.data(), meta.data(), over.data(), in_8_bits};
  }
  PageTableView Table() const {
    return {format, ids.data(), begin.data(), groups.data(), group_begin.data(), static_cast<int>(begin.size()) - 1};
  }
  int PageOf(int seq, int pos) const {
    return ids[static_cast<size_t>(begin[static_cast<size_t>(seq)] + pos / format.page_size)];
  }
  // Element `offset` of an array of the cache's dtype.
  float At(const std::vector<std::byte>& array, int64_t offset) const {
    return VisitFloatDType(format.dtype, [&](auto t) { return ToFloat(reinterpret_cast<const decltype(t)*>(array.data())[offset]); });
  }
  float KAt(int seq, int pos, int head, int c) const {
    return At(k, int64_t{PageOf(seq, pos)} * format.k_page_stride + head * format.k_head_stride +
                     format.KOffset(pos % format.page_size, c));
  }
  float VAt(int seq, int pos, int head, int c) const {
    return At(v, int64_t{PageOf(seq, pos)} * format.v_page_stride + head * format.v_head_stride +
                     format.VOffset(pos % format.page_size, c));
  }
  float MetaAt(int seq, int page, int head, int which, int c) const {
    const int group = groups[static_cast<size_t>(group_begin[static_cast<size_t>(seq)] + page / kPagesPerGroup)];
    return At(meta, int64_t{group} * format.meta_group_stride + head * format.meta_head_stride +
                        format.MetaOffset(which, c, page % kPagesPerGroup));
  }

  PageFormat format;
  std::vector<int32_t> ids, begin{0}, groups, group_begin{0};
  std::vector<std::byte> k, v, meta, over, codes;
};

}  // namespace quire::testing

// A paged cache for kernel tests: random K and V of several sequences in pages handed out in shuffled order, spare pages
// full of NaN, buffers of the exact size so that AddressSanitizer sees a read past them.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "core/base/buffer.h"
#include "kernels/kv_append.h"
#include "kernels/metadata_codes.h"
#include "kernels/page_table.h"

namespace quire::testing {

class PagedCache {
 public:
  // lengths: tokens of each sequence. Room for them, plus 3 spare pages; with metadata if asked for.
  PagedCache(DType dtype, int page_size, int kv_heads, int k_dim, int v_dim, std::vector<int> lengths, uint64_t seed,
             bool metadata = false)
      : lengths_(std::move(lengths)), random_(seed) {
    auto format = PageFormat::Create(dtype, page_size, kv_heads, k_dim, v_dim);
    EXPECT_TRUE(format.ok()) << format.status().ToString();
    table_.format = *format;
    page_begin_.push_back(0);
    group_begin_.push_back(0);
    for (const int n : lengths_) {
      const int pages = (n + page_size - 1) / page_size;
      page_begin_.push_back(page_begin_.back() + pages);
      group_begin_.push_back(group_begin_.back() + (pages + kPagesPerGroup - 1) / kPagesPerGroup);
    }
    total_pages_ = page_begin_.back() + 3;
    const int groups = group_begin_.back() + 1;
    ShuffleIds();
    for (int i = 0; i < group_begin_.back(); ++i) group_ids_.push_back(groups - 1 - i);
    const PageFormat& f = table_.format;
    k_.resize(static_cast<size_t>(total_pages_ * f.k_page_stride) * ElementSize(dtype));
    v_.resize(static_cast<size_t>(total_pages_ * f.v_page_stride) * ElementSize(dtype));
    pages_.k = k_.data();
    pages_.v = v_.data();
    if (metadata) {
      meta_.resize(static_cast<size_t>(groups * f.meta_group_stride) * ElementSize(dtype));
      over_.resize(static_cast<size_t>(groups * f.over_group_stride) * ElementSize(dtype));
      pages_.meta = meta_.data();
      pages_.over = over_.data();
      codes_.assign(static_cast<size_t>(groups * f.meta_group_stride), 0x55);
      pages_.codes = codes_.data();
    }
    table_.page_ids = page_ids_.data();
    table_.page_begin = page_begin_.data();
    table_.group_ids = metadata ? group_ids_.data() : nullptr;
    table_.group_begin = metadata ? group_begin_.data() : nullptr;
    table_.num_seqs = static_cast<int>(lengths_.size());
    for (int page = 0; page < total_pages_; ++page) PoisonPage(page);
  }

  // Zeroes the pages in use and appends every token with the library's KvAppend. K and V stay in key() and value().
  void Fill(const Context& ctx) {
    std::normal_distribution<float> normal;
    const PageFormat& f = table_.format;
    std::vector<int32_t> seq, pos;
    for (int s = 0; s < static_cast<int>(lengths_.size()); ++s) {
      for (int t = 0; t < lengths_[static_cast<size_t>(s)]; ++t) {
        seq.push_back(s);
        pos.push_back(t);
      }
    }
    key_.resize(seq.size() * static_cast<size_t>(f.kv_heads * f.k_dim));
    value_.resize(seq.size() * static_cast<size_t>(f.kv_heads * f.v_dim));
    for (float& x : key_) x = normal(random_);
    for (float& x : value_) x = normal(random_);
    for (int i = 0; i < page_begin_.back(); ++i) ZeroPage(pages_, f, page_ids_[static_cast<size_t>(i)]);
    KvAppendParams p;
    p.pages = pages_;
    p.table = table_;
    p.k = key_.data();
    p.k_stride = f.kv_heads * f.k_dim;
    p.v = value_.data();
    p.v_stride = f.kv_heads * f.v_dim;
    p.row_seq = seq.data();
    p.row_pos = pos.data();
    p.rows = static_cast<int64_t>(seq.size());
    KvAppend(ctx, p);
  }

  // Codes of all whole groups, where a test has written metadata of its own.
  void Encode() {
    const int64_t tokens = int64_t{table_.format.page_size} * kPagesPerGroup;
    for (size_t s = 0; s < lengths_.size(); ++s) {
      for (int64_t g = 0; (g + 1) * tokens <= lengths_[s]; ++g) {
        EncodeMetadata(pages_, table_.format, group_ids_[static_cast<size_t>(group_begin_[s] + g)]);
      }
    }
  }

  // The same contents at other physical pages.
  void PermutePages() {
    const std::vector<std::byte> k = k_, v = v_;
    const std::vector<int32_t> old = page_ids_;
    ShuffleIds();
    table_.page_ids = page_ids_.data();
    for (int page = 0; page < total_pages_; ++page) PoisonPage(page);
    const auto move = [&](const std::vector<std::byte>& from, std::vector<std::byte>& to, int64_t stride) {
      const size_t bytes = static_cast<size_t>(stride) * ElementSize(table_.format.dtype);
      for (size_t i = 0; i < old.size(); ++i) {
        std::memcpy(to.data() + static_cast<size_t>(page_ids_[i]) * bytes, from.data() + static_cast<size_t>(old[i]) * bytes,
                    bytes);
      }
    };
    move(k, k_, table_.format.k_page_stride);
    move(v, v_, table_.format.v_page_stride);
  }

  // NaN into one (physical page, KV head) block of K and V.
  void Poison(int32_t page, int head) {
    VisitFloatDType(table_.format.dtype, [&](auto t) {
      using T = decltype(t);
      const PageFormat& f = table_.format;
      const T nan = FromFloat<T>(std::numeric_limits<float>::quiet_NaN());
      T* k = static_cast<T*>(pages_.k) + page * f.k_page_stride + head * f.k_head_stride;
      T* v = static_cast<T*>(pages_.v) + page * f.v_page_stride + head * f.v_head_stride;
      std::fill(k, k + f.k_head_stride, nan);
      std::fill(v, v + f.v_head_stride, nan);
    });
  }
  void PoisonPage(int32_t page) {
    for (int h = 0; h < table_.format.kv_heads; ++h) Poison(page, h);
  }
  // NaN into one slot of all heads.
  void PoisonSlot(int seq, int pos) {
    VisitFloatDType(table_.format.dtype, [&](auto t) {
      using T = decltype(t);
      const PageFormat& f = table_.format;
      const T nan = FromFloat<T>(std::numeric_limits<float>::quiet_NaN());
      const int64_t page = PageId(seq, pos / f.page_size);
      for (int h = 0; h < f.kv_heads; ++h) {
        T* k = static_cast<T*>(pages_.k) + page * f.k_page_stride + h * f.k_head_stride;
        T* v = static_cast<T*>(pages_.v) + page * f.v_page_stride + h * f.v_head_stride;
        for (int c = 0; c < f.k_dim; ++c) k[f.KOffset(pos % f.page_size, c)] = nan;
        for (int c = 0; c < f.v_dim; ++c) v[f.VOffset(pos % f.page_size, c)] = nan;
      }
    });
  }

  int32_t& PageId(int seq, int logical) {
    return page_ids_[static_cast<size_t>(page_begin_[static_cast<size_t>(seq)] + logical)];
  }
  int Pages(int seq) const { return page_begin_[static_cast<size_t>(seq) + 1] - page_begin_[static_cast<size_t>(seq)]; }
  const PageTableView& table() const { return table_; }
  const LayerPages& pages() const { return pages_; }
  const std::vector<int>& lengths() const { return lengths_; }
  const std::vector<float>& key() const { return key_; }
  const std::vector<float>& value() const { return value_; }
  const std::vector<std::byte>& k() const { return k_; }
  const std::vector<std::byte>& v() const { return v_; }
  const std::vector<std::byte>& meta() const { return meta_; }
  const std::vector<std::byte>& over() const { return over_; }
  const std::vector<uint8_t>& codes() const { return codes_; }
  std::mt19937_64& random() { return random_; }

 private:
  void ShuffleIds() {
    std::vector<int32_t> all(static_cast<size_t>(total_pages_));
    for (int i = 0; i < total_pages_; ++i) all[static_cast<size_t>(i)] = i;
    std::shuffle(all.begin(), all.end(), random_);
    page_ids_.assign(all.begin(), all.begin() + page_begin_.back());
  }

  std::vector<int> lengths_;
  std::mt19937_64 random_;
  PageTableView table_;
  LayerPages pages_;
  int total_pages_ = 0;
  std::vector<int32_t> page_ids_, page_begin_, group_ids_, group_begin_;
  std::vector<std::byte> k_, v_, meta_, over_;
  std::vector<uint8_t> codes_;
  std::vector<float> key_, value_;
};

inline std::vector<float> RandomFloats(size_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(n);
  for (float& v : x) v = normal(random);
  return x;
}

// ‖a − b‖ / ‖b‖; infinite where one is NaN or infinite and the other is not the same.
inline double RelativeError(const std::vector<float>& a, const std::vector<float>& b) {
  double diff = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!std::isfinite(a[i]) || !std::isfinite(b[i])) {
      if (a[i] == b[i]) continue;
      return std::numeric_limits<double>::infinity();
    }
    diff += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
    norm += double{b[i]} * b[i];
  }
  return norm == 0 ? std::sqrt(diff) : std::sqrt(diff / norm);
}

inline bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace quire::testing

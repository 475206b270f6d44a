// Append against the reference, bit for bit; metadata against a recomputation from K after truncation and page reuse.
#include "kernels/kv_append.h"

#include <gtest/gtest.h>

#include "kernels/reference/kv_append.h"
#include "tests/kernels/paged_cache.h"

namespace quire {
namespace {

using testing::PagedCache;
using testing::RandomFloats;

// Buffers of one layer, filled with a byte pattern, with three sequences that share nothing.
struct Layer {
  Layer(DType dtype, int page_size, int kv_heads, int k_dim, int v_dim, const std::vector<int>& lengths) {
    format = *PageFormat::Create(dtype, page_size, kv_heads, k_dim, v_dim);
    begin = group_begin = {0};
    for (const int n : lengths) {
      begin.push_back(begin.back() + (n + page_size - 1) / page_size);
      group_begin.push_back(group_begin.back() + (begin.back() - begin[begin.size() - 2] + 15) / 16);
    }
    for (int i = 0; i < begin.back(); ++i) ids.push_back(begin.back() - i);
    for (int i = 0; i < group_begin.back(); ++i) groups.push_back(group_begin.back() - i);
    const auto bytes = [&](int64_t elements) { return static_cast<size_t>(elements) * ElementSize(dtype); };
    k.assign(bytes((begin.back() + 1) * format.k_page_stride), std::byte{0x11});
    v.assign(bytes((begin.back() + 1) * format.v_page_stride), std::byte{0x11});
    meta.assign(bytes((group_begin.back() + 1) * format.meta_group_stride), std::byte{0x11});
    over.assign(bytes((group_begin.back() + 1) * format.over_group_stride), std::byte{0x11});
  }
  LayerPages Pages() { return {k.data(), v.data(), meta.data(), over.data()}; }
  PageTableView Table() {
    return {format, ids.data(), begin.data(), groups.data(), group_begin.data(), static_cast<int>(begin.size()) - 1};
  }
  PageFormat format;
  std::vector<int32_t> ids, begin, groups, group_begin;
  std::vector<std::byte> k, v, meta, over;
};

TEST(KvAppend, AgreesWithTheReferenceBitForBit) {
  uint64_t seed = 1;
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const int page_size : {1, 3, 7, 16, 64}) {
      for (const auto& [heads, k_dim, v_dim] : std::vector<std::tuple<int, int, int>>{{2, 64, 64}, {3, 8, 6}, {1, 80, 128}}) {
        const std::vector<int> lengths{300, 1, 41};
        Layer fast(dtype, page_size, heads, k_dim, v_dim, lengths);
        Layer slow = fast;
        // Steps that mix chunks and single tokens, until every sequence has its length.
        std::mt19937_64 random(seed);
        std::vector<int> at(3, 0);
        for (int step = 0; at != lengths; ++step) {
          std::vector<int32_t> seq, pos;
          for (int s = 0; s < 3; ++s) {
            const int want = step % 3 == 0 ? 1 : static_cast<int>(random() % 90);
            for (int n = std::min(want, lengths[s] - at[s]); n > 0; --n) {
              seq.push_back(s);
              pos.push_back(at[s]++);
            }
          }
          const std::vector<float> k = RandomFloats(seq.size() * static_cast<size_t>(heads * k_dim + 5), ++seed);
          const std::vector<float> v = RandomFloats(seq.size() * static_cast<size_t>(heads * v_dim + 3), ++seed);
          KvAppendParams p;
          p.k = k.data();
          p.v = v.data();
          p.k_stride = heads * k_dim + 5;
          p.v_stride = heads * v_dim + 3;
          p.row_seq = seq.data();
          p.row_pos = pos.data();
          p.rows = static_cast<int64_t>(seq.size());
          p.pages = fast.Pages();
          p.table = fast.Table();
          ThreadPool pool(1 + static_cast<int>(seed % 3));
          Context ctx;
          ctx.pool = &pool;
          KvAppend(ctx, p);
          p.pages = slow.Pages();
          p.table = slow.Table();
          reference::KvAppend(p);
        }
        SCOPED_TRACE(::testing::Message() << DTypeName(dtype) << " page " << page_size << " heads " << heads << " d " << k_dim);
        EXPECT_TRUE(fast.k == slow.k);
        EXPECT_TRUE(fast.v == slow.v);
        EXPECT_TRUE(fast.meta == slow.meta);
        EXPECT_TRUE(fast.over == slow.over);
      }
    }
  }
}

TEST(KvAppend, RecomputedMetadataIsWhatAppendLeftAfterATruncation) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    ThreadPool pool(1);
    Context ctx;
    ctx.pool = &pool;
    const int page_size = 16;
    // 20 pages; cut back to 300 tokens: the page of position 299 is logical page 18, column 2 of the second group.
    Layer layer(dtype, page_size, 2, 16, 16, {320});
    Layer cut = layer;
    const std::vector<float> k = RandomFloats(320 * 32, 1), v = RandomFloats(320 * 32, 2);
    std::vector<int32_t> seq(320, 0), pos(320);
    for (int i = 0; i < 320; ++i) pos[static_cast<size_t>(i)] = i;
    KvAppendParams p;
    p.k = k.data();
    p.v = v.data();
    p.k_stride = p.v_stride = 32;
    p.row_seq = seq.data();
    p.row_pos = pos.data();
    p.rows = 320;
    p.pages = layer.Pages();
    p.table = layer.Table();
    KvAppend(ctx, p);
    p.rows = 300;
    p.pages = cut.Pages();
    p.table = cut.Table();
    KvAppend(ctx, p);
    MetadataRecomputeParams r;
    r.pages = layer.Pages();
    r.format = layer.format;
    r.group_id = layer.groups[1];
    r.group_pages = layer.ids.data() + 16;
    r.column = 2;
    r.slots = 300 - 18 * 16;
    RecomputeMetadata(ctx, r);
    EXPECT_TRUE(layer.over == cut.over);
    const size_t size = static_cast<size_t>(ElementSize(dtype));
    for (int h = 0; h < 2; ++h) {
      for (int which = 0; which < 2; ++which) {
        for (int c = 0; c < 16; ++c) {
          for (int column = 0; column < 3; ++column) {
            const int64_t at = layer.groups[1] * layer.format.meta_group_stride + h * layer.format.meta_head_stride +
                               layer.format.MetaOffset(which, c, column);
            EXPECT_EQ(std::memcmp(layer.meta.data() + static_cast<size_t>(at) * size,
                                  cut.meta.data() + static_cast<size_t>(at) * size, size),
                      0);
          }
        }
      }
    }
  }
}

TEST(KvAppend, CopiesZeroesAndResetsWholePagesAndGroups) {
  Layer layer(DType::kBF16, 7, 2, 8, 6, {200});
  const std::vector<float> k = RandomFloats(200 * 16, 1), v = RandomFloats(200 * 12, 2);
  std::vector<int32_t> seq(200, 0), pos(200);
  for (int i = 0; i < 200; ++i) pos[static_cast<size_t>(i)] = i;
  ThreadPool pool(1);
  Context ctx;
  ctx.pool = &pool;
  KvAppendParams p{layer.Pages(), layer.Table(), k.data(), 16, v.data(), 12, seq.data(), pos.data(), 200};
  KvAppend(ctx, p);
  const PageFormat& f = layer.format;
  const auto block = [](const std::vector<std::byte>& all, int64_t index, int64_t stride) {
    const auto begin = all.begin() + index * stride * 2;
    return std::vector<std::byte>(begin, begin + stride * 2);
  };
  const auto before_k = layer.k, before_v = layer.v;
  CopyPage(layer.Pages(), f, 3, 0);
  EXPECT_EQ(block(layer.k, 0, f.k_page_stride), block(before_k, 3, f.k_page_stride));
  EXPECT_EQ(block(layer.v, 0, f.v_page_stride), block(before_v, 3, f.v_page_stride));
  EXPECT_EQ(block(layer.k, 1, f.k_page_stride), block(before_k, 1, f.k_page_stride));
  ZeroPage(layer.Pages(), f, 3);
  EXPECT_EQ(block(layer.v, 3, f.v_page_stride), std::vector<std::byte>(static_cast<size_t>(f.v_page_stride) * 2));
  EXPECT_EQ(block(layer.k, 4, f.k_page_stride), block(before_k, 4, f.k_page_stride));

  // Group 2 (logical 0) copied up to column 5: its over-group values are those of a sequence of 5 full pages.
  Layer fresh(DType::kBF16, 7, 2, 8, 6, {200});
  KvAppendParams five{fresh.Pages(), fresh.Table(), k.data(), 16, v.data(), 12, seq.data(), pos.data(), 35};
  KvAppend(ctx, five);
  const int32_t from = layer.groups[0];
  CopyGroup(layer.Pages(), f, from, 0, 5);
  EXPECT_EQ(block(layer.over, 0, f.over_group_stride), block(fresh.over, from, f.over_group_stride));
  const auto* meta = reinterpret_cast<const BF16*>(layer.meta.data());
  for (int64_t row = 0; row < f.meta_group_stride / 16; ++row) {
    for (int column = 0; column < 16; ++column) {
      const BF16 expected = column < 5 ? meta[from * f.meta_group_stride + row * 16 + column] : BF16{};
      EXPECT_EQ(meta[row * 16 + column].bits, expected.bits);
    }
  }
  ResetGroup(layer.Pages(), f, from);
  EXPECT_EQ(block(layer.meta, from, f.meta_group_stride), std::vector<std::byte>(static_cast<size_t>(f.meta_group_stride) * 2));
  EXPECT_EQ(block(layer.over, from, f.over_group_stride), std::vector<std::byte>(static_cast<size_t>(f.over_group_stride) * 2));
}

}  // namespace
}  // namespace quire

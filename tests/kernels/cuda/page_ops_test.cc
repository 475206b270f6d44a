// Page and group operations of the GPU under the emulator: the CPU's own, layer by layer, byte for byte.
#include "kernels/cuda/page_ops.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "kernels/kv_append.h"
#include "tests/kernels/cuda/paged_layer.h"
#include "tests/kernels/cuda/typed.h"

namespace quire {
namespace {

using testing::PagedLayer;
using testing::SeededFloats;

// Layers of the same table in one allocation each of K, V, meta, over and codes, with gaps between the layers.
struct Layers {
  Layers(DType dtype, int page_size, int kv_heads, int k_dim, int v_dim, int length, int count) {
    for (int l = 0; l < count; ++l) {
      PagedLayer layer(dtype, page_size, kv_heads, k_dim, v_dim, {length}, true, true);
      const std::vector<float> k = SeededFloats(static_cast<size_t>(length * kv_heads * k_dim), 10 + static_cast<uint64_t>(l));
      const std::vector<float> v = SeededFloats(static_cast<size_t>(length * kv_heads * v_dim), 20 + static_cast<uint64_t>(l));
      std::vector<int32_t> seq(static_cast<size_t>(length), 0), pos;
      for (int i = 0; i < length; ++i) pos.push_back(i);
      ThreadPool pool(1);
      Context ctx;
      ctx.pool = &pool;
      KvAppend(ctx, {layer.Pages(), layer.Table(), k.data(), kv_heads * k_dim, v.data(), kv_heads * v_dim, seq.data(), pos.data(), length});
      layers.push_back(layer);
    }
    const PagedLayer& first = layers[0];
    all.format = first.format;
    all.layers = count;
    const auto join = [&](std::vector<std::byte> PagedLayer::*array, std::vector<std::byte>& to) {
      const size_t bytes = (first.*array).size() + 64;
      to.assign(bytes * static_cast<size_t>(count) - 64, std::byte{0x33});
      for (size_t l = 0; l < layers.size(); ++l) std::memcpy(to.data() + l * bytes, (layers[l].*array).data(), bytes - 64);
      return static_cast<int64_t>(bytes) / ElementSize(first.format.dtype);
    };
    all.k_layer_stride = join(&PagedLayer::k, k);
    all.v_layer_stride = join(&PagedLayer::v, v);
    all.meta_layer_stride = join(&PagedLayer::meta, meta);
    all.over_layer_stride = join(&PagedLayer::over, over);
    // Codes have meta's strides, in bytes.
    codes.assign(static_cast<size_t>(all.meta_layer_stride) * layers.size(), std::byte{0x33});
    for (size_t l = 0; l < layers.size(); ++l) {
      std::memcpy(codes.data() + l * static_cast<size_t>(all.meta_layer_stride), layers[l].codes.data(), layers[l].codes.size());
    }
    all.first = {k.data(), v.data(), meta.data(), over.data(), reinterpret_cast<uint8_t*>(codes.data())};
  }
  // What the CPU did to `layers` is what the GPU did to the joined arrays.
  void ExpectEqual() const {
    const auto check = [&](std::vector<std::byte> PagedLayer::*array, const std::vector<std::byte>& joined) {
      const size_t bytes = (layers[0].*array).size() + 64;
      for (size_t l = 0; l < layers.size(); ++l) {
        EXPECT_EQ(std::memcmp(joined.data() + l * bytes, (layers[l].*array).data(), bytes - 64), 0) << "layer " << l;
        for (size_t i = bytes - 64; i < bytes && l + 1 < layers.size(); ++i) ASSERT_EQ(joined[l * bytes + i], std::byte{0x33});
      }
    };
    check(&PagedLayer::k, k);
    check(&PagedLayer::v, v);
    check(&PagedLayer::meta, meta);
    check(&PagedLayer::over, over);
    for (size_t l = 0; l < layers.size(); ++l) {
      const std::byte* joined = codes.data() + l * static_cast<size_t>(all.meta_layer_stride);
      EXPECT_EQ(std::memcmp(joined, layers[l].codes.data(), layers[l].codes.size()), 0) << "codes of layer " << l;
    }
  }
  std::vector<PagedLayer> layers;
  LayersOfPages all;
  std::vector<std::byte> k, v, meta, over, codes;
};

struct Case {
  DType dtype;
  int page_size, kv_heads, k_dim, v_dim;
};

TEST(CudaPageOps, AllOperationsAreTheCpusInEveryLayer) {
  for (const Case& c : {Case{DType::kBF16, 16, 2, 64, 64}, Case{DType::kF16, 7, 1, 8, 6}, Case{DType::kF32, 3, 3, 5, 7},
                        Case{DType::kBF16, 64, 1, 128, 128}, Case{DType::kBF16, 1, 1, 2, 2}}) {
    SCOPED_TRACE(::testing::Message() << DTypeName(c.dtype) << " page " << c.page_size << " d " << c.k_dim);
    const int length = 20 * c.page_size;
    Layers l(c.dtype, c.page_size, c.kv_heads, c.k_dim, c.v_dim, length, 3);
    const PageFormat& f = l.all.format;
    const std::vector<int32_t> from{3, 7}, to{0, 12}, zero{5};
    ASSERT_TRUE(cuda::CopyPages(Stream{}, l.all, {from.data(), to.data(), 2}).ok());
    ASSERT_TRUE(cuda::ZeroPages(Stream{}, l.all, zero.data(), 1).ok());
    const std::vector<int32_t> group_from{2}, group_to{0}, columns{5}, reset{2};
    ASSERT_TRUE(cuda::CopyGroups(Stream{}, l.all, {group_from.data(), group_to.data(), 1}, columns.data()).ok());
    ASSERT_TRUE(cuda::ResetGroups(Stream{}, l.all, reset.data(), 1).ok());
    std::vector<cuda::MetadataRecompute> list(1);  // not on the stack, where a GPU can't read it
    cuda::MetadataRecompute& r = list[0];  // the second group's first three pages, the last of them cut
    r.group = 1;
    r.column = 2;
    r.slots = (c.page_size + 1) / 2;
    for (int i = 0; i < 3; ++i) r.pages[i] = l.layers[0].ids[static_cast<size_t>(16 + i)];
    ASSERT_TRUE(cuda::RecomputeMetadata(Stream{}, l.all, &r, 1).ok());
    ThreadPool pool(1);
    Context ctx;
    ctx.pool = &pool;
    for (PagedLayer& layer : l.layers) {
      for (size_t i = 0; i < 2; ++i) CopyPage(layer.Pages(), f, from[i], to[i]);
      ZeroPage(layer.Pages(), f, 5);
      CopyGroup(layer.Pages(), f, 2, 0, 5);
      ResetGroup(layer.Pages(), f, 2);
      RecomputeMetadata(ctx, {layer.Pages(), f, 1, r.pages, 2, r.slots});
    }
    l.ExpectEqual();
  }
}

// A group that the recomputed page makes whole has its codes again; one that it doesn't, keeps those it had.
TEST(CudaPageOps, ARecomputedGroupThatIsWholeIsEncoded) {
  for (const Case& c : {Case{DType::kBF16, 4, 2, 64, 64}, Case{DType::kF32, 1, 1, 37, 8}, Case{DType::kF16, 2, 1, 128, 8}}) {
    for (const int slots : {c.page_size, c.page_size - 1}) {
      if (slots == 0) continue;
      SCOPED_TRACE(::testing::Message() << DTypeName(c.dtype) << " d " << c.k_dim << " slots " << slots);
      const int length = 16 * c.page_size;
      Layers l(c.dtype, c.page_size, c.kv_heads, c.k_dim, c.v_dim, length, 2);
      std::fill(l.codes.begin(), l.codes.end(), std::byte{0x44});
      std::vector<cuda::MetadataRecompute> list(1);
      list[0].group = l.layers[0].groups[0];
      list[0].column = kPagesPerGroup - 1;
      list[0].slots = slots;
      std::copy_n(l.layers[0].ids.begin(), kPagesPerGroup, list[0].pages);
      ASSERT_TRUE(cuda::RecomputeMetadata(Stream{}, l.all, list.data(), 1).ok());
      for (size_t i = 0; i < l.layers.size(); ++i) {
        const int64_t group = list[0].group * l.all.format.meta_group_stride;
        const std::byte* got = l.codes.data() + static_cast<int64_t>(i) * l.all.meta_layer_stride + group;
        const auto bytes = static_cast<size_t>(l.all.format.meta_group_stride);
        if (slots == c.page_size) {  // appends have left the same
          EXPECT_EQ(std::memcmp(got, l.layers[i].codes.data() + group, bytes), 0);
        } else {
          EXPECT_TRUE(std::all_of(got, got + bytes, [](std::byte b) { return b == std::byte{0x44}; }));
        }
      }
    }
  }
}

TEST(CudaPageOps, FreedPagesCountNoMoreInARecomputedGroup) {
  Layers l(DType::kBF16, 4, 1, 8, 8, 12, 1);
  std::vector<cuda::MetadataRecompute> list(1);
  cuda::MetadataRecompute& r = list[0];
  r.group = 1;
  r.column = 2;
  r.slots = 4;
  r.pages[0] = -1;
  r.pages[1] = l.layers[0].ids[1];
  r.pages[2] = l.layers[0].ids[2];
  ASSERT_TRUE(cuda::RecomputeMetadata(Stream{}, l.all, &r, 1).ok());
  const PagedLayer& layer = l.layers[0];
  for (int c = 0; c < 8; ++c) {
    float min = layer.KAt(0, 4, 0, c);
    for (int pos = 4; pos < 12; ++pos) min = std::min(min, layer.KAt(0, pos, 0, c));
    EXPECT_EQ(layer.At(l.over, l.all.format.over_group_stride + l.all.format.OverOffset(0, c)), min);
  }
}

TEST(CudaPageOps, EmptyListsLaunchNothingAndConfigurationIsOfSizesAlone) {
  Layers l(DType::kBF16, 4, 1, 8, 8, 12, 1);
  EXPECT_TRUE(cuda::CopyPages(Stream{}, l.all, {}).ok());
  EXPECT_TRUE(cuda::ZeroPages(Stream{}, l.all, nullptr, 0).ok());
  EXPECT_EQ(cuda::PageCopyConfig::For(16 * 8 * 128 * 2).ToString(), "2 blocks of 256 threads, 16 B an access");
  EXPECT_EQ(cuda::PageCopyConfig::For(84).ToString(), "1 blocks of 32 threads, 4 B an access");
}

}  // namespace
}  // namespace quire

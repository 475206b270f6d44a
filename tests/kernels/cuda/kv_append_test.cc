// Append of the GPU under the emulator: bit for bit the reference's without a rotation; with one, K and q within their
// storage's rounding of a rotation in double, and metadata exactly that of the K that was stored.
#include "kernels/cuda/kv_append.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "kernels/kv_append.h"
#include "kernels/metadata_codes.h"
#include "kernels/reference/elementwise.h"
#include "kernels/reference/kv_append.h"
#include "tests/kernels/cuda/emulator/options.h"
#include "tests/kernels/cuda/paged_layer.h"
#include "tests/kernels/cuda/typed.h"

namespace quire {
namespace {

using testing::PagedLayer;
using testing::SeededFloats;
using testing::Typed;

struct Rows {
  std::vector<int32_t> seq, pos;
};

// The next step of sequences that grow to `lengths`: single tokens every third time, chunks of up to `most` otherwise.
Rows NextRows(std::vector<int>& at, const std::vector<int>& lengths, int step, int most, std::mt19937_64& random) {
  Rows rows;
  for (size_t s = 0; s < lengths.size(); ++s) {
    const int want = step % 3 == 0 ? 1 : static_cast<int>(random() % static_cast<uint64_t>(most));
    for (int n = std::min(want, lengths[s] - at[s]); n > 0; --n) {
      rows.seq.push_back(static_cast<int32_t>(s));
      rows.pos.push_back(at[s]++);
    }
  }
  return rows;
}

struct Case {
  DType dtype;  // of the cache
  bool float_rows;
  int page_size, kv_heads, k_dim, v_dim;
  bool metadata;
};

void AgreesWithTheReference(const Case& c, const std::vector<int>& lengths, int most, uint64_t seed) {
  SCOPED_TRACE(::testing::Message() << DTypeName(c.dtype) << " page " << c.page_size << " heads " << c.kv_heads << " d " << c.k_dim
                                    << "/" << c.v_dim << (c.metadata ? " metadata" : "") << " seed " << seed);
  emulator::Options options;
  options.seed = seed;
  const emulator::ScopedOptions scoped(options);
  PagedLayer gpu(c.dtype, c.page_size, c.kv_heads, c.k_dim, c.v_dim, lengths, c.metadata);
  PagedLayer slow = gpu;
  std::mt19937_64 random(seed);
  std::vector<int> at(lengths.size(), 0);
  const DType dtype = c.float_rows ? DType::kF32 : c.dtype;
  for (int step = 0; at != lengths; ++step) {
    Rows rows = NextRows(at, lengths, step, most, random);
    const size_t k_stride = static_cast<size_t>(c.kv_heads * c.k_dim + 6), v_stride = static_cast<size_t>(c.kv_heads * c.v_dim + 3);
    const Typed k(dtype, SeededFloats(rows.seq.size() * k_stride, ++seed));
    const Typed v(dtype, SeededFloats(rows.seq.size() * v_stride, ++seed));
    const std::vector<float> kf = k.Floats(), vf = v.Floats();
    quire::KvAppendParams r{slow.Pages(), slow.Table(), kf.data(), static_cast<int64_t>(k_stride), vf.data(),
                            static_cast<int64_t>(v_stride), rows.seq.data(), rows.pos.data(), static_cast<int64_t>(rows.seq.size())};
    reference::KvAppend(r);
    cuda::KvAppendParams p;
    p.pages = gpu.Pages();
    p.table = gpu.Table();
    p.k = k.data();
    p.k_stride = r.k_stride;
    p.v = v.data();
    p.v_stride = r.v_stride;
    p.row_seq = rows.seq.data();
    p.row_pos = rows.pos.data();
    p.rows = r.rows;
    ASSERT_TRUE(cuda::KvAppend(Stream{}, dtype, p).ok());
  }
  EXPECT_TRUE(gpu.k == slow.k);
  EXPECT_TRUE(gpu.v == slow.v);
  EXPECT_TRUE(gpu.meta == slow.meta);
  EXPECT_TRUE(gpu.over == slow.over);
}

TEST(CudaKvAppend, AgreesWithTheReferenceBitForBit) {
  uint64_t seed = 1;
  for (const Case& c : {Case{DType::kBF16, false, 16, 2, 64, 64, true}, Case{DType::kF16, false, 7, 3, 8, 6, true},
                        Case{DType::kF32, true, 3, 1, 80, 128, true}, Case{DType::kBF16, true, 1, 2, 64, 64, true},
                        Case{DType::kF16, true, 64, 1, 96, 64, true}, Case{DType::kBF16, false, 16, 3, 64, 64, false},
                        Case{DType::kBF16, false, 16, 1, 256, 256, true}}) {
    AgreesWithTheReference(c, {100, 1, 41}, 60, seed += 100);
  }
}

TEST(SlowCudaKvAppend, AgreesWithTheReferenceOnTheWholeGrid) {
  uint64_t seed = 1;
  for (const DType dtype : testing::kFloatDTypes) {
    for (const int page_size : {1, 3, 7, 16, 32, 64}) {
      for (const int dim : {64, 80, 96, 128, 256}) {
        for (const int heads : {1, 3, 8}) {
          if ((dim + page_size + heads) % 3 != 0) continue;  // a third of the grid; every pair of values stays in it
          AgreesWithTheReference({dtype, seed % 2 == 0, page_size, heads, dim, dim, true}, {page_size * 20 + 5, 1, 41, 17}, 5 * page_size + 60,
                                 seed += 100);
        }
      }
    }
  }
}

// Rows of evicting sequences, on the CPU too: every head writes over a slot of its own, one of them the last of a word.
TEST(CudaKvAppend, HeadsWriteAtPositionsOfTheirOwn) {
  ThreadPool pool(2);
  Context ctx;
  ctx.pool = &pool;
  for (const Case& c : {Case{DType::kBF16, true, 16, 3, 64, 64, false}, Case{DType::kF16, false, 3, 2, 8, 6, false},
                        Case{DType::kF32, true, 1, 4, 80, 128, false}}) {
    SCOPED_TRACE(::testing::Message() << DTypeName(c.dtype) << " page " << c.page_size);
    PagedLayer gpu(c.dtype, c.page_size, c.kv_heads, c.k_dim, c.v_dim, {50, 20, 33}, false);
    PagedLayer slow = gpu, cpu = gpu;
    const DType dtype = c.float_rows ? DType::kF32 : c.dtype;
    const int64_t k_stride = c.kv_heads * c.k_dim + 6, v_stride = c.kv_heads * c.v_dim + 3;
    const Typed k(dtype, SeededFloats(static_cast<size_t>(4 * k_stride), 1)), v(dtype, SeededFloats(static_cast<size_t>(4 * v_stride), 2));
    const std::vector<float> kf = k.Floats(), vf = v.Floats();
    const std::vector<int32_t> seq{2, 0, -1, 1};
    std::vector<int32_t> pos;  // [kv_heads][rows], and one number between
    for (int h = 0; h < c.kv_heads; ++h) pos.insert(pos.end(), {31 - 7 * h, 49 - h, -9, 5 + 3 * h, -9});
    cuda::KvAppendParams p;
    p.pages = gpu.Pages();
    p.table = gpu.Table();
    p.k = k.data();
    p.k_stride = k_stride;
    p.v = v.data();
    p.v_stride = v_stride;
    p.row_seq = seq.data();
    p.row_pos = pos.data();
    p.rows = 4;
    p.pos_head_stride = 5;
    ASSERT_TRUE(cuda::KvAppend(Stream{}, dtype, p).ok());
    for (const int first : {0, 3}) {  // all but the empty row, which the CPU has none of
      quire::KvAppendParams r{slow.Pages(), slow.Table(), kf.data() + first * k_stride, k_stride, vf.data() + first * v_stride, v_stride,
                              seq.data() + first, pos.data() + first, first == 0 ? 2 : 1, 5};
      reference::KvAppend(r);
      r.pages = cpu.Pages();
      r.table = cpu.Table();
      KvAppend(ctx, r);
    }
    EXPECT_TRUE(gpu.k == slow.k);
    EXPECT_TRUE(gpu.v == slow.v);
    EXPECT_TRUE(cpu.k == slow.k);
    EXPECT_TRUE(cpu.v == slow.v);
    EXPECT_EQ(gpu.KAt(0, 48, 1, 1), slow.KAt(0, 48, 1, 1));
    EXPECT_NE(gpu.KAt(0, 48, 1, 1), gpu.KAt(0, 48, 0, 1));
    PagedLayer with_metadata(c.dtype, c.page_size, c.kv_heads, c.k_dim, c.v_dim, {50, 20, 33});
    p.pages = with_metadata.Pages();
    p.table = with_metadata.Table();
    EXPECT_EQ(cuda::KvAppend(Stream{}, dtype, p).code(), StatusCode::kInternal);
  }
}

// Codes of 8 bits as the CPU makes them, of groups whose last token came alone, in a chunk, or with another group's first; none
// before that.
TEST(CudaKvAppend, WholeGroupsAreEncodedAsOnTheCpu) {
  ThreadPool pool(1);
  Context ctx;
  ctx.pool = &pool;
  uint64_t seed = 1;
  for (const Case& c : {Case{DType::kBF16, true, 2, 2, 64, 64, true}, Case{DType::kF16, true, 1, 1, 80, 8, true},
                        Case{DType::kF32, true, 3, 2, 33, 8, true}, Case{DType::kBF16, false, 4, 1, 256, 16, true}}) {
    SCOPED_TRACE(::testing::Message() << DTypeName(c.dtype) << " page " << c.page_size << " d " << c.k_dim);
    const int group_tokens = c.page_size * kPagesPerGroup;
    const std::vector<int> lengths{3 * group_tokens + 5, 2 * group_tokens, group_tokens - 1};
    PagedLayer gpu(c.dtype, c.page_size, c.kv_heads, c.k_dim, c.v_dim, lengths, true, true);
    PagedLayer cpu = gpu;
    std::mt19937_64 random(seed);
    std::vector<int> at(lengths.size(), 0);
    for (int step = 0; at != lengths; ++step) {
      const Rows rows = NextRows(at, lengths, step, step % 3 == 1 ? 2 * group_tokens : 9, random);
      const int64_t k_stride = c.kv_heads * c.k_dim, v_stride = c.kv_heads * c.v_dim, n = static_cast<int64_t>(rows.seq.size());
      const DType dtype = c.float_rows ? DType::kF32 : c.dtype;
      const Typed k(dtype, SeededFloats(static_cast<size_t>(n * k_stride), ++seed));
      const Typed v(dtype, SeededFloats(static_cast<size_t>(n * v_stride), ++seed));
      const std::vector<float> kf = k.Floats(), vf = v.Floats();
      KvAppend(ctx, {cpu.Pages(), cpu.Table(), kf.data(), k_stride, vf.data(), v_stride, rows.seq.data(), rows.pos.data(), n});
      cuda::KvAppendParams p;
      p.pages = gpu.Pages();
      p.table = gpu.Table();
      p.k = k.data();
      p.k_stride = k_stride;
      p.v = v.data();
      p.v_stride = v_stride;
      p.row_seq = rows.seq.data();
      p.row_pos = rows.pos.data();
      p.rows = n;
      ASSERT_TRUE(cuda::KvAppend(Stream{}, dtype, p).ok());
      ASSERT_TRUE(gpu.meta == cpu.meta && gpu.over == cpu.over) << step;
      ASSERT_TRUE(gpu.codes == cpu.codes) << step;
    }
  }
}

// A block of channels that has an infinity is marked, and leaves the others as they are.
TEST(CudaKvAppend, ChannelsThatVaryTooMuchHaveNoCodes) {
  ThreadPool pool(1);
  Context ctx;
  ctx.pool = &pool;
  PagedLayer gpu(DType::kF32, 1, 1, 80, 8, {kPagesPerGroup}, true, true);
  PagedLayer cpu = gpu;
  std::vector<float> k = SeededFloats(kPagesPerGroup * 80, 1), v = SeededFloats(kPagesPerGroup * 8, 2);
  k[5 * 80 + 40] = INFINITY;
  k[7 * 80 + 79] = 3e38f;
  k[9 * 80 + 79] = -3e38f;  // whose difference is infinite
  const std::vector<int32_t> seq(kPagesPerGroup, 0), pos{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  KvAppend(ctx, {cpu.Pages(), cpu.Table(), k.data(), 80, v.data(), 8, seq.data(), pos.data(), kPagesPerGroup});
  cuda::KvAppendParams p;
  p.pages = gpu.Pages();
  p.table = gpu.Table();
  p.k = k.data();
  p.k_stride = 80;
  p.v = v.data();
  p.v_stride = 8;
  p.row_seq = seq.data();
  p.row_pos = pos.data();
  p.rows = kPagesPerGroup;
  ASSERT_TRUE(cuda::KvAppend(Stream{}, DType::kF32, p).ok());
  const auto* a = gpu.Pages().codes + gpu.groups[0] * gpu.format.meta_group_stride;
  const auto* b = cpu.Pages().codes + gpu.groups[0] * gpu.format.meta_group_stride;
  for (int c0 = 0; c0 < 80; c0 += kCodeChannels) {
    const bool marked = c0 > 0;
    for (const uint8_t* codes : {a, b}) {
      EXPECT_EQ(codes[gpu.format.MetaOffset(0, c0, 0)] > codes[gpu.format.MetaOffset(1, c0, 0)], marked) << c0;
    }
  }
  EXPECT_TRUE(std::equal(a, a + kCodeChannels * kPagesPerGroup, b));
}

struct Rotation {
  int rotary_dim;
  bool interleaved;
};

void RotatesAndKeepsMetadata(DType dtype, int page_size, int kv_heads, int q_heads, int dim, Rotation rotation, uint64_t seed) {
  SCOPED_TRACE(::testing::Message() << DTypeName(dtype) << " page " << page_size << " d " << dim << " rotary " << rotation.rotary_dim
                                    << (rotation.interleaved ? " interleaved" : ""));
  const std::vector<int> lengths{70, 1, 23};
  PagedLayer layer(dtype, page_size, kv_heads, dim, dim, lengths);
  const int half = rotation.rotary_dim / 2;
  std::vector<float> inv_freq(static_cast<size_t>(half));
  for (int i = 0; i < half; ++i) inv_freq[static_cast<size_t>(i)] = static_cast<float>(std::pow(10000.0, -1.0 * i / half));
  std::mt19937_64 random(seed);
  std::vector<int> at(lengths.size(), 0);
  for (int step = 0; at != lengths; ++step) {
    const Rows rows = NextRows(at, lengths, step, 40, random);
    const auto n = static_cast<int64_t>(rows.seq.size());
    std::vector<float> table(static_cast<size_t>(n * rotation.rotary_dim));
    for (int64_t r = 0; r < n; ++r) {
      for (int i = 0; i < half; ++i) {
        const double angle = double{inv_freq[static_cast<size_t>(i)]} * rows.pos[static_cast<size_t>(r)];
        table[static_cast<size_t>(r * rotation.rotary_dim + i)] = static_cast<float>(std::cos(angle));
        table[static_cast<size_t>(r * rotation.rotary_dim + half + i)] = static_cast<float>(std::sin(angle));
      }
    }
    const int64_t q_stride = q_heads * dim + 2, k_stride = kv_heads * dim;
    Typed q(dtype, SeededFloats(static_cast<size_t>(n * q_stride), ++seed));
    const Typed k(dtype, SeededFloats(static_cast<size_t>(n * k_stride), ++seed));
    const Typed v(dtype, SeededFloats(static_cast<size_t>(n * k_stride), ++seed));
    std::vector<float> q_want = q.Floats(), k_want = k.Floats();
    const auto turn = [&](std::vector<float>& x, int64_t stride, int heads) {
      RopeParams r;
      r.x = x.data();
      r.x_stride = stride;
      r.rows = n;
      r.heads = heads;
      r.head_dim = dim;
      r.rotary_dim = rotation.rotary_dim;
      r.interleaved = rotation.interleaved;
      r.positions = rows.pos.data();
      reference::Rope(r, inv_freq.data());
    };
    turn(q_want, q_stride, q_heads);
    turn(k_want, k_stride, kv_heads);
    cuda::KvAppendParams p;
    p.pages = layer.Pages();
    p.table = layer.Table();
    p.q = q.data();
    p.q_stride = q_stride;
    p.q_heads = q_heads;
    p.k = k.data();
    p.k_stride = k_stride;
    p.v = v.data();
    p.v_stride = k_stride;
    p.cos_sin = table.data();
    p.rotary_dim = rotation.rotary_dim;
    p.interleaved = rotation.interleaved;
    p.row_seq = rows.seq.data();
    p.row_pos = rows.pos.data();
    p.rows = n;
    ASSERT_TRUE(cuda::KvAppend(Stream{}, dtype, p).ok());
    // Two f32 products of values below 6 and the storage's rounding.
    const auto near = [&](float got, float want) {
      return std::abs(got - want) <= 5e-6 + Typed::HalfUlp(dtype) * std::abs(want) * 1.01 + Typed::Least(dtype);
    };
    for (size_t i = 0; i < q_want.size(); ++i) ASSERT_TRUE(near(q.At(i), q_want[i])) << i << ": " << q.At(i) << ", " << q_want[i];
    for (int64_t r = 0; r < n; ++r) {
      for (int h = 0; h < kv_heads; ++h) {
        for (int c = 0; c < dim; ++c) {
          const int seq = rows.seq[static_cast<size_t>(r)], pos = rows.pos[static_cast<size_t>(r)];
          ASSERT_TRUE(near(layer.KAt(seq, pos, h, c), k_want[static_cast<size_t>(r * k_stride + h * dim + c)])) << r << " " << c;
          ASSERT_EQ(layer.VAt(seq, pos, h, c), v.At(static_cast<size_t>(r * k_stride + h * dim + c)));
        }
      }
    }
  }
  for (int s = 0; s < 3; ++s) {
    for (int page = 0; page * page_size < lengths[static_cast<size_t>(s)]; ++page) {
      for (int h = 0; h < kv_heads; ++h) {
        for (int c = 0; c < dim; ++c) {
          float min = layer.KAt(s, page * page_size, h, c), max = min;
          for (int pos = page * page_size; pos < std::min(lengths[static_cast<size_t>(s)], (page + 1) * page_size); ++pos) {
            min = std::min(min, layer.KAt(s, pos, h, c));
            max = std::max(max, layer.KAt(s, pos, h, c));
          }
          ASSERT_EQ(layer.MetaAt(s, page, h, 0, c), min);
          ASSERT_EQ(layer.MetaAt(s, page, h, 1, c), max);
        }
      }
    }
  }
}

TEST(CudaKvAppend, RotatesQAndKOnTheWay) {
  RotatesAndKeepsMetadata(DType::kBF16, 16, 2, 8, 64, {64, false}, 1);
  RotatesAndKeepsMetadata(DType::kF16, 7, 1, 3, 80, {20, false}, 2);
  RotatesAndKeepsMetadata(DType::kF32, 16, 1, 1, 96, {32, true}, 3);
  RotatesAndKeepsMetadata(DType::kBF16, 3, 2, 2, 6, {6, true}, 4);
  RotatesAndKeepsMetadata(DType::kBF16, 16, 1, 2, 10, {10, false}, 5);  // half a rotation is odd: words straddle it
}

TEST(CudaKvAppend, PaddingRowsWriteNothing) {
  PagedLayer layer(DType::kBF16, 16, 1, 8, 8, {32});
  const PagedLayer before = layer;
  const Typed rows(DType::kBF16, SeededFloats(16, 1));
  const std::vector<int32_t> seq{-1, -1}, pos{0, 0};
  cuda::KvAppendParams p;
  p.pages = layer.Pages();
  p.table = layer.Table();
  p.k = p.v = rows.data();
  p.k_stride = p.v_stride = 8;
  p.row_seq = seq.data();
  p.row_pos = pos.data();
  p.rows = 2;
  ASSERT_TRUE(cuda::KvAppend(Stream{}, DType::kBF16, p).ok());
  EXPECT_TRUE(layer.k == before.k && layer.v == before.v && layer.meta == before.meta && layer.over == before.over);
}

TEST(CudaKvAppend, RefusesWhatItCannotDo) {
  PagedLayer layer(DType::kBF16, 16, 1, 8, 8, {32});
  cuda::KvAppendParams p;
  p.pages = layer.Pages();
  p.table = layer.Table();
  EXPECT_EQ(cuda::KvAppend(Stream{}, DType::kF16, p).code(), StatusCode::kInvalidArgument);
  const float table[3] = {};
  p.cos_sin = table;
  p.rotary_dim = 10;
  EXPECT_EQ(cuda::KvAppend(Stream{}, DType::kBF16, p).code(), StatusCode::kInvalidArgument);
  p.cos_sin = nullptr;
  p.pages.over = nullptr;
  EXPECT_EQ(cuda::KvAppend(Stream{}, DType::kBF16, p).code(), StatusCode::kInternal);
}

TEST(CudaKvAppend, ConfigurationIsOfSizesAlone) {
  const PageFormat f = *PageFormat::Create(DType::kBF16, 16, 8, 128, 128);
  EXPECT_EQ(cuda::KvAppendConfig::For(f, 32, 16, 16).ToString(), "64 x 1 threads, 8 blocks of 4 q heads, 0 B shared");
  EXPECT_EQ(cuda::KvAppendConfig::For(f, 32, 2048, 1).ToString(), "64 x 4 threads, 2 blocks of 16 q heads, 4096 B shared");
  EXPECT_EQ(cuda::KvAppendConfig::For(f, 0, 1, 1).ToString(), "64 x 1 threads, 0 blocks of 0 q heads, 0 B shared");
  EXPECT_EQ(cuda::KvAppendConfig::For(*PageFormat::Create(DType::kF32, 16, 1, 256, 256), 1, 100, 3).threads(), 512);
}

}  // namespace
}  // namespace quire

// FlexAttention's functors in the GPU's kernels under the emulator: the soft cap that is compiled with the library, and
// shipped and own functors put into the plain and the tensor-core kernels here, against the reference (which
// tests/kernels/attention_mod_grid_test.cc holds to the full matrix of scores).
#include "kernels/cuda/flex_attention.cuh"

#include <gtest/gtest.h>

#include "kernels/block_mask.h"
#include "tests/kernels/cuda/emulator/options.h"
#include "tests/kernels/decode_call.h"
#include "tests/kernels/prefill_call.h"

namespace quire {
namespace {

using testing::DecodeCall;
using testing::PagedCache;
using testing::PrefillCall;
using testing::RelativeError;
using testing::SameBits;

Context Pool() {
  static ThreadPool pool(2);
  Context ctx;
  ctx.pool = &pool;
  return ctx;
}

// Functors as a user writes them: heads differ, and nothing is known of ranges.
struct OwnScore {
  QUIRE_HOST_DEVICE float operator()(float score, int seq, int head, int64_t q_idx, int64_t kv_idx) const {
    return 0.5f * score - 0.03f * static_cast<float>(head + seq) * static_cast<float>((q_idx - kv_idx) % 7);
  }
};
struct OwnMask {
  QUIRE_HOST_DEVICE bool operator()(int, int head, int64_t q_idx, int64_t kv_idx) const {
    return (kv_idx + head) % 3 != 0 || kv_idx == q_idx;
  }
};

int MostPages(const DecodeCall& call) {
  const int size = call.p.table.format.page_size;
  return (*std::max_element(call.len.begin(), call.len.end()) + size - 1) / size;
}

// As cuda::AttentionDecode, but for one width and number of heads of either kernel: they are long to compile.
template <typename T, class Mod>
void Decode(DecodeCall& call, const Mod& mod, uint64_t seed) {
  emulator::Options options;
  options.seed = seed;
  const emulator::ScopedOptions scoped(options);
  const AttentionDecodeParams params = call.Params();
  std::vector<float> workspace(cuda::AttentionDecodeWorkspace(params, MostPages(call)) / sizeof(float),
                               std::numeric_limits<float>::quiet_NaN());
  cuda::ModDecodeArgs<Mod> args{{}, mod};
  ASSERT_TRUE(cuda::MakeDecodeArgs(params, MostPages(call), workspace.data(), nullptr, &args).ok());
  const PageFormat& f = params.table.format;
  if constexpr (sizeof(T) == 2) {
    if (args.c.tensor_cores) {
      ASSERT_EQ(f.k_dim, 64);
      ASSERT_EQ(args.c.heads_per_pass, 8);
      const Status status = simt::Launch<cuda::TensorDecodeKernel<T, 64, 1, Mod>>(cuda::DecodeShape(args), Stream{}, args);
      ASSERT_TRUE(status.ok()) << status.ToString();
    }
  }
  if (!args.c.tensor_cores) {
    ASSERT_EQ(args.c.heads_per_pass, 4);
    const Status status = cuda::LaunchPlainDecode<T, 4, 4>(Stream{}, args);
    ASSERT_TRUE(status.ok()) << status.ToString();
  }
  if (!args.c.direct) {
    ASSERT_TRUE(cuda::LaunchDecodeMerge(Stream{}, args).ok());
  }
  if (params.mass != nullptr) {
    using Mass = cuda::MassKernel<T, Mod>;
    simt::LaunchShape shape;
    shape.grid_x = (params.mass_pages + Mass::kPages - 1) / Mass::kPages;
    shape.grid_y = f.kv_heads;
    shape.grid_z = params.rows;
    shape.threads = Mass::kMaxThreads;
    shape.shared_bytes = Mass::Bytes(f);
    ASSERT_TRUE(simt::Launch<Mass>(shape, Stream{}, args).ok());
  }
}

template <typename T, class Mod>
void Prefill(PrefillCall& call, const Mod& mod, uint64_t seed) {
  emulator::Options options;
  options.seed = seed;
  const emulator::ScopedOptions scoped(options);
  const AttentionPrefillParams params = call.Params();
  cuda::ModPrefillArgs<Mod> args{{}, mod};
  simt::LaunchShape shape;
  ASSERT_TRUE(cuda::MakePrefillArgs(params, call.rows, &args, &shape).ok());
  Status status;
  if constexpr (sizeof(T) == 2) {
    if (args.c.tensor_cores) {
      ASSERT_EQ(params.table.format.k_dim, 64);
      status = simt::Launch<cuda::TensorPrefillKernel<T, 64, 2, Mod>>(shape, Stream{}, args);
    }
  }
  if (!args.c.tensor_cores) status = simt::Launch<cuda::PlainPrefillKernel<T, Mod>>(shape, Stream{}, args);
  ASSERT_TRUE(status.ok()) << status.ToString();
}

// Queries of the cache's type: tensor cores round them for prefill.
template <typename T>
void RoundQueries(std::vector<float>& q) {
  for (float& x : q) x = ToFloat(FromFloat<T>(x));
}

struct Shape {
  int page_size, q_heads, kv_heads, dim;
  bool tensor_cores;  // of decode, in 16-bit caches; prefill's take any group
};
const Shape kShapes[] = {{16, 4, 1, 64, true}, {8, 10, 2, 64, true}, {7, 6, 2, 20, false}, {16, 3, 1, 40, false}};

// Against the reference, with NaN in what no query of the call sees: positions [0, masked) of the first sequence.
template <typename T, class Mod>
void Check(const Mod& mod, int masked = 0) {
  for (const Shape& s : kShapes) {
    const DType dtype = std::is_same_v<T, BF16> ? DType::kBF16 : std::is_same_v<T, F16> ? DType::kF16 : DType::kF32;
    SCOPED_TRACE(::testing::Message() << "page " << s.page_size << ", heads " << s.q_heads << "/" << s.kv_heads << ", d "
                                      << s.dim << ", " << DTypeName(dtype));
    PagedCache cache(dtype, s.page_size, s.kv_heads, s.dim, s.dim, {330, 41, 1}, 1);
    cache.Fill(Pool());
    DecodeCall decode(cache, s.q_heads, {0, 1, 2, 1}, {330, 41, 1, 0}, 2, 3, 5);
    decode.p.scale *= 2;
    const int pages = MostPages(decode);
    decode.mass.assign(4 * static_cast<size_t>(s.kv_heads * pages), -1.0f);
    decode.p.mass_pages = pages;
    PrefillCall prefill(cache, s.q_heads, {20, 41, 1}, 3, 3, 5);
    prefill.p.scale *= 2;
    RoundQueries<T>(prefill.q);
    DecodeCall decode_reference = decode;
    PrefillCall prefill_reference = prefill;
    reference::AttentionDecode(decode_reference.Params(), mod);
    reference::AttentionPrefill(prefill_reference.Params(), mod);
    for (int page = 0; (page + 1) * s.page_size <= masked; ++page) cache.PoisonPage(cache.PageId(0, page));
    Decode<T>(decode, mod, 7);
    const double f32 = 3e-5;
    EXPECT_LE(RelativeError(decode.out, decode_reference.out), f32);
    EXPECT_LE(RelativeError(decode.lse, decode_reference.lse), f32);
    EXPECT_LE(RelativeError(decode.mass, decode_reference.mass), f32);
    Prefill<T>(prefill, mod, 8);
    const bool rounded = cuda::AttentionPrefillConfig::For(cache.table().format).tensor_cores;
    EXPECT_LE(RelativeError(prefill.out, prefill_reference.out), !rounded ? f32 : dtype == DType::kBF16 ? 5e-3 : 7e-4);
    EXPECT_LE(RelativeError(prefill.lse, prefill_reference.lse), f32);
  }
}

TEST(CudaAttentionMod, OwnFunctorsAgreeWithTheReference) {
  Check<BF16>(Flex(OwnScore{}, OwnMask{}));
  Check<float>(Flex(OwnScore{}, OwnMask{}));
}
TEST(CudaAttentionMod, AWindowAgreesAndWhatIsOutsideIsNotRead) { Check<BF16>(FlexMask(WindowMask{60}), 250); }
TEST(CudaAttentionMod, ABiasInAWindowOfADocumentAgreesAndWhatIsOutsideIsNotRead) {
  std::vector<int32_t> document;
  for (int i = 0; i < 330; ++i) document.push_back(i < 290 ? 0 : 1);
  std::vector<float> slopes;
  for (int h = 0; h < 10; ++h) slopes.push_back(AlibiSlope(h, 10));
  Check<F16>(Flex(Then(SoftCap{2.0f}, Alibi{slopes.data()}), And(WindowMask{60}, DocumentMask{document.data(), nullptr})),
             250);
}
TEST(CudaAttentionMod, RowsOfAPrefixSeeEachOther) {
  const int32_t prefix[] = {320, 30, 1};
  Check<BF16>(FlexMask(PrefixLmMask{prefix}));
}

TEST(CudaAttentionMod, ABlockMaskChangesNothingAndItsMaskedPagesAreNotRead) {
  struct Mask {
    bool operator()(int, int, int64_t, int64_t kv) const { return kv < 20 || kv >= 300; }
  };
  PagedCache cache(DType::kBF16, 16, 1, 64, 64, {330}, 1);
  cache.Fill(Pool());
  const BlockMaskSequence rows{310, 330, 330};
  const BlockMask blocks = BlockMask::Derive(Mask{}, {&rows, 1}, 4, 16);
  DecodeCall plain(cache, 4, {0}, {330}, 2), table = plain;
  PrefillCall plain_prefill(cache, 4, {20}, 3), table_prefill = plain_prefill;
  Decode<BF16>(plain, FlexMask(Mask{}), 1);
  Prefill<BF16>(plain_prefill, FlexMask(Mask{}), 2);
  for (int page = 2; page < 18; ++page) cache.PoisonPage(cache.PageId(0, page));
  Decode<BF16>(table, FlexMask(WithBlocks(Mask{}, blocks)), 3);
  Prefill<BF16>(table_prefill, FlexMask(WithBlocks(Mask{}, blocks)), 4);
  EXPECT_TRUE(SameBits(table.out, plain.out));
  EXPECT_TRUE(SameBits(table_prefill.out, plain_prefill.out));
}

TEST(CudaAttentionMod, AFullyMaskedRowIsZeroAndMinusInfinity) {
  struct Nothing {
    bool operator()(int, int, int64_t, int64_t) const { return false; }
  };
  for (const Shape& s : kShapes) {
    PagedCache cache(DType::kBF16, s.page_size, s.kv_heads, s.dim, s.dim, {70}, 1);
    cache.Fill(Pool());
    DecodeCall decode(cache, s.q_heads, {0}, {70}, 2);
    PrefillCall prefill(cache, s.q_heads, {9}, 3);
    Decode<BF16>(decode, Flex(OwnScore{}, Nothing{}), 1);
    Prefill<BF16>(prefill, Flex(OwnScore{}, Nothing{}), 1);
    for (const auto* out : {&decode.out, &prefill.out}) {
      for (const float x : *out) ASSERT_EQ(x, 0.0f);
    }
    for (const auto* lse : {&decode.lse, &prefill.lse}) {
      for (const float x : *lse) ASSERT_EQ(x, -std::numeric_limits<float>::infinity());
    }
  }
}

// What the library brings: all widths, by the public functions.
TEST(CudaAttentionMod, TheLibrarysSoftCapAgreesWithTheReference) {
  const SoftCapMod mod{SoftCap{2.0f}, {}};
  const std::tuple<DType, int, int, int, int> shapes[] = {{DType::kBF16, 16, 8, 1, 256}, {DType::kF16, 8, 4, 1, 128},
                                                         {DType::kBF16, 16, 12, 1, 96}, {DType::kF32, 5, 2, 1, 24}};
  for (const auto& [dtype, page_size, q_heads, kv_heads, dim] : shapes) {
    PagedCache cache(dtype, page_size, kv_heads, dim, dim, {150}, 1);
    cache.Fill(Pool());
    DecodeCall decode(cache, q_heads, {0}, {150}, 2);
    decode.p.scale *= 3;
    DecodeCall expected = decode;
    reference::AttentionDecode(expected.Params(), mod);
    std::vector<float> workspace(cuda::AttentionDecodeWorkspace(decode.Params(), MostPages(decode)) / sizeof(float));
    ASSERT_TRUE(cuda::AttentionDecode(Stream{}, decode.Params(), MostPages(decode), mod, workspace.data()).ok());
    EXPECT_LE(RelativeError(decode.out, expected.out), 3e-5) << dim;
    PrefillCall prefill(cache, q_heads, {12}, 3);
    prefill.p.scale *= 3;
    VisitFloatDType(dtype, [&](auto t) { RoundQueries<decltype(t)>(prefill.q); });
    PrefillCall prefill_expected = prefill;
    reference::AttentionPrefill(prefill_expected.Params(), mod);
    ASSERT_TRUE(cuda::AttentionPrefill(Stream{}, prefill.Params(), prefill.rows, mod).ok());
    EXPECT_LE(RelativeError(prefill.out, prefill_expected.out), 5e-3) << dim;
  }
}

// Begins behind every query's own key.
struct SeesNothing {
  static constexpr bool kIsRun = true;
  QUIRE_HOST_DEVICE int64_t FirstKey(int64_t q) const { return q + 1; }
  QUIRE_HOST_DEVICE bool operator()(int, int, int64_t, int64_t) const { return false; }
};

TEST(CudaAttentionMod, ARowWhoseFirstKeyIsBehindItsOwnSeesNothing) {
  for (const Shape& s : {kShapes[0], kShapes[2]}) {
    PagedCache cache(DType::kBF16, s.page_size, s.kv_heads, s.dim, s.dim, {90, 64}, 1);
    cache.Fill(Pool());
    DecodeCall decode(cache, s.q_heads, {0, 1}, {90, 64}, 2);
    PrefillCall prefill(cache, s.q_heads, {40, 64}, 3);
    Decode<BF16>(decode, FlexMask(SeesNothing{}), 4);
    Prefill<BF16>(prefill, FlexMask(SeesNothing{}), 5);
    const auto is = [](float value) { return [value](float x) { return x == value; }; };
    EXPECT_TRUE(std::ranges::all_of(decode.out, is(0)) && std::ranges::all_of(prefill.out, is(0)));
    EXPECT_TRUE(std::ranges::all_of(decode.lse, is(-std::numeric_limits<float>::infinity())));
    EXPECT_TRUE(std::ranges::all_of(prefill.lse, is(-std::numeric_limits<float>::infinity())));
  }
}

}  // namespace
}  // namespace quire

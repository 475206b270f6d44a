// The mass of prompt rows, and that of decode rows by slots, on the GPU under the emulator, against the reference; and that a
// row's bits depend on the row alone.
#include "kernels/cuda/prefill_mass.h"

#include <gtest/gtest.h>

#include "kernels/reference/attention_mass.h"
#include "tests/kernels/cuda/emulator/options.h"
#include "tests/kernels/cuda/typed.h"
#include "tests/kernels/pairwise.h"
#include "tests/kernels/prefill_call.h"

namespace quire {
namespace {

using testing::PagedCache;
using testing::RelativeError;
using testing::SameBits;

Context Pool() {
  static ThreadPool pool(2);
  Context ctx;
  ctx.pool = &pool;
  return ctx;
}

// The last rows of sequence 0, with the log-sum-exps of the reference.
struct MassCall {
  MassCall(const PagedCache& cache, int q_heads, int tail, uint64_t seed) : prefill(cache, q_heads, {tail}, seed, 3) {
    prefill.RunReference();
  }
  PrefillMassParams Params(std::vector<float>* mass, int64_t spare_pages = 0, bool by_token = false) {
    PrefillMassParams p;
    p.q = prefill.q.data();
    p.q_stride = prefill.p.q_stride;
    p.lse = prefill.lse.data();
    p.q_heads = prefill.p.q_heads;
    p.chunk = prefill.chunks[0];
    p.pages = prefill.p.pages;
    p.table = prefill.p.table;
    p.scale = prefill.p.scale;
    p.by_token = by_token;
    const int unit = by_token ? 1 : p.table.format.page_size;
    p.mass_pages = (p.chunk.start_pos + p.chunk.rows + unit - 1) / unit + spare_pages;
    mass->assign(static_cast<size_t>(p.chunk.rows * p.table.format.kv_heads * p.mass_pages), -7.0f);
    p.mass = mass->data();
    return p;
  }
  template <class Mod = PlainMod>
  static void Run(const PrefillMassParams& p, uint64_t seed, const Mod& mod = {}) {
    emulator::Options options;
    options.seed = seed;
    const emulator::ScopedOptions scoped(options);
    const Status status = cuda::PrefillMass(Stream{}, p, mod);
    ASSERT_TRUE(status.ok()) << status.ToString();
  }
  testing::PrefillCall prefill;
};

void RunCase(DType dtype, int n, int page_size, int dim, int q_heads, int kv_heads, int tail, uint64_t seed) {
  SCOPED_TRACE(::testing::Message() << "n " << n << " page " << page_size << " d " << dim << " heads " << q_heads << "/"
                                    << kv_heads << " tail " << tail << " " << DTypeName(dtype) << " seed " << seed);
  PagedCache cache(dtype, page_size, kv_heads, dim, dim, {n}, seed);
  cache.Fill(Pool());
  for (int pos = n; pos < cache.Pages(0) * page_size; ++pos) cache.PoisonSlot(0, pos);
  MassCall call(cache, q_heads, std::min(n, tail), seed + 1);
  std::vector<float> mass, expected;
  MassCall::Run(call.Params(&mass, 40), seed);  // more pages than a block takes
  reference::PrefillMass(call.Params(&expected, 40), PlainMod{});
  EXPECT_LE(RelativeError(mass, expected), 1e-5);
  for (size_t i = 0; i < mass.size(); ++i) ASSERT_EQ(mass[i] == 0, expected[i] == 0) << i;
  MassCall::Run(call.Params(&mass, 300, true), seed);
  reference::PrefillMass(call.Params(&expected, 300, true), PlainMod{});
  EXPECT_LE(RelativeError(mass, expected), 1e-5) << "by tokens";
  for (size_t i = 0; i < mass.size(); ++i) ASSERT_EQ(mass[i] == 0, expected[i] == 0) << "token " << i;
}

void RunGrid(const std::vector<int>& lengths) {
  const std::vector<int> pages{1, 3, 7, 16, 32, 64, 300}, dims{64, 80, 96, 128, 256}, tails{1, 5, 40};
  const std::vector<std::pair<int, int>> heads{{32, 32}, {32, 8}, {9, 3}, {8, 1}};
  uint64_t seed = 1;
  for (const std::vector<int>& r : testing::AllPairs({static_cast<int>(lengths.size()), 7, 5, 4, 3, 3})) {
    const auto at = [&](const auto& values, size_t i) { return values[static_cast<size_t>(r[i])]; };
    const int n = at(lengths, 0), most = n > 10000 ? 1 : n > 2000 ? 3 : 40;
    RunCase(testing::kFloatDTypes[r[5]], n, at(pages, 1), at(dims, 2), at(heads, 3).first, at(heads, 3).second,
            std::min(most, at(tails, 4)), seed++);
  }
}

TEST(CudaPrefillMass, AgreesWithTheReferenceOnNamedCorners) {
  RunCase(DType::kBF16, 1, 16, 64, 4, 1, 1, 1);
  RunCase(DType::kBF16, 150, 16, 64, 4, 2, 20, 2);
  RunCase(DType::kF16, 70, 7, 80, 3, 1, 9, 3);
  RunCase(DType::kF32, 50, 1, 18, 2, 2, 5, 4);
  RunCase(DType::kBF16, 130, 32, 64, 2, 1, 10, 5);
  RunCase(DType::kF16, 200, 80, 64, 2, 1, 9, 6);  // a page of several steps
  RunCase(DType::kBF16, 90, 12, 2, 2, 1, 90, 7);  // a whole prompt
  RunCase(DType::kF32, 40, 5, 8, 40, 1, 3, 8);
}
TEST(SlowCudaPrefillMass, AgreesWithTheReferenceOnTheWholeGrid) {
  RunGrid({1, 15, 16, 17, 63, 127, 300, 1110, 4099, 8192, 28837});
}

TEST(CudaPrefillMass, BitsDependNeitherOnTheCutsNorPagesNorOrder) {
  for (const int page_size : {3, 16, 70}) {
    PagedCache cache(DType::kBF16, page_size, 2, 64, 64, {200}, 1);
    cache.Fill(Pool());
    MassCall call(cache, 6, 30, 2);
    std::vector<float> whole;
    const PrefillMassParams p = call.Params(&whole);
    MassCall::Run(p, 1);
    std::vector<float> part;
    for (int begin = 0; begin < p.chunk.rows; begin += 7) {
      PrefillMassParams cut = p;
      const int rows = std::min(7, p.chunk.rows - begin);
      cut.chunk = {0, begin, rows, p.chunk.start_pos + begin};
      cut.mass_pages = (cut.chunk.start_pos + rows + page_size - 1) / page_size;
      part.assign(static_cast<size_t>(rows * 2 * cut.mass_pages), -7.0f);
      cut.mass = part.data();
      MassCall::Run(cut, 9);
      for (int64_t list = 0; list < rows * 2; ++list) {
        ASSERT_EQ(std::memcmp(part.data() + list * cut.mass_pages, whole.data() + (begin * 2 + list) * p.mass_pages,
                              sizeof(float) * static_cast<size_t>(cut.mass_pages)),
                  0);
      }
    }
    cache.PermutePages();
    call.prefill.p.table = cache.table();
    std::vector<float> again;
    MassCall::Run(call.Params(&again), 5);
    EXPECT_TRUE(SameBits(again, whole));
  }
}

TEST(CudaPrefillMass, FreedPagesAndHeadsThatSawNothingGiveZero) {
  for (const int page_size : {16, 40}) {
    PagedCache cache(DType::kF32, page_size, 1, 32, 32, {200}, 1);
    cache.Fill(Pool());
    MassCall call(cache, 2, 20, 2);
    cache.PageId(0, 3) = -1;
    call.prefill.lse[2 * 5] = -INFINITY;  // head 0 of row 5
    std::vector<float> mass;
    const PrefillMassParams p = call.Params(&mass);
    MassCall::Run(p, 2);
    for (int row = 0; row < 20; ++row) {
      EXPECT_EQ(mass[static_cast<size_t>(row * p.mass_pages + 3)], 0.0f);
      double sum = 0;
      for (int64_t page = 0; page < p.mass_pages; ++page) sum += mass[static_cast<size_t>(row * p.mass_pages + page)];
      EXPECT_GT(sum, 0.3);
      EXPECT_LT(sum, row == 5 ? 1.0 : 2.0);
    }
  }
}

TEST(CudaPrefillMass, HonoursASoftCapAndAWindow) {
  PagedCache cache(DType::kF32, 16, 2, 32, 32, {150}, 1);
  cache.Fill(Pool());
  MassCall call(cache, 4, 20, 2);
  for (float& q : call.prefill.q) q *= 6;  // so that it matters
  const SoftCapMod mod{SoftCap{3.0f}, WindowMask{61}};
  reference::AttentionPrefill(call.prefill.Params(), mod);
  std::vector<float> mass, expected, uncapped;
  MassCall::Run(call.Params(&mass), 1, mod);
  reference::PrefillMass(call.Params(&expected), mod);
  reference::PrefillMass(call.Params(&uncapped), PlainMod{});
  EXPECT_LE(RelativeError(mass, expected), 1e-5);
  EXPECT_GT(RelativeError(mass, uncapped), 0.1);
}

// Rows of several sequences and an empty one, each as a prompt's last row by tokens.
template <class Mod>
void CheckSlotMass(DType dtype, int page_size, int dim, int q_heads, int kv_heads, const Mod& mod, uint64_t seed) {
  SCOPED_TRACE(::testing::Message() << DTypeName(dtype) << " page " << page_size << " d " << dim << " heads " << q_heads << "/"
                                    << kv_heads << " seed " << seed);
  const std::vector<int> lengths{1, 300, 17, 128};
  PagedCache cache(dtype, page_size, kv_heads, dim, dim, lengths, seed);
  cache.Fill(Pool());
  for (int s = 0; s < 4; ++s) {
    for (int pos = lengths[static_cast<size_t>(s)]; pos < cache.Pages(s) * page_size; ++pos) cache.PoisonSlot(s, pos);
  }
  testing::PrefillCall attended(cache, q_heads, {1, 1, 1, 1}, seed + 1, 3);
  for (float& q : attended.q) q *= 2;  // so that a cap matters
  reference::AttentionPrefill(attended.Params(), mod);
  constexpr int64_t kSlots = 311;
  const std::vector<int32_t> seq{0, 1, 2, 3, -1}, len{1, 300, 17, 128, -5};
  attended.q.resize(attended.q.size() + static_cast<size_t>(attended.p.q_stride), std::nanf(""));
  attended.lse.resize(attended.lse.size() + static_cast<size_t>(q_heads), std::nanf(""));
  std::vector<float> mass(static_cast<size_t>(5 * kv_heads * kSlots), -7.0f), expected(mass.size(), 0.0f);
  SlotMassParams p;
  p.q = attended.q.data();
  p.q_stride = attended.p.q_stride;
  p.lse = attended.lse.data();
  p.rows = 5;
  p.q_heads = q_heads;
  p.row_seq = seq.data();
  p.row_len = len.data();
  p.pages = attended.p.pages;
  p.table = attended.p.table;
  p.scale = attended.p.scale;
  p.mass = mass.data();
  p.mass_slots = kSlots;
  emulator::Options options;
  options.seed = seed;
  const emulator::ScopedOptions scoped(options);
  ASSERT_TRUE(cuda::SlotMass(Stream{}, p, mod).ok());
  for (int row = 0; row < 4; ++row) {
    PrefillMassParams one;
    one.q = p.q;
    one.q_stride = p.q_stride;
    one.q_heads = q_heads;
    one.chunk = attended.chunks[static_cast<size_t>(row)];
    one.pages = p.pages;
    one.table = p.table;
    one.scale = p.scale;
    one.by_token = true;
    one.mass = expected.data() + row * kv_heads * kSlots;
    one.mass_pages = kSlots;
    reference::PrefillMass(one, mod);
  }
  EXPECT_LE(RelativeError(mass, expected), 1e-5);
  for (size_t i = 0; i < mass.size(); ++i) ASSERT_EQ(mass[i] == 0, expected[i] == 0) << i;
  // The CPU's, whose rows are all there.
  std::vector<float> cpu(static_cast<size_t>(4 * kv_heads * kSlots), -7.0f);
  p.rows = 4;
  p.mass = cpu.data();
  auto workspace = Buffer::Create(SlotMassWorkspace(Pool(), p));
  ASSERT_TRUE(workspace.ok());
  SlotMass(Pool(), p, workspace->data(), Mod::kIsIdentity ? 0.0f : 3.0f);
  mass.resize(cpu.size());
  EXPECT_LE(RelativeError(mass, cpu), 1e-5);
}

TEST(CudaSlotMass, AgreesWithTheReferenceAndTheCpu) {
  const std::vector<int> pages{1, 3, 16, 32, 300}, dims{64, 18, 80, 256};
  const std::vector<std::pair<int, int>> heads{{8, 8}, {8, 2}, {9, 3}, {11, 1}, {5, 1}};
  uint64_t seed = 1;
  for (const std::vector<int>& r : testing::AllPairs({3, 5, 4, 5})) {
    const auto& [q_heads, kv_heads] = heads[static_cast<size_t>(r[3])];
    CheckSlotMass(testing::kFloatDTypes[r[0]], pages[static_cast<size_t>(r[1])], dims[static_cast<size_t>(r[2])], q_heads, kv_heads,
                  PlainMod{}, seed++);
  }
  CheckSlotMass(DType::kBF16, 16, 64, 6, 2, SoftCapMod{SoftCap{3.0f}}, seed);
}

}  // namespace
}  // namespace quire

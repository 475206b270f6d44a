// Decode attention with sinks on a GPU against the reference, and the rotation of queries for it against the CPU's.
#include <gtest/gtest.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "kernels/attention_decode_sinks.h"
#include "kernels/elementwise.h"
#include "kernels/reference/attention_sinks.h"
#include "tests/kernels/cuda/device_copies.h"
#include "tests/kernels/decode_call.h"
#include "tests/kernels/pairwise.h"
#include "tests/kernels/selecting.h"

namespace quire {
namespace {

using namespace quire::testing;  // NOLINT: this file tests nothing else

class GpuSinks : public GpuTest {};
using SlowGpuSinks = GpuSinks;

void RunCase(DType dtype, int n, int page_size, int dim, int q_heads, int kv_heads, int sinks, int window, uint64_t seed) {
  SCOPED_TRACE(::testing::Message() << "n " << n << " page " << page_size << " d " << dim << " heads " << q_heads << "/"
                                    << kv_heads << " sinks " << sinks << " window " << window << " " << DTypeName(dtype));
  const int least = sinks + window;
  PagedCache cache(dtype, page_size, kv_heads, dim, dim, {n, least, least + 9}, seed);
  cache.Fill(TwoThreads());
  DecodeCall call(cache, q_heads, {0, 1, 2}, {n, least, least + 9}, seed + 1, 3, 5);
  const std::vector<float> q_sinks = RandomFloats(call.q.size(), seed + 2);
  AttentionSinksParams p;
  p.decode = call.Params();
  p.window = window;
  p.q_sinks = q_sinks.data();
  p.q_sinks_stride = call.p.q_stride;
  p.softcap = seed % 3 == 0 ? 0.7f : 0;
  p.sinks = sinks;
  reference::AttentionDecodeSinks(p);
  std::vector<float> want = call.out, want_lse = call.lse;
  // What lies between is never read: pages wholly between may be gone.
  for (int page = (sinks + page_size - 1) / page_size; (page + 1) * page_size <= n - window; ++page) {
    cache.PoisonPage(cache.PageId(0, page));
  }
  // Behind the rows an empty one, for which there is 0.
  const auto stride = static_cast<size_t>(call.p.out_stride), heads = static_cast<size_t>(q_heads);
  std::vector<float> q = call.q, turned = q_sinks, out(want.size() + stride, -7.0f), lse(want_lse.size() + heads, -7.0f);
  std::vector<int32_t> seq = call.seq, len = call.len;
  q.resize(q.size() + static_cast<size_t>(call.p.q_stride), NAN);
  turned.resize(q.size(), NAN);
  seq.push_back(-1);
  len.push_back(0);
  want.insert(want.end(), stride, 0.0f);
  std::fill_n(want.end() - 5, 5, -7.0f);
  want_lse.insert(want_lse.end(), heads, -INFINITY);
  DeviceCopies there;
  p.decode.q = there.Copy(q);
  p.q_sinks = there.Copy(turned);
  p.decode.out = there.Copy(out);
  p.decode.lse = there.Copy(lse);
  p.decode.row_seq = there.Copy(seq);
  p.decode.row_len = there.Copy(len);
  ++p.decode.rows;
  p.decode.longest = std::max(n, least + 9) + 200;
  there.CopyCache(cache, &p.decode.pages, &p.decode.table);
  AttentionDecodeSinks(there.ctx(), p, there.Dirty(AttentionSinksWorkspace(there.ctx(), p)));
  there.Back(p.decode.out, &out);
  there.Back(p.decode.lse, &lse);
  const double tolerance = dtype == DType::kF32 ? 1e-5 : dtype == DType::kF16 ? 1e-3 : 1e-2;
  EXPECT_LE(RelativeError(out, want), tolerance);
  EXPECT_LE(RelativeError(lse, want_lse), tolerance);
}

void RunGrid(const std::vector<int>& lengths) {
  const std::vector<int> pages{1, 3, 7, 16, 32, 64}, dims{64, 80, 96, 128, 256}, sinks{0, 1, 4, 16, 33}, windows{1, 12, 60, 200};
  const std::vector<std::pair<int, int>> heads{{32, 32}, {32, 8}, {9, 3}, {8, 1}};
  const std::vector<DType> dtypes{DType::kF32, DType::kBF16, DType::kF16};
  uint64_t seed = 1;
  for (const std::vector<int>& r : AllPairs({static_cast<int>(lengths.size()), 6, 5, 4, 5, 4, 3})) {
    const auto at = [&](const auto& values, size_t i) { return values[static_cast<size_t>(r[i])]; };
    const int least = at(sinks, 4) + at(windows, 5);
    RunCase(at(dtypes, 6), std::max(at(lengths, 0), least + 1), at(pages, 1), at(dims, 2), at(heads, 3).first,
            at(heads, 3).second, at(sinks, 4), at(windows, 5), seed++);
  }
}

TEST_F(GpuSinks, AttentionAgreesWithTheReference) {
  RunCase(DType::kBF16, 300, 16, 64, 8, 2, 4, 60, 1);
  RunCase(DType::kF32, 100, 7, 80, 9, 3, 33, 12, 2);
  RunCase(DType::kF16, 400, 3, 128, 4, 1, 1, 200, 3);
  RunCase(DType::kBF16, 90, 32, 96, 4, 4, 0, 12, 4);
}
TEST_F(SlowGpuSinks, AttentionAgreesWithTheReferenceOnTheGrid) { RunGrid({17, 63, 300, 1110, 4099}); }

TEST_F(GpuSinks, QueriesAreTurnedAsOnTheCpu) {
  for (const bool interleaved : {false, true}) {
    for (const auto& [head_dim, rotary_dim] : {std::pair{64, 64}, {80, 32}, {300, 300}}) {
      constexpr int kRows = 3, kHeads = 5;
      const int64_t stride = kHeads * head_dim + 4;
      const std::vector<float> from = RandomFloats(static_cast<size_t>(kRows * stride), 1);
      std::vector<float> tables = RandomFloats(static_cast<size_t>(kRows * rotary_dim), 2);
      std::vector<float> want(static_cast<size_t>(kRows * kHeads * head_dim)), got = want;
      RopeParams p{.x = want.data(),
                   .x_stride = kHeads * head_dim,
                   .rows = kRows,
                   .heads = kHeads,
                   .head_dim = head_dim,
                   .rotary_dim = rotary_dim,
                   .interleaved = interleaved,
                   .cos_sin = tables.data()};
      RopeCopy(TwoThreads(), from.data(), stride, p);
      DeviceCopies there;
      p.x = there.Copy(got);
      p.cos_sin = there.Copy(tables);
      RopeCopy(there.ctx(), there.Copy(from), stride, p);
      there.Back(p.x, &got);
      EXPECT_LE(RelativeError(got, want), 1e-6) << head_dim;
    }
  }
}

}  // namespace
}  // namespace quire

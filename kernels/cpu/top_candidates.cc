// Top candidates of rows of logits. One pass over each chunk of 4,096 logits gives the maximum of every 64 and Σ exp
// relative to the chunk's maximum (f32 within 64 values, double above). The k-th largest of those maxima bounds the k-th
// largest logit from below, so only blocks that reach it are looked at again.
// Chunks are cut by size alone and added in order: bits don't depend on threads.
#include "kernels/top_candidates.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "core/base/check.h"
#include "kernels/cpu/ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/top_candidates.cc"
#include "kernels/cpu/simd.h"
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "kernels/cpu/elementwise_exp-inl.h"
// clang-format on

#ifndef QUIRE_TOP_CANDIDATES_ONCE
#define QUIRE_TOP_CANDIDATES_ONCE
namespace quire::cpu {
constexpr int64_t kBlock = 64;
constexpr int64_t kChunk = 4096;
constexpr float kMinusInf = -std::numeric_limits<float>::infinity();
struct ChunkSum {
  float max;   // −inf when nothing but NaN and −inf
  double sum;  // Σ exp(x − max), NaN left out; 0 when max is infinite
};
}  // namespace quire::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace quire::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

// NaN becomes −inf.
HWY_INLINE V LoadNumbers(D d, const float* x) {
  const V v = hn::LoadU(d, x);
  return hn::IfThenElse(hn::Eq(v, v), v, hn::Set(d, kMinusInf));
}

// maxima [ceil(n / 64)] of x [n], n ≤ kChunk.
ChunkSum ScanChunk(const float* x, int64_t n, float* maxima) {
  const D d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  float last[kBlock];  // the last block, padded
  const int64_t blocks = (n + kBlock - 1) / kBlock;
  if (n % kBlock != 0) {
    std::fill(last, last + kBlock, kMinusInf);
    std::copy(x + (blocks - 1) * kBlock, x + n, last);
  }
  const auto block_at = [&](int64_t b) { return (b + 1) * kBlock <= n ? x + b * kBlock : last; };
  ChunkSum chunk{kMinusInf, 0};
  for (int64_t b = 0; b < blocks; ++b) {
    const float* at = block_at(b);
    V max = hn::Set(d, kMinusInf);
    for (int64_t i = 0; i < kBlock; i += lanes) max = hn::Max(max, LoadNumbers(d, at + i));
    maxima[b] = hn::GetLane(hn::MaxOfLanes(d, max));
    chunk.max = std::max(chunk.max, maxima[b]);
  }
  if (std::isinf(chunk.max)) return chunk;
  const V offset = hn::Set(d, chunk.max);
  for (int64_t b = 0; b < blocks; ++b) {
    const float* at = block_at(b);
    V sum = hn::Zero(d);
    for (int64_t i = 0; i < kBlock; i += lanes) sum = hn::Add(sum, Exp(d, hn::Sub(LoadNumbers(d, at + i), offset)));
    chunk.sum += static_cast<double>(hn::GetLane(hn::SumOfLanes(d, sum)));
  }
  return chunk;
}

}  // namespace HWY_NAMESPACE
}  // namespace quire::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quire {
namespace cpu {
namespace {
HWY_EXPORT(ScanChunk);
auto BestScanChunk() {
  return [](auto... args) { return HWY_DYNAMIC_DISPATCH(ScanChunk)(args...); };
}

// Orders by descending value, then ascending index; NaN below everything.
uint64_t Key(float value, int64_t index) {
  uint32_t high = 0;
  if (!std::isnan(value)) {
    const uint32_t bits = std::bit_cast<uint32_t>(value == 0.0f ? 0.0f : value);  // −0 equals +0
    high = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  }
  return uint64_t{high} << 32 | (0xffffffffu - static_cast<uint32_t>(index));
}
int64_t IndexOf(uint64_t key) { return 0xffffffffu - static_cast<uint32_t>(key); }

float LogSumExp(const ChunkSum* chunks, int64_t count) {
  float max = kMinusInf;
  for (int64_t c = 0; c < count; ++c) max = std::max(max, chunks[c].max);
  if (std::isinf(max)) return max;
  double sum = 0;
  for (int64_t c = 0; c < count; ++c) {
    if (chunks[c].sum > 0) sum += chunks[c].sum * std::exp(static_cast<double>(chunks[c].max) - max);
  }
  return static_cast<float>(max + std::log(sum));
}

// x [vocab], maxima [blocks].
void PickRow(const float* x, int64_t vocab, const float* maxima, int64_t blocks, int64_t k, int32_t vocab_begin, int32_t* ids,
             float* values) {
  static thread_local std::vector<float> order;
  static thread_local std::vector<uint64_t> keys;
  keys.clear();
  float threshold = kMinusInf;
  if (k < blocks) {
    order.assign(maxima, maxima + blocks);
    std::nth_element(order.begin(), order.begin() + (k - 1), order.end(), std::greater<float>());
    threshold = order[static_cast<size_t>(k - 1)];
  }
  if (threshold > kMinusInf) {
    for (int64_t b = 0; b < blocks; ++b) {
      if (!(maxima[b] >= threshold)) continue;
      const int64_t end = std::min(vocab, (b + 1) * kBlock);
      for (int64_t i = b * kBlock; i < end; ++i) {
        if (x[i] >= threshold) keys.push_back(Key(x[i], i));
      }
    }
  } else {
    for (int64_t i = 0; i < vocab; ++i) keys.push_back(Key(x[i], i));
  }
  CHECK_GE(static_cast<int64_t>(keys.size()), k);
  if (static_cast<int64_t>(keys.size()) > k) {
    std::nth_element(keys.begin(), keys.begin() + (k - 1), keys.end(), std::greater<uint64_t>());
  }
  std::sort(keys.begin(), keys.begin() + k, std::greater<uint64_t>());
  for (int64_t i = 0; i < k; ++i) {
    const int64_t index = IndexOf(keys[static_cast<size_t>(i)]);
    ids[i] = vocab_begin + static_cast<int32_t>(index);
    values[i] = std::isnan(x[index]) ? kMinusInf : x[index];
  }
}

// The rows that row_of names, edited and scaled, to p.work.
void MakeRows(const Context& ctx, const TopCandidatesParams& p) {
  CHECK(p.work != nullptr);
  ctx.pool->ParallelFor(p.rows, [&](int64_t i, int) {
    const CandidateRow& row = p.row_of[i];
    float* out = p.work + i * p.vocab;
    std::copy_n(p.logits + row.row * p.stride, p.vocab, out);
    for (int32_t e = row.edits_begin; e < row.edits_end; ++e) {
      float& logit = out[p.edits[e].id - p.vocab_begin];
      logit = Edited(logit, p.edits[e]);
    }
    if (row.scale == 1.0f) return;
    for (int64_t j = 0; j < p.vocab; ++j) out[j] *= row.scale;
  });
}

}  // namespace

void TopCandidates(const Context& ctx, const TopCandidatesParams& p) {
  if (p.rows <= 0) return;
  if (p.row_of != nullptr) {
    MakeRows(ctx, p);
    TopCandidatesParams made = p;
    made.logits = p.work;
    made.stride = p.vocab;
    made.row_of = nullptr;
    return cpu::TopCandidates(ctx, made);
  }
  CHECK_GE(p.k, 1);
  CHECK_LE(p.k, p.vocab);
  CHECK_GE(p.stride, p.vocab);
  static thread_local std::vector<float> maxima_of_rows;
  static thread_local std::vector<ChunkSum> sums_of_rows;
  const int64_t blocks = (p.vocab + kBlock - 1) / kBlock;
  const int64_t chunks = (p.vocab + kChunk - 1) / kChunk;
  maxima_of_rows.resize(static_cast<size_t>(p.rows * blocks));
  sums_of_rows.resize(static_cast<size_t>(p.rows * chunks));
  float* maxima = maxima_of_rows.data();
  ChunkSum* sums = sums_of_rows.data();
  const auto scan = BestScanChunk();
  ctx.pool->ParallelFor(p.rows * chunks, [&](int64_t task, int) {
    const int64_t row = task / chunks, chunk = task % chunks;
    const int64_t begin = chunk * kChunk;
    sums[task] = scan(p.logits + row * p.stride + begin, std::min(kChunk, p.vocab - begin),
                      maxima + row * blocks + begin / kBlock);
  });
  ctx.pool->ParallelFor(p.rows, [&](int64_t row, int) {
    p.lse[row] = LogSumExp(sums + row * chunks, chunks);
    PickRow(p.logits + row * p.stride, p.vocab, maxima + row * blocks, blocks, p.k, p.vocab_begin, p.ids + row * p.k,
            p.values + row * p.k);
  });
}

void GatherLogits(const Context&, const GatherLogitsParams& p) {
  for (int64_t i = 0; i < p.rows * p.k; ++i) {
    const int64_t column = int64_t{p.ids[i]} - p.vocab_begin;
    const bool own = column >= 0 && column < p.vocab;
    p.out[i] = own ? p.logits[p.row_of[i / p.k].row * p.stride + column] : 0.0f;
  }
}

}  // namespace cpu
}  // namespace quire
#endif  // HWY_ONCE

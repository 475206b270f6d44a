// Register-blocked tiles of dot products. See linear_tile.h for the summation order that every tile keeps.
//
// Per step of L values of k, a tile of R weight rows by M rows of x loads R + M vectors for R·M multiply-adds:
// the ratio of a 6 × 16 broadcast kernel, with both operands in their row-major order. K is cut in blocks of kBlockK so
// that M rows of x stay in L1 and a panel of weights in L2; accumulators are carried between blocks as whole vectors,
// so the cut changes no bit.
#include "kernels/cpu/linear_tile.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/linear_tile.cc"
#include "kernels/cpu/simd.h"
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include <hwy/cache_control.h>
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace quire::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

constexpr int64_t kBlockK = 1024;

// Tile shapes: as many accumulators as the registers hold beside R weights and one x.
#if HWY_TARGET == HWY_AVX3 || defined(__aarch64__)
constexpr int kMaxM = 6;
constexpr int kAccumulators = 24;
#else
constexpr int kMaxM = 4;
constexpr int kAccumulators = 12;
#endif
constexpr int RowsOfTile(int m) { return std::min(8, kAccumulators / m); }

HWY_INLINE V LoadWeights(D d, const float* w) { return hn::LoadU(d, w); }
HWY_INLINE V LoadWeights(D d, const BF16* w) {
  const hn::Rebind<uint16_t, D> d16;
  const hn::Rebind<uint32_t, D> d32;
  const auto bits = hn::LoadU(d16, reinterpret_cast<const uint16_t*>(w));
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, bits)));
}
HWY_INLINE V LoadWeights(D d, const F16* w) {
  const hn::Rebind<hwy::float16_t, D> d16;
  return hn::PromoteTo(d, hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(w)));
}

// The last n < L values, zeros behind.
template <typename T>
HWY_INLINE V LoadLast(D d, const T* w, size_t n) {
  HWY_ALIGN T padded[HWY_MAX_BYTES / sizeof(float)] = {};
  for (size_t i = 0; i < n; ++i) padded[i] = w[i];
  return LoadWeights(d, padded);
}

// Where a tile's outputs go.
struct Sink {
  float* out;
  int64_t out_stride;
  const float* bias;  // at the tile's first row; may be null
  bool accumulate;
  int64_t row_step = 1;  // between the tile's weight rows
};

// Weights to ask for while a tile computes: `lines` cache lines from `at` for each line of k. Their loads would otherwise
// wait for the multiply-adds before them, and the multiply-adds for the loads.
struct Ahead {
  const char* at = nullptr;
  int lines = 0;
};

// acc [M][R] += R weights by M values of x, at k.
template <typename T, int R, int M>
HWY_INLINE void Step(const T* HWY_RESTRICT w, int64_t w_stride, const float* HWY_RESTRICT x, int64_t x_stride, V (&acc)[M][R]) {
  const D d;
  // The smaller side is held in registers, the other streamed past it.
  if constexpr (M <= R) {
    V held[M];
    for (int i = 0; i < M; ++i) held[i] = hn::LoadU(d, x + i * x_stride);
    for (int r = 0; r < R; ++r) {
      const V weights = LoadWeights(d, w + r * w_stride);
      for (int i = 0; i < M; ++i) acc[i][r] = hn::MulAdd(weights, held[i], acc[i][r]);
    }
  } else {
    V held[R];
    for (int r = 0; r < R; ++r) held[r] = LoadWeights(d, w + r * w_stride);
    for (int i = 0; i < M; ++i) {
      const V xi = hn::LoadU(d, x + i * x_stride);
      for (int r = 0; r < R; ++r) acc[i][r] = hn::MulAdd(held[r], xi, acc[i][r]);
    }
  }
}

// R weight rows by M rows of x over cols values. carry [M][R][L] floats: accumulators before (unless first) and after
// (unless last) this block of k.
template <typename T, int R, int M>
HWY_INLINE void Tile(const T* HWY_RESTRICT w, int64_t w_stride, const float* HWY_RESTRICT x, int64_t x_stride, int64_t cols,
                     bool first, bool last, float* HWY_RESTRICT carry, const Sink& sink, Ahead ahead = {}) {
  const D d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  V acc[M][R];
  for (int i = 0; i < M; ++i) {
    for (int r = 0; r < R; ++r) acc[i][r] = first ? hn::Zero(d) : hn::LoadU(d, carry + (i * R + r) * lanes);
  }
  int64_t k = 0;
  if (ahead.lines > 0) {
    const int64_t line = std::max<int64_t>(64 / sizeof(T), lanes);
    for (; k + line <= cols; k += line) {
      for (int j = 0; j < ahead.lines; ++j, ahead.at += 64) hwy::Prefetch(ahead.at);
      for (int64_t step = 0; step < line; step += lanes) Step<T, R, M>(w + k + step, w_stride, x + k + step, x_stride, acc);
    }
  }
  for (; k + lanes <= cols; k += lanes) Step<T, R, M>(w + k, w_stride, x + k, x_stride, acc);
  if (k < cols) {
    const size_t rest = static_cast<size_t>(cols - k);
    V held[M];
    for (int i = 0; i < M; ++i) held[i] = LoadLast(d, x + i * x_stride + k, rest);
    for (int r = 0; r < R; ++r) {
      const V weights = LoadLast(d, w + r * w_stride + k, rest);
      for (int i = 0; i < M; ++i) acc[i][r] = hn::MulAdd(weights, held[i], acc[i][r]);
    }
  }
  if (!last) {
    for (int i = 0; i < M; ++i) {
      for (int r = 0; r < R; ++r) hn::StoreU(acc[i][r], d, carry + (i * R + r) * lanes);
    }
    return;
  }
  for (int i = 0; i < M; ++i) {
    float* out = sink.out + i * sink.out_stride;
    for (int r = 0; r < R; ++r) {
      float sum = hn::GetLane(hn::SumOfLanes(d, acc[i][r]));
      float& to = out[r * sink.row_step];
      if (sink.bias != nullptr) sum += sink.bias[r * sink.row_step];
      to = sink.accumulate ? to + sum : sum;
    }
  }
}

// Calls f with an integral constant m in [1, kMaxM].
template <typename F>
HWY_INLINE void WithM(int m, F&& f) {
  switch (m) {
    case 1: return f(std::integral_constant<int, 1>());
    case 2: return f(std::integral_constant<int, 2>());
    case 3: return f(std::integral_constant<int, 3>());
    case 4: return f(std::integral_constant<int, 4>());
#if HWY_TARGET == HWY_AVX3 || defined(__aarch64__)
    case 5: return f(std::integral_constant<int, 5>());
    case 6: return f(std::integral_constant<int, 6>());
#endif
    default: return;
  }
}

// Weight rows [row, row_end) by x rows [i, i + M), asking for the weights from `ahead` on at `share` of the rate.
template <typename T, int M>
HWY_NOINLINE void DirectRows(const LinearBlock& b, int64_t row, int64_t row_end, int64_t i, const char* ahead, int share) {
  constexpr int R = RowsOfTile(M);
  const T* w = static_cast<const T*>(b.weight);
  const float* x = b.x + i * b.x_stride;
  const auto sink = [&](int64_t r) {
    return Sink{b.out + i * b.out_stride + r, b.out_stride, b.bias ? b.bias + r : nullptr, b.accumulate};
  };
  // Narrow tiles of f32 are loads and little else: the hardware's own prefetching does better there.
  constexpr bool kAsk = sizeof(T) < 4 || M == kMaxM;
  const int lines = ahead == nullptr || !kAsk ? 0 : (R + share - 1) / share;
  const int64_t tile_lines = b.cols * static_cast<int64_t>(sizeof(T)) / 64 * lines;
  for (; row + R <= row_end; row += R) {
    Tile<T, R, M>(w + row * b.cols, b.cols, x, b.x_stride, b.cols, true, true, nullptr, sink(row), {ahead, lines});
    if (ahead != nullptr) ahead += tile_lines * 64;
  }
  for (; row < row_end; ++row) {
    Tile<T, 1, M>(w + row * b.cols, b.cols, x, b.x_stride, b.cols, true, true, nullptr, sink(row));
  }
}

// All rows of one group of x: a tile's weight rows lie a share of the block apart, so that memory is read in R long
// streams, of which the hardware keeps more under way than of one.
template <typename T, int M>
HWY_NOINLINE void DirectStreams(const LinearBlock& b) {
  constexpr int R = RowsOfTile(M);
  const T* w = static_cast<const T*>(b.weight);
  const float* x = b.x + b.m_begin * b.x_stride;
  const int64_t step = (b.row_end - b.row_begin) / R;
  const auto sink = [&](int64_t r) {
    return Sink{b.out + b.m_begin * b.out_stride + r, b.out_stride, b.bias ? b.bias + r : nullptr, b.accumulate, step};
  };
  int64_t row = b.row_begin;
  for (; row < b.row_begin + step; ++row) {
    Tile<T, R, M>(w + row * b.cols, step * b.cols, x, b.x_stride, b.cols, true, true, nullptr, sink(row));
  }
  for (row = b.row_begin + R * step; row < b.row_end; ++row) {
    Tile<T, 1, M>(w + row * b.cols, b.cols, x, b.x_stride, b.cols, true, true, nullptr, sink(row));
  }
}

template <typename T>
void DirectOf(const LinearBlock& b) {
  if (b.m_end - b.m_begin <= kMaxM) {
    return WithM(static_cast<int>(b.m_end - b.m_begin), [&](auto m) { DirectStreams<T, decltype(m)::value>(b); });
  }
  // A group of weight rows stays in L1 while every group of x passes over it, and the next one is on its way.
  const int64_t passes = (b.m_end - b.m_begin + kMaxM - 1) / kMaxM;
  const int64_t row_bytes = b.cols * static_cast<int64_t>(sizeof(T));
  constexpr int64_t kGroup = 2 * RowsOfTile(kMaxM);
  for (int64_t row = b.row_begin; row < b.row_end; row += kGroup) {
    const int64_t row_end = std::min(row + kGroup, b.row_end);
    const char* next = static_cast<const char*>(b.weight) + row_end * row_bytes;
    const int64_t next_bytes = (std::min(row_end + kGroup, b.row_end) - row_end) * row_bytes;
    int64_t pass = 0;
    for (int64_t i = b.m_begin; i < b.m_end; i += kMaxM, ++pass) {
      const char* ahead = next_bytes > 0 ? next + next_bytes * pass / passes : nullptr;
      WithM(static_cast<int>(std::min<int64_t>(kMaxM, b.m_end - i)),
            [&](auto m) { DirectRows<T, decltype(m)::value>(b, row, row_end, i, ahead, static_cast<int>(passes)); });
    }
  }
}

void Direct(const LinearBlock& block) {
  VisitFloatDType(block.dtype, [&](auto t) { DirectOf<decltype(t)>(block); });
}

template <typename T>
void ExpandPanel(const T* w, int64_t w_stride, int64_t rows, int64_t cols, float* panel) {
  const D d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t r = 0; r < rows; ++r) {
    const T* from = w + r * w_stride;
    float* to = panel + r * cols;
    int64_t k = 0;
    for (; k + lanes <= cols; k += lanes) hn::StoreU(LoadWeights(d, from + k), d, to + k);
    for (; k < cols; ++k) to[k] = ToFloat(from[k]);
  }
}

template <int M>
HWY_NOINLINE void PanelRows(const LinearBlock& b, const float* panel, int64_t k, int64_t block_k, int64_t i, int64_t row0,
                            int64_t rows, float* carry) {
  constexpr int R = RowsOfTile(M);
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(D()));
  const float* x = b.x + i * b.x_stride + k;
  const bool first = k == 0, last = k + block_k == b.cols;
  const auto sink = [&](int64_t r) {
    return Sink{b.out + i * b.out_stride + row0 + r, b.out_stride, b.bias ? b.bias + row0 + r : nullptr, b.accumulate};
  };
  int64_t r = 0;
  for (; r + R <= rows; r += R) {
    Tile<float, R, M>(panel + r * block_k, block_k, x, b.x_stride, block_k, first, last, carry + r * M * lanes, sink(r));
  }
  for (; r < rows; ++r) {
    Tile<float, 1, M>(panel + r * block_k, block_k, x, b.x_stride, block_k, first, last, carry + r * M * lanes, sink(r));
  }
}

void Panels(const LinearBlock& b, float* scratch) {
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(D()));
  float* carry_base = scratch + kPanelRows * kBlockK;
  // Equal blocks of whole vectors.
  const int64_t blocks = (b.cols + kBlockK - 1) / kBlockK;
  const int64_t step = ((b.cols + blocks - 1) / blocks + lanes - 1) / lanes * lanes;
  for (int64_t row = b.row_begin; row < b.row_end; row += kPanelRows) {
    const int64_t rows = std::min(kPanelRows, b.row_end - row);
    for (int64_t k = 0; k < b.cols; k += step) {
      const int64_t block_k = std::min(step, b.cols - k);
      VisitFloatDType(b.dtype, [&](auto t) {
        using T = decltype(t);
        ExpandPanel(static_cast<const T*>(b.weight) + row * b.cols + k, b.cols, rows, block_k, scratch);
      });
      for (int64_t i = b.m_begin; i < b.m_end; i += kMaxM) {
        float* carry = carry_base + (i - b.m_begin) * kPanelRows * lanes;
        WithM(static_cast<int>(std::min<int64_t>(kMaxM, b.m_end - i)), [&](auto m) {
          PanelRows<decltype(m)::value>(b, scratch, k, block_k, i, row, rows, carry);
        });
      }
    }
  }
}

void Narrow(const float* from, int64_t n, BF16* to) {
  const D d;
  const hn::Rebind<uint32_t, D> du;
  const hn::Rebind<int32_t, D> di;
  const hn::Rebind<uint16_t, D> d16;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const V x = hn::LoadU(d, from + i);
    const auto bits = hn::BitCast(du, x);
    const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
    const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7fffu))));
    const auto quiet = hn::Or(hn::ShiftRight<16>(bits), hn::Set(du, 0x40u));
    const auto chosen = hn::IfThenElse(hn::RebindMask(du, hn::Eq(x, x)), rounded, quiet);
    hn::StoreU(hn::DemoteTo(d16, hn::BitCast(di, chosen)), d16, reinterpret_cast<uint16_t*>(to + i));
  }
  for (; i < n; ++i) to[i] = ToBF16(from[i]);
}

void Store(const float* y, const float* bias, int64_t n, bool accumulate, float* out) {
  const D d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    V v = hn::LoadU(d, y + i);
    if (bias != nullptr) v = hn::Add(v, hn::LoadU(d, bias + i));
    if (accumulate) v = hn::Add(hn::LoadU(d, out + i), v);
    hn::StoreU(v, d, out + i);
  }
  for (; i < n; ++i) {
    const float v = bias != nullptr ? y[i] + bias[i] : y[i];
    out[i] = accumulate ? out[i] + v : v;
  }
}

int64_t PanelsScratch(int64_t m, int64_t cols) {
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(D()));
  return kPanelRows * kBlockK + (cols > kBlockK ? m * kPanelRows * lanes : 0);
}

}  // namespace HWY_NAMESPACE
}  // namespace quire::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quire::cpu {

HWY_EXPORT(Direct);
HWY_EXPORT(Panels);
HWY_EXPORT(PanelsScratch);
HWY_EXPORT(Narrow);
HWY_EXPORT(Store);

void LinearDirect(const LinearBlock& block) { HWY_DYNAMIC_DISPATCH(Direct)(block); }
void LinearPanels(const LinearBlock& block, float* scratch) { HWY_DYNAMIC_DISPATCH(Panels)(block, scratch); }
int64_t LinearPanelsScratch(int64_t m, int64_t cols) { return HWY_DYNAMIC_DISPATCH(PanelsScratch)(m, cols); }
void NarrowToBf16(const float* from, int64_t n, BF16* to) { HWY_DYNAMIC_DISPATCH(Narrow)(from, n, to); }
void StoreProduct(const float* y, const float* bias, int64_t n, bool accumulate, float* out) {
  HWY_DYNAMIC_DISPATCH(Store)(y, bias, n, accumulate, out);
}

}  // namespace quire::cpu
#endif  // HWY_ONCE

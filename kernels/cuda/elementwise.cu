// A block a row for the norms of wide rows, a warp a head for those of heads, a thread eight (or single) elements elsewhere.
#include "kernels/cuda/elementwise.h"

#include <algorithm>

#include "kernels/cuda/simt.h"
#include "kernels/mods.h"

namespace quire::cuda {
namespace {

constexpr int kEight = 8;  // elements of a thread where rows allow accesses of 16 bytes

// kN elements as f32; kN is 1, or 8 at an address that is a multiple of 16 bytes.
template <int kN, typename T>
QUIRE_DEVICE void LoadFloats(const T* p, float (&x)[kN]) {
  if constexpr (kN == 1) {
    x[0] = simt::ToFloat(*p);
  } else if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto v = simt::Load<simt::F32x4>(p + 4 * half);
      x[4 * half] = v.x;
      x[4 * half + 1] = v.y;
      x[4 * half + 2] = v.z;
      x[4 * half + 3] = v.w;
    }
  } else {
    const auto v = simt::Load<simt::U32x4>(p);
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[2 * i] = simt::LowFloat<T>(words[i]);
      x[2 * i + 1] = simt::HighFloat<T>(words[i]);
    }
  }
}

template <int kN, typename T>
QUIRE_DEVICE void StoreFloats(T* p, const float (&x)[kN]) {
  if constexpr (kN == 1) {
    *p = simt::FromFloat<T>(x[0]);
  } else if constexpr (sizeof(T) == 4) {
    simt::Store(p, simt::F32x4{x[0], x[1], x[2], x[3]});
    simt::Store(p + 4, simt::F32x4{x[4], x[5], x[6], x[7]});
  } else {
    simt::Store(p, simt::U32x4{simt::PackPair<T>(x[0], x[1]), simt::PackPair<T>(x[2], x[3]), simt::PackPair<T>(x[4], x[5]),
                               simt::PackPair<T>(x[6], x[7])});
  }
}

// True when every listed address and stride (in bytes) allows accesses of 16 bytes and the width is a multiple of 8.
bool AllowsEight(int64_t width, std::initializer_list<const void*> addresses, std::initializer_list<int64_t> strides) {
  bool ok = width % kEight == 0;
  for (const void* p : addresses) ok = ok && reinterpret_cast<uintptr_t>(p) % 16 == 0;
  for (const int64_t stride : strides) ok = ok && stride % 16 == 0;
  return ok;
}

template <typename T, typename Out, int kN>
struct RmsNormKernel {
  using Params = RmsNormParams;
  static constexpr const char* kName = "rms_norm";
  static constexpr int kMaxThreads = 1024;
  static constexpr int kMinBlocks = 1;
  struct Layout {
    float scratch[kMaxThreads / 32];
  };

  QUIRE_DEVICE static void Run(const Params& p) {
    auto& s = simt::Shared<Layout>();
    const int64_t row = simt::BlockX();
    const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
    float* residual = p.residual == nullptr ? nullptr : p.residual + row * p.width;
    const int64_t first = int64_t{simt::ThreadIndex()} * kN, step = int64_t{simt::BlockThreads()} * kN;
    float sum = 0;
    for (int64_t i = first; i < p.width; i += step) {
      float v[kN];
      LoadFloats<kN>(x + i, v);
      if (residual != nullptr) {
        float before[kN];
        LoadFloats<kN>(residual + i, before);
#pragma unroll
        for (int j = 0; j < kN; ++j) v[j] += before[j];
        StoreFloats<kN>(residual + i, v);
      }
#pragma unroll
      for (int j = 0; j < kN; ++j) sum = simt::Fma(v[j], v[j], sum);
    }
    const float scale = simt::Rsqrt(simt::BlockSum(sum, s.scratch) / static_cast<float>(p.width) + p.eps);
    // Each thread reads back what it has read (and written) before: from L1, or L2 for very wide rows.
    Out* out = static_cast<Out*>(p.out) + row * p.out_stride;
    for (int64_t i = first; i < p.width; i += step) {
      float v[kN], weight[kN];
      if (residual != nullptr) {
        LoadFloats<kN>(residual + i, v);
      } else {
        LoadFloats<kN>(x + i, v);
      }
      LoadFloats<kN>(p.weight + i, weight);
#pragma unroll
      for (int j = 0; j < kN; ++j) v[j] = v[j] * scale * weight[j];
      StoreFloats<kN>(out + i, v);
    }
  }
};

template <typename T>
struct HeadRmsNormKernel {
  using Params = HeadRmsNormParams;
  static constexpr const char* kName = "head_rms_norm";
  static constexpr int kMaxThreads = 128;
  static constexpr int kMinBlocks = 4;
  QUIRE_DEVICE static void Run(const Params& p) {
    const int64_t warp = int64_t{simt::BlockX()} * (simt::BlockThreads() / simt::kWarpSize) + simt::Warp();
    if (warp >= p.rows * p.heads) return;  // whole warps
    T* x = static_cast<T*>(p.x) + warp / p.heads * p.x_stride + warp % p.heads * p.head_dim;
    float sum = 0;
    for (int i = simt::Lane(); i < p.head_dim; i += simt::kWarpSize) {
      const float v = simt::ToFloat(x[i]);
      sum = simt::Fma(v, v, sum);
    }
    const float scale = simt::Rsqrt(simt::WarpSum(sum) / static_cast<float>(p.head_dim) + p.eps);
    for (int i = simt::Lane(); i < p.head_dim; i += simt::kWarpSize) {
      x[i] = simt::FromFloat<T>(simt::ToFloat(x[i]) * scale * p.weight[i]);
    }
  }
};

struct AddParams {
  const void* x;
  float* residual;
  int64_t n;
};
template <typename T, int kN>
struct AddKernel {
  using Params = AddParams;
  static constexpr const char* kName = "add_to_residual";
  static constexpr int kMaxThreads = 256;
  static constexpr int kMinBlocks = 4;
  QUIRE_DEVICE static void Run(const Params& p) {
    const int64_t i = (int64_t{simt::BlockX()} * simt::BlockThreads() + simt::ThreadIndex()) * kN;
    if (i >= p.n) return;
    float x[kN], y[kN];
    LoadFloats<kN>(static_cast<const T*>(p.x) + i, x);
    LoadFloats<kN>(p.residual + i, y);
#pragma unroll
    for (int j = 0; j < kN; ++j) y[j] += x[j];
    StoreFloats<kN>(p.residual + i, y);
  }
};

struct SiluMulParams {
  const void* gate_up;
  void* out;
  int64_t rows, width;
};
struct SiluOp {
  static constexpr const char* kName = "silu_mul";
  QUIRE_DEVICE static float Of(float x) { return x / (1.0f + simt::Exp(-x)); }
};
// With y = √(2/π) (x + 0.044715 x³), (1 + tanh y) / 2 = 1 / (1 + e^(−2y)).
struct GeluTanhOp {
  static constexpr const char* kName = "gelu_tanh_mul";
  QUIRE_DEVICE static float Of(float x) {
    return x / (1.0f + simt::Exp(-1.59576912f * x * simt::Fma(0.044715f * x, x, 1.0f)));
  }
};
template <typename T, typename Out, int kN, class Op>
struct GatedKernel {
  using Params = SiluMulParams;
  static constexpr const char* kName = Op::kName;
  static constexpr int kMaxThreads = 256;
  static constexpr int kMinBlocks = 4;
  QUIRE_DEVICE static void Run(const Params& p) {
    const int64_t i = (int64_t{simt::BlockX()} * simt::BlockThreads() + simt::ThreadIndex()) * kN;
    if (i >= p.rows * p.width) return;
    const int64_t row = i / p.width, column = i % p.width;
    const T* gate = static_cast<const T*>(p.gate_up) + row * 2 * p.width + column;
    float g[kN], u[kN];
    LoadFloats<kN>(gate, g);
    LoadFloats<kN>(gate + p.width, u);
#pragma unroll
    for (int j = 0; j < kN; ++j) u[j] *= Op::Of(g[j]);
    StoreFloats<kN>(static_cast<Out*>(p.out) + i, u);
  }
};

struct FlatParams {
  float by;
  float* x;
  int64_t n;
};
struct ScaleOp {
  static constexpr const char* kName = "scale";
  QUIRE_DEVICE static float Of(float by, float x) { return by * x; }
};
struct SoftCapOp {
  static constexpr const char* kName = "soft_cap";
  QUIRE_DEVICE static float Of(float by, float x) { return SoftCap{by}(x, 0, 0, 0, 0); }
};
template <class Op>
struct FlatKernel {
  using Params = FlatParams;
  static constexpr const char* kName = Op::kName;
  static constexpr int kMaxThreads = 256;
  static constexpr int kMinBlocks = 4;
  QUIRE_DEVICE static void Run(const Params& p) {
    const int64_t i = int64_t{simt::BlockX()} * simt::BlockThreads() + simt::ThreadIndex();
    if (i < p.n) p.x[i] = Op::Of(p.by, p.x[i]);
  }
};

struct NarrowParams {
  const float* x;
  int64_t x_stride;
  void* out;
  int64_t rows, width;
};
template <typename T, int kN>
struct NarrowKernel {
  using Params = NarrowParams;
  static constexpr const char* kName = "narrow";
  static constexpr int kMaxThreads = 256;
  static constexpr int kMinBlocks = 4;
  QUIRE_DEVICE static void Run(const Params& p) {
    const int64_t i = (int64_t{simt::BlockX()} * simt::BlockThreads() + simt::ThreadIndex()) * kN;
    if (i >= p.rows * p.width) return;
    const int64_t row = i / p.width, column = i % p.width;
    float x[kN];
    LoadFloats<kN>(p.x + row * p.x_stride + column, x);
    StoreFloats<kN>(static_cast<T*>(p.out) + i, x);
  }
};

template <typename T, int kN>
struct EmbedKernel {
  using Params = EmbedParams;
  static constexpr const char* kName = "embed";
  static constexpr int kMaxThreads = 256;
  static constexpr int kMinBlocks = 4;
  QUIRE_DEVICE static void Run(const Params& p) {
    const int64_t row = simt::BlockX();
    const int64_t id = p.ids[row] - p.vocab_begin;
    const bool there = id >= 0 && id < p.vocab;
    const T* from = static_cast<const T*>(p.table) + (there ? id : 0) * p.width;
    float* out = p.out + row * p.width;
    for (int64_t i = int64_t{simt::ThreadIndex()} * kN; i < p.width; i += int64_t{simt::BlockThreads()} * kN) {
      float x[kN] = {};
      if (there) LoadFloats<kN>(from + i, x);
      StoreFloats<kN>(out + i, x);
    }
  }
};

struct RopeTableKernel {
  using Params = RopeTableParams;
  static constexpr const char* kName = "rope_table";
  static constexpr int kMaxThreads = 128;
  static constexpr int kMinBlocks = 4;
  QUIRE_DEVICE static void Run(const Params& p) {
    const int64_t at = int64_t{simt::BlockX()} * simt::BlockThreads() + simt::ThreadIndex();
    if (at >= p.rows * p.half) return;
    const int64_t row = at / p.half, i = at % p.half;
    double sine, cosine;
    simt::SinCos(static_cast<double>(p.positions[row]) * static_cast<double>(p.inv_freq[i]), &sine, &cosine);
    p.out[row * 2 * p.half + i] = static_cast<float>(cosine * static_cast<double>(p.magnitude));
    p.out[row * 2 * p.half + p.half + i] = static_cast<float>(sine * static_cast<double>(p.magnitude));
  }
};

// A block a head of a row.
struct RopeKernel {
  using Params = RopeParams;
  static constexpr const char* kName = "rope";
  static constexpr int kMaxThreads = 256;
  static constexpr int kMinBlocks = 4;
  QUIRE_DEVICE static void Run(const Params& p) {
    const int64_t row = simt::BlockY();
    const int offset = simt::BlockX() * p.head_dim, half = p.rotary_dim / 2;
    const float* from = p.from + row * p.from_stride + offset;
    const float* table = p.cos_sin + row * p.rotary_dim;
    float* out = p.out + row * p.out_stride + offset;
    for (int c = simt::ThreadIndex(); c < p.head_dim; c += simt::BlockThreads()) {
      const float x = from[c];
      if (c >= p.rotary_dim) {
        out[c] = x;
        continue;
      }
      const bool second = p.interleaved ? c % 2 == 1 : c >= half;
      const int pair = p.interleaved ? c / 2 : (second ? c - half : c);
      const int step = p.interleaved ? 1 : half;
      const float y = from[second ? c - step : c + step] * table[half + pair];
      out[c] = simt::Fma(x, table[pair], second ? y : -y);
    }
  }
};

// f(T{}, Out{}) for rows of a type that are written in their own or, from f32, in any.
template <typename F>
Status VisitInAndOut(DType in, DType out, F&& f) {
  return VisitFloatDType(out, [&](auto o) -> Status {
    if (in == out) return f(o, o);
    if (in == DType::kF32) return f(float{}, o);
    return Internal("rows of " + std::string(DTypeName(in)) + " are not written as " + std::string(DTypeName(out)));
  });
}

// One thread for kN of n elements.
template <typename Kernel>
Status LaunchFlat(Stream stream, int64_t n, int per_thread, const typename Kernel::Params& params) {
  simt::LaunchShape shape;
  shape.threads = Kernel::kMaxThreads;
  const int64_t per_block = int64_t{shape.threads} * per_thread;
  shape.grid_x = (n + per_block - 1) / per_block;
  return simt::Launch<Kernel>(shape, stream, params);
}

}  // namespace

RowConfig RowConfig::For(int64_t width) {
  RowConfig c;
  const int64_t eights = (width + kEight - 1) / kEight;
  c.threads = static_cast<int>(std::clamp<int64_t>((eights + 31) / 32 * 32, 32, 1024));
  return c;
}

std::string RowConfig::ToString() const { return std::to_string(threads) + " threads a row"; }

Status RmsNorm(Stream stream, DType dtype, DType out_dtype, const RmsNormParams& p) {
  simt::LaunchShape shape;
  shape.grid_x = p.rows;
  shape.threads = RowConfig::For(p.width).threads;
  return VisitInAndOut(dtype, out_dtype, [&](auto t, auto o) {
    using T = decltype(t);
    using Out = decltype(o);
    constexpr int64_t kSize = sizeof(T), kOutSize = sizeof(Out);
    shape.shared_bytes = sizeof(typename RmsNormKernel<T, Out, 1>::Layout);
    if (AllowsEight(p.width, {p.x, p.residual, p.weight, p.out}, {p.x_stride * kSize, p.out_stride * kOutSize})) {
      return simt::Launch<RmsNormKernel<T, Out, kEight>>(shape, stream, p);
    }
    return simt::Launch<RmsNormKernel<T, Out, 1>>(shape, stream, p);
  });
}

Status HeadRmsNorm(Stream stream, DType dtype, const HeadRmsNormParams& p) {
  return VisitFloatDType(dtype, [&](auto t) {
    return LaunchFlat<HeadRmsNormKernel<decltype(t)>>(stream, p.rows * p.heads * simt::kWarpSize, 1, p);
  });
}

Status AddToResidual(Stream stream, DType dtype, const void* x, float* residual, int64_t rows, int64_t width) {
  const int64_t n = rows * width;
  return VisitFloatDType(dtype, [&](auto t) {
    using T = decltype(t);
    if (AllowsEight(n, {x, residual}, {})) return LaunchFlat<AddKernel<T, kEight>>(stream, n, kEight, {x, residual, n});
    return LaunchFlat<AddKernel<T, 1>>(stream, n, 1, {x, residual, n});
  });
}

namespace {
template <class Op>
Status Gated(Stream stream, DType dtype, DType out_dtype, const void* gate_up, void* out, int64_t rows, int64_t width) {
  const int64_t n = rows * width;
  return VisitInAndOut(dtype, out_dtype, [&](auto t, auto o) {
    using T = decltype(t);
    using Out = decltype(o);
    const SiluMulParams params{gate_up, out, rows, width};
    if (AllowsEight(width, {gate_up, out}, {})) return LaunchFlat<GatedKernel<T, Out, kEight, Op>>(stream, n, kEight, params);
    return LaunchFlat<GatedKernel<T, Out, 1, Op>>(stream, n, 1, params);
  });
}
}  // namespace

Status SiluMul(Stream stream, DType dtype, DType out_dtype, const void* gate_up, void* out, int64_t rows, int64_t width) {
  return Gated<SiluOp>(stream, dtype, out_dtype, gate_up, out, rows, width);
}
Status GeluTanhMul(Stream stream, DType dtype, DType out_dtype, const void* gate_up, void* out, int64_t rows, int64_t width) {
  return Gated<GeluTanhOp>(stream, dtype, out_dtype, gate_up, out, rows, width);
}

Status Scale(Stream stream, float factor, float* x, int64_t n) {
  return LaunchFlat<FlatKernel<ScaleOp>>(stream, n, 1, {factor, x, n});
}
Status SoftCapRows(Stream stream, float cap, float* x, int64_t n) {
  return LaunchFlat<FlatKernel<SoftCapOp>>(stream, n, 1, {cap, x, n});
}

Status Narrow(Stream stream, DType dtype, const float* x, int64_t x_stride, int64_t rows, int64_t width, void* out) {
  const int64_t n = rows * width;
  const NarrowParams params{x, x_stride, out, rows, width};
  return VisitFloatDType(dtype, [&](auto t) {
    using T = decltype(t);
    if (AllowsEight(width, {x, out}, {x_stride * int64_t{sizeof(float)}})) {
      return LaunchFlat<NarrowKernel<T, kEight>>(stream, n, kEight, params);
    }
    return LaunchFlat<NarrowKernel<T, 1>>(stream, n, 1, params);
  });
}

Status Embed(Stream stream, DType dtype, const EmbedParams& p) {
  simt::LaunchShape shape;
  shape.grid_x = p.rows;
  shape.threads = std::min(RowConfig::For(p.width).threads, 256);
  return VisitFloatDType(dtype, [&](auto t) {
    using T = decltype(t);
    if (AllowsEight(p.width, {p.table, p.out}, {})) return simt::Launch<EmbedKernel<T, kEight>>(shape, stream, p);
    return simt::Launch<EmbedKernel<T, 1>>(shape, stream, p);
  });
}

Status RopeTable(Stream stream, const RopeTableParams& p) {
  return LaunchFlat<RopeTableKernel>(stream, p.rows * p.half, 1, p);
}

Status Rope(Stream stream, const RopeParams& p) {
  simt::LaunchShape shape;
  shape.grid_x = p.heads;
  shape.grid_y = static_cast<int>(p.rows);
  shape.threads = std::min((p.head_dim + 31) / 32 * 32, RopeKernel::kMaxThreads);
  return simt::Launch<RopeKernel>(shape, stream, p);
}

}  // namespace quire::cuda

#include "kernels/cuda/elementwise.h"

#include "kernels/cuda/simt.h"

namespace quire::cuda {
namespace {

// Bytes: rows * width * (2 * element size + 8 with a residual); the second pass over x comes from L1 or L2.
template <typename T>
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
    float sum = 0;
    for (int64_t i = simt::ThreadIndex(); i < p.width; i += simt::BlockThreads()) {
      float v = simt::ToFloat(x[i]);
      if (residual != nullptr) {
        v += residual[i];
        residual[i] = v;
      }
      sum = simt::Fma(v, v, sum);
    }
    const float scale = simt::Rsqrt(simt::BlockSum(sum, s.scratch) / static_cast<float>(p.width) + p.eps);
    T* out = static_cast<T*>(p.out) + row * p.out_stride;
    for (int64_t i = simt::ThreadIndex(); i < p.width; i += simt::BlockThreads()) {
      const float v = residual != nullptr ? residual[i] : simt::ToFloat(x[i]);
      out[i] = simt::FromFloat<T>(v * scale * p.weight[i]);
    }
  }
};

}  // namespace

Status RmsNorm(Stream stream, DType dtype, const RmsNormParams& p) {
  simt::LaunchShape shape;
  shape.grid_x = p.rows;
  shape.threads = 256;
  return VisitFloatDType(dtype, [&](auto t) {
    using Kernel = RmsNormKernel<decltype(t)>;
    shape.shared_bytes = sizeof(typename Kernel::Layout);
    return simt::Launch<Kernel>(shape, stream, p);
  });
}

}  // namespace quire::cuda

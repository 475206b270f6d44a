#include "kernels/reference/linear.h"

namespace quire::reference {

void Linear(const float* x, int64_t x_stride, int64_t m, const Weight& weight, const float* bias, float* out,
            int64_t out_stride, bool accumulate) {
  VisitFloatDType(weight.dtype(), [&](auto t) {
    const auto* w = static_cast<const decltype(t)*>(weight.data());
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t r = 0; r < weight.rows(); ++r) {
        double sum = bias != nullptr ? bias[r] : 0.0;
        for (int64_t k = 0; k < weight.cols(); ++k) {
          sum += static_cast<double>(x[i * x_stride + k]) * ToFloat(w[r * weight.cols() + k]);
        }
        float& y = out[i * out_stride + r];
        y = static_cast<float>(accumulate ? y + sum : sum);
      }
    }
  });
}

}  // namespace quire::reference

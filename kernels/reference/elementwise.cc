#include "kernels/reference/elementwise.h"

#include <cmath>
#include <numbers>

namespace quire::reference {

void RmsNorm(const float* x, const float* weight, float eps, int64_t rows, int64_t width, float* out) {
  for (int64_t r = 0; r < rows; ++r) {
    double sum = 0;
    for (int64_t i = 0; i < width; ++i) sum += static_cast<double>(x[r * width + i]) * x[r * width + i];
    const double scale = 1.0 / std::sqrt(sum / static_cast<double>(width) + eps);
    for (int64_t i = 0; i < width; ++i) out[r * width + i] = static_cast<float>(x[r * width + i] * scale * weight[i]);
  }
}

void HeadRmsNorm(float* x, int64_t x_stride, const float* weight, float eps, int64_t rows, int heads, int head_dim) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int h = 0; h < heads; ++h) {
      float* head = x + r * x_stride + static_cast<int64_t>(h) * head_dim;
      RmsNorm(head, weight, eps, 1, head_dim, head);
    }
  }
}

void SiluMul(const float* gate_up, int64_t rows, int64_t width, float* out) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < width; ++i) {
      const double gate = gate_up[r * 2 * width + i];
      out[r * width + i] = static_cast<float>(gate / (1.0 + std::exp(-gate)) * gate_up[r * 2 * width + width + i]);
    }
  }
}

void GeluTanhMul(const float* gate_up, int64_t rows, int64_t width, float* out) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < width; ++i) {
      const double x = gate_up[r * 2 * width + i];
      const double y = std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x);
      out[r * width + i] = static_cast<float>(x / 2 * (1 + std::tanh(y)) * gate_up[r * 2 * width + width + i]);
    }
  }
}

void Rope(const RopeParams& p, const float* inv_freq) {
  const int half = p.rotary_dim / 2;
  for (int64_t r = 0; r < p.rows; ++r) {
    for (int h = 0; h < p.heads; ++h) {
      float* x = p.x + r * p.x_stride + static_cast<int64_t>(h) * p.head_dim;
      for (int i = 0; i < half; ++i) {
        const double angle = static_cast<double>(p.positions[r]) * inv_freq[i];
        const double c = std::cos(angle) * p.magnitude, s = std::sin(angle) * p.magnitude;
        float& a = p.interleaved ? x[2 * i] : x[i];
        float& b = p.interleaved ? x[2 * i + 1] : x[i + half];
        const double a0 = a, b0 = b;
        a = static_cast<float>(a0 * c - b0 * s);
        b = static_cast<float>(b0 * c + a0 * s);
      }
    }
  }
}

}  // namespace quire::reference

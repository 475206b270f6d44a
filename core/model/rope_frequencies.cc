// Inverse frequencies of rotary embeddings under each scaling. The steps are rounded to float where transformers'
// modeling_rope_utils rounds them, so that a checkpoint sees the angles that it is served with elsewhere.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/base/check.h"
#include "core/model/family.h"
#include "core/model/model_config.h"

namespace quire {

namespace {

// base^(2i / dim) of every pair.
std::vector<float> PositionFrequencies(double base, int dim) {
  std::vector<float> frequencies(static_cast<size_t>(dim / 2));
  for (int i = 0; i < dim / 2; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(dim);
    frequencies[static_cast<size_t>(i)] = static_cast<float>(std::pow(base, static_cast<double>(exponent)));
  }
  return frequencies;
}

// NTK by parts (arXiv 2309.00071, section 3.2): channels that turn more than beta_fast times over the original context
// keep their frequency, those that turn less than beta_slow times are divided by the factor, a ramp between.
std::vector<float> Yarn(const RopeConfig& rope) {
  const int dim = rope.rotary_dim;
  // The channel pair that turns `rotations` times over the original context.
  const auto pair_of = [&](double rotations) {
    return dim * std::log(static_cast<double>(rope.original_max_position) / (rotations * 2.0 * std::numbers::pi)) /
           (2.0 * std::log(rope.theta));
  };
  double low = pair_of(rope.beta_fast), high = pair_of(rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(dim - 1));
  if (low == high) high += 0.001;  // a step instead of a ramp
  std::vector<float> inverse = PositionFrequencies(rope.theta, dim);
  for (int i = 0; i < dim / 2; ++i) {
    const auto ramp = static_cast<float>((i - low) / (high - low));
    const float keep = 1.0f - std::clamp(ramp, 0.0f, 1.0f);
    float& f = inverse[static_cast<size_t>(i)];
    const float extrapolated = 1.0f / f, interpolated = 1.0f / (static_cast<float>(rope.factor) * f);
    f = interpolated * (1.0f - keep) + extrapolated * keep;
  }
  return inverse;
}

// Llama 3.1: wavelengths over original / low_freq_factor are divided by the factor, those under original /
// high_freq_factor kept, linear in the number of turns between.
void ScaleLlama3(const RopeConfig& rope, std::vector<float>& inverse) {
  const auto factor = static_cast<float>(rope.factor);
  const double original = static_cast<double>(rope.original_max_position);
  const auto low_wavelength = static_cast<float>(original / rope.low_freq_factor);
  const auto high_wavelength = static_cast<float>(original / rope.high_freq_factor);
  for (float& f : inverse) {
    const float wavelength = static_cast<float>(2.0 * std::numbers::pi) / f;
    if (wavelength > low_wavelength) {
      f /= factor;
    } else if (wavelength >= high_wavelength) {
      const float smooth = (static_cast<float>(original) / wavelength - static_cast<float>(rope.low_freq_factor)) /
                           static_cast<float>(rope.high_freq_factor - rope.low_freq_factor);
      f = (1.0f - smooth) * f / factor + smooth * f;
    }
  }
}

}  // namespace

double YarnMscale(double scale, double weight) { return scale <= 1.0 ? 1.0 : 0.1 * weight * std::log(scale) + 1.0; }

std::vector<float> RopeInverseFrequencies(const RopeConfig& rope, int64_t length) {
  const int dim = rope.rotary_dim;
  CHECK(dim >= 2 && dim % 2 == 0);
  std::vector<float> inverse;
  if (rope.scaling == RopeScaling::kYarn) {
    inverse = Yarn(rope);
  } else {
    double base = rope.theta;
    if (rope.scaling == RopeScaling::kDynamic && length > rope.original_max_position) {
      CHECK_GT(dim, 2);
      const double stretch = static_cast<double>(length) / static_cast<double>(rope.original_max_position);
      base *= std::pow(rope.factor * stretch - (rope.factor - 1.0), static_cast<double>(dim) / (dim - 2));
    }
    inverse = PositionFrequencies(base, dim);
    for (float& f : inverse) f = 1.0f / f;
    if (rope.scaling == RopeScaling::kLinear) {
      for (float& f : inverse) f /= static_cast<float>(rope.factor);
    }
    if (rope.scaling == RopeScaling::kLlama3) ScaleLlama3(rope, inverse);
  }
  if (!rope.factors.empty()) {
    CHECK_EQ(rope.factors.size(), inverse.size());
    for (size_t i = 0; i < inverse.size(); ++i) inverse[i] /= rope.factors[i];
  }
  return inverse;
}

}  // namespace quire

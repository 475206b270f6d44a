#include "kernels/selection/cost_model.h"

#include <algorithm>
#include <cmath>

namespace quire {
namespace {

// The first whole n with n · slope > fixed, and with that for all behind it.
int64_t FirstAbove(double fixed, double slope) {
  constexpr double kMost = 1e15;
  if (!(slope > 0) || !(fixed / slope < kMost)) return AttentionCostModel::kNever;
  return static_cast<int64_t>(std::floor(fixed / slope)) + 1;
}

}  // namespace

double AttentionCostModel::DenseSlope() const {
  return static_cast<double>(shape_.TokenBytes()) * costs_.dense_byte;
}

double AttentionCostModel::SelectSlope() const {
  return static_cast<double>(shape_.MetadataBytes()) * costs_.select_byte / shape_.page_size;
}

double AttentionCostModel::ReadSlope() const { return static_cast<double>(shape_.TokenBytes()) * costs_.sparse_byte; }

double AttentionCostModel::Dense(int64_t n) const { return static_cast<double>(n) * DenseSlope(); }

double AttentionCostModel::Sparse(int64_t n) const {
  const auto length = static_cast<double>(n);
  const double budget = std::max(static_cast<double>(token_budget_), budget_share_ * length);
  return costs_.fixed + length * SelectSlope() + std::min(budget, length) * ReadSlope();
}

int64_t AttentionCostModel::Crossover() const {
  // The budget is the larger of two, so sparse wins where it would with either.
  const double left = DenseSlope() - SelectSlope();
  const double budget = static_cast<double>(token_budget_) * ReadSlope();
  return std::max({token_budget_ + 1, FirstAbove(costs_.fixed + budget, left),
                   FirstAbove(costs_.fixed, left - budget_share_ * ReadSlope())});
}

}  // namespace quire

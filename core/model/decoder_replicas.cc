#include "core/model/decoder_replicas.h"

#include <numeric>

#include "core/base/device_memory.h"
#include "core/model/weight_slices.h"
#include "kernels/elementwise.h"

namespace quire {

Result<DecoderReplicas> DecoderReplicas::Create(const Context& ctx, const ModelConfig& config, const ShardPlan& plan,
                                                Communicator* comm) {
  DecoderReplicas replicas;
  replicas.ctx_ = ctx;
  replicas.head_dim_ = config.head_dim;
  replicas.rank_ = plan.rank;
  replicas.comm_ = comm;
  if (plan.tp <= config.kv_heads) return replicas;
  for (int rank = 0; rank < plan.tp; ++rank) {
    ASSIGN_OR_RETURN(const ShardPlan other, ShardPlan::Create(NumbersOf(config), plan.tp, rank));
    replicas.plans_.push_back(other);
  }
  return replicas;
}

Status DecoderReplicas::SumMass(float* mass, int64_t floats) {
  if (!any()) return OkStatus();
  counts_.clear();
  for (const ShardPlan& plan : plans_) counts_.push_back(plan.has_heads() ? floats : 0);
  const int64_t own = counts_[static_cast<size_t>(rank_)];
  const int64_t total = std::accumulate(counts_.begin(), counts_.end(), int64_t{0});
  RETURN_IF_ERROR(all_.Reserve(sizeof(float) * static_cast<size_t>(total), ctx_.device));
  const TensorView send{mass, DType::kF32, {own}, ctx_.device};
  const TensorView recv{all_.As<void>(), DType::kF32, {total}, ctx_.device};
  if (plans_.back().has_heads()) {
    RETURN_IF_ERROR(comm_->AllGather(send, recv, ctx_.stream));
  } else {
    RETURN_IF_ERROR(comm_->AllGatherV(send, recv, counts_, ctx_.stream));
  }
  if (own == 0) return OkStatus();
  const float* first_mass = all_.As<float>() + floats * first();
  RETURN_IF_ERROR(
      CopyOnDevice(ctx_.device, mass, first_mass, sizeof(float) * static_cast<size_t>(floats), ctx_.stream));
  for (int r = 1; r < mine().replicas; ++r) Add(ctx_, first_mass + r * floats, 1, floats, mass);
  return OkStatus();
}

Status DecoderReplicas::GatherQueries(SelectParams* params) {
  if (!any()) return OkStatus();
  const int64_t rows = params->rows;
  const auto width_of = [&](int rank) { return plans_[static_cast<size_t>(rank)].q_heads.size() * head_dim_; };
  counts_.clear();
  for (int rank = 0; rank < static_cast<int>(plans_.size()); ++rank) counts_.push_back(rows * width_of(rank));
  const int64_t total = std::accumulate(counts_.begin(), counts_.end(), int64_t{0});
  const int64_t width = width_of(rank_);
  RETURN_IF_ERROR(send_.Reserve(sizeof(float) * static_cast<size_t>(rows * width), ctx_.device));
  RETURN_IF_ERROR(all_.Reserve(sizeof(float) * static_cast<size_t>(total), ctx_.device));
  // Rows of `columns` floats, as they lie in both.
  const auto copy = [&](float* to, int64_t to_stride, const float* from, int64_t from_stride, int64_t columns) {
    return CopyRowsOnDevice(ctx_.device, to, sizeof(float) * to_stride, from, sizeof(float) * from_stride,
                            sizeof(float) * columns, rows, ctx_.stream);
  };
  RETURN_IF_ERROR(copy(send_.As<float>(), width, params->q, params->q_stride, width));
  RETURN_IF_ERROR(comm_->AllGatherV({send_.As<void>(), DType::kF32, {rows * width}, ctx_.device},
                                    {all_.As<void>(), DType::kF32, {total}, ctx_.device}, counts_, ctx_.stream));
  if (width == 0) return OkStatus();
  // The heads of the KV head's ranks put side by side are the group.
  const int end = first() + mine().replicas;
  int64_t group_width = 0;
  for (int r = first(); r < end; ++r) group_width += width_of(r);
  RETURN_IF_ERROR(group_.Reserve(sizeof(float) * static_cast<size_t>(rows * group_width), ctx_.device));
  int64_t from = 0, column = 0;
  for (int r = 0; r < first(); ++r) from += counts_[static_cast<size_t>(r)];
  for (int r = first(); r < end; ++r) {
    RETURN_IF_ERROR(copy(group_.As<float>() + column, group_width, all_.As<float>() + from, width_of(r), width_of(r)));
    from += counts_[static_cast<size_t>(r)];
    column += width_of(r);
  }
  params->q = group_.As<float>();
  params->q_stride = group_width;
  params->heads = params->q_heads;
  params->q_heads = static_cast<int>(group_width / head_dim_);
  for (int r = first(); r < rank_; ++r) {
    params->first_head += static_cast<int>(plans_[static_cast<size_t>(r)].q_heads.size());
  }
  return OkStatus();
}

}  // namespace quire

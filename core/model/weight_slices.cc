#include "core/model/weight_slices.h"

#include "core/base/check.h"

namespace quire {
namespace {

constexpr Param kGlobal[] = {Param::kEmbedding, Param::kFinalNorm, Param::kHead};
constexpr Param kOfLayer[] = {Param::kAttnNorm, Param::kQ,       Param::kK,       Param::kV,     Param::kO,
                              Param::kQBias,    Param::kKBias,   Param::kVBias,   Param::kOBias, Param::kQNorm,
                              Param::kKNorm,    Param::kMlpNorm, Param::kGate,    Param::kUp,    Param::kDown,
                              Param::kGateBias, Param::kUpBias,  Param::kDownBias, Param::kPostAttnNorm,
                              Param::kPostMlpNorm};

int64_t SliceBytes(const TensorInfo& info, const TensorSlice& slice) {
  const int64_t block = BlockElements(info.type);
  if (slice.col_end <= slice.col_begin) return 0;
  const int64_t blocks = (slice.col_end + block - 1) / block - slice.col_begin / block;
  return (slice.row_end - slice.row_begin) * blocks * BlockBytes(info.type);
}

}  // namespace

ModelNumbers NumbersOf(const ModelConfig& config) {
  return {config.q_heads, config.kv_heads, config.ffn, config.vocab, 1};
}

TensorSlice SliceOf(const ModelConfig& config, const ShardPlan& plan, Param param) {
  const int64_t d = config.head_dim;
  const Range one{0, 1}, hidden{0, config.hidden}, head{0, d};
  const Range q{plan.q_heads.begin * d, plan.q_heads.end * d}, kv{plan.kv_heads.begin * d, plan.kv_heads.end * d};
  const auto slice = [](const Range& rows, const Range& cols) {
    return TensorSlice{rows.begin, rows.end, cols.begin, cols.end};
  };
  switch (param) {
    case Param::kEmbedding:
    case Param::kHead: return slice(plan.vocab, hidden);
    case Param::kFinalNorm:
    case Param::kAttnNorm:
    case Param::kMlpNorm:
    case Param::kPostAttnNorm:
    case Param::kPostMlpNorm:
    case Param::kOBias:
    case Param::kDownBias: return slice(one, hidden);
    case Param::kQ: return slice(q, hidden);
    case Param::kK:
    case Param::kV: return slice(kv, hidden);
    case Param::kO: return slice(hidden, q);
    case Param::kQBias: return slice(one, q);
    case Param::kKBias:
    case Param::kVBias: return slice(one, kv);
    case Param::kQNorm:
    case Param::kKNorm: return slice(one, head);
    case Param::kGate:
    case Param::kUp: return slice(plan.ffn, hidden);
    case Param::kDown: return slice(hidden, plan.ffn);
    case Param::kGateBias:
    case Param::kUpBias: return slice(one, plan.ffn);
  }
  CHECK(false);
  return {};
}

bool Holds(const ModelConfig& config, const ShardPlan& plan, Param param) {
  switch (param) {
    case Param::kHead: return !config.tie_embeddings;
    case Param::kQBias:
    case Param::kKBias:
    case Param::kVBias: return config.qkv_bias;
    case Param::kOBias: return config.out_bias && plan.rank == 0;
    case Param::kQNorm:
    case Param::kKNorm: return config.qk_norm && plan.has_heads();
    case Param::kPostAttnNorm:
    case Param::kPostMlpNorm: return config.post_norms;
    case Param::kGateBias:
    case Param::kUpBias: return config.mlp_bias;
    case Param::kDownBias: return config.mlp_bias && plan.rank == 0;
    default: return true;
  }
}

int64_t BytesToRead(const Checkpoint& checkpoint, const ShardPlan& plan) {
  int64_t bytes = 0;
  const auto add = [&](Param param, int layer) {
    if (!Holds(checkpoint.config, plan, param)) return;
    const TensorInfo* info = checkpoint.weights->Find(checkpoint.TensorName(param, layer));
    if (info != nullptr) bytes += SliceBytes(*info, SliceOf(checkpoint.config, plan, param));
  };
  for (const Param param : kGlobal) add(param, 0);
  for (int layer = 0; layer < checkpoint.config.layers; ++layer) {
    for (const Param param : kOfLayer) add(param, layer);
  }
  return bytes;
}

}  // namespace quire

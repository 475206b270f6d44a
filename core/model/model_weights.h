// One rank's weights of a model, ready for Linear: loaded from a Checkpoint by slices of a ShardPlan. Mapped, not
// copied, where the file's type allows; on a GPU a copy in its memory.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "core/base/context.h"
#include "core/base/status.h"
#include "core/model/families.h"
#include "core/model/model_config.h"
#include "kernels/linear.h"
#include "parallel/shard_plan.h"

namespace quire {

// What a rank has no part of (its plan's range is empty) is empty.
struct LayerWeights {
  Tensor attn_norm;            // [hidden] F32
  Weight qkv;                  // [(q_heads + 2 * kv_heads) * head_dim][hidden]; local heads
  Tensor qkv_bias;             // the same rows, F32; empty when the model has none
  Tensor q_norm, k_norm;       // [head_dim] F32; empty
  Weight out;                  // [hidden][q_heads * head_dim]
  Tensor out_bias;             // [hidden] F32; empty (rank 0 adds it)
  Tensor post_attn_norm;       // [hidden] F32; empty when the model has none
  Tensor mlp_norm;             // [hidden] F32
  Weight gate_up;              // [2 * ffn][hidden], gate first; local columns
  Tensor gate_up_bias;         // [2 * ffn]; empty
  Weight down;                 // [hidden][ffn]
  Tensor down_bias;            // [hidden]; empty (rank 0 adds it)
  Tensor post_mlp_norm;        // [hidden] F32; empty
};

struct WeightBytes {
  size_t mapped = 0;  // read in place from the file
  size_t owned = 0;   // converted or joined copies
  size_t packed = 0;  // for the matrix unit
  size_t total() const { return mapped + owned + packed; }
};

struct ModelWeights {
  Weight embedding;            // [vocab slice][hidden]; also the head when tied
  Weight head;                 // [vocab slice][hidden]; empty when tied
  Tensor final_norm;           // [hidden] F32
  std::vector<LayerWeights> layers;
  DType dtype = DType::kBF16;  // of the matrices
  int64_t bytes_read = 0;      // of the checkpoint, by this rank
  std::unique_ptr<WeightSource> source;  // keeps the mapping alive

  const Weight& head_or_embedding() const { return head.empty() ? embedding : head; }
  WeightBytes bytes() const;
};

// progress, nullable, is called with (layers done, layers) as loading goes. dtype: of the matrices in memory.
// Takes checkpoint.weights.
Result<ModelWeights> LoadWeights(const Context& ctx, Checkpoint& checkpoint, const ShardPlan& plan, DType dtype,
                                 const std::function<void(int, int)>& progress = {});

}  // namespace quire

// Decoder: the one forward pass of every family. embed → layers (norm, qkv, rope, append, select, attend, out, mlp) →
// logits. It sees the cache only through LayerPages and PageTableView, and ranks only through Communicator.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/base/context.h"
#include "core/base/status.h"
#include "core/model/model_config.h"
#include "core/model/model_weights.h"
#include "kernels/attention_prefill.h"
#include "kernels/page_table.h"
#include "kernels/selection/policy.h"
#include "parallel/communicator.h"
#include "parallel/shard_plan.h"

namespace quire {

// Layers that share one kind of cache: KV heads (local), widths, window. Llama has one, a model with windowed and
// global layers has two. Order: by first layer.
struct CacheKind {
  std::vector<int> layers;
  int kv_heads = 0;  // local to this rank; 0 on one without heads, whose cache is never looked at
  int k_dim = 0, v_dim = 0;
  int window = 0;
};
std::vector<CacheKind> CacheKinds(const ModelConfig& config, const ShardPlan& plan);

// The memory and tables of one cache kind in one step.
struct CacheView {
  std::vector<LayerPages> layers;  // in the order of CacheKind::layers
  PageTableView table;             // table.format is the same for all layers
};

// A run of rows of one sequence. Prefill chunks use the prefill kernel (dense, causal); decode rows (rows == 1) use the
// decode kernel with the policy's selection. Of an evicting policy's sequence, chunks that start at or past its
// capacity (none crosses it) are run as decode rows, one after the other in each layer: each takes the slot of another
// token before it attends, so what a row sees doesn't depend on how the prompt was cut. Layers must have no window
// then.
struct ForwardChunk {
  int32_t seq = 0;        // index into the CacheView tables
  int32_t first_row = 0;  // chunks are given in order of their rows, without gaps; all decode chunks come first
  int32_t rows = 0;
  int32_t start_pos = 0;  // position of the first row = tokens in the cache before it
  bool decode = false;
  int32_t rope_length = 0;  // total length that dynamic rope scaling counts with; 0: start_pos + rows
  const AttentionPolicy* policy = nullptr;  // decode: selects; prefill: may only remember; null: dense
  // What the policy remembers of the sequence, with entries for all its pages, this step's included; null when it
  // declares no history. Written by the layers that it selects in; the others' may be without memory.
  PageHistory* history = nullptr;  // [layers]
  SlotMap* slots = nullptr;        // [layers] of a policy that declares it, else null
};

struct ForwardBatch {
  std::span<const int32_t> tokens;       // [rows]
  std::span<const ForwardChunk> chunks;
  std::span<const CacheView> caches;     // one per CacheKind; their pages for the new rows exist already
  std::span<const int32_t> logit_rows;   // rows whose logits are wanted, ascending
};

// What attention read: sums over decode rows, layers and KV heads. A KV head that several ranks hold is counted by the
// first of them alone.
struct AttentionReads {
  int64_t pages_read = 0;
  int64_t pages_total = 0;
  int64_t bytes_read = 0;   // K and V of the pages read, and page data read to choose them, by the policies' formulas
  int64_t bytes_total = 0;  // K and V of all pages
  // Where they are asked for (DecoderOptions::missing_mass_bound): selections by query head, and the sum of their bounds
  // (kernels/selection/missing_mass.h) in billionths, so that sums over ranks don't depend on an order.
  int64_t bounds = 0;
  int64_t bound_billionths = 0;

  // The mean bound of the attention left out; NaN without any.
  double missing_mass_bound() const { return 1e-9 * static_cast<double>(bound_billionths) / static_cast<double>(bounds); }

  AttentionReads& operator+=(const AttentionReads& o) {
    pages_read += o.pages_read;
    pages_total += o.pages_total;
    bytes_read += o.bytes_read;
    bytes_total += o.bytes_total;
    bounds += o.bounds;
    bound_billionths += o.bound_billionths;
    return *this;
  }
  AttentionReads operator-(const AttentionReads& o) const {
    return {pages_read - o.pages_read, pages_total - o.pages_total, bytes_read - o.bytes_read,
            bytes_total - o.bytes_total, bounds - o.bounds, bound_billionths - o.bound_billionths};
  }
};

// Of a step, on this rank; seconds are wall time inside the calls, on the CPU (a GPU's work isn't done when they return).
struct AttentionStats : AttentionReads {
  double selection_seconds = 0;
  double attention_seconds = 0;
  std::vector<AttentionReads> row_reads;  // by decode row, in the order of the batch's decode chunks

  AttentionReads& reads() { return *this; }
  // What the row with this place among the decode chunks has read.
  void Count(size_t row, const AttentionReads& more) {
    reads() += more;
    row_reads[row] += more;
  }
};

// Called, when set, with each selection made: for tests and evaluation (recall, equality over ranks).
// On the CPU only.
struct SelectionObserver {
  virtual ~SelectionObserver() = default;
  // q: [rows][q_heads][k_dim]; params carries layer, lengths and pages.
  virtual void OnSelect(const SelectParams& params, const SelectionView& selection) = 0;
};

struct DecoderOptions {
  int max_rows = 0;       // most rows of one Forward (scratch is made once for them)
  int max_logit_rows = 0;
  int64_t max_length = 0;  // longest sequence, for selection scratch
  bool enforce_eager = false;  // on a GPU: no CUDA graphs of decode steps
  bool missing_mass_bound = false;  // counts AttentionReads::bounds of policies that choose by page metadata
};

// Bytes of the rows between kernels that Create makes; attention workspaces come on top as lengths and batches grow.
size_t DecoderScratchBytes(const ModelConfig& config, const ShardPlan& plan, const DecoderOptions& options);

class Decoder {
 public:
  ~Decoder();
  Decoder(Decoder&&) noexcept;

  // weights, comm and ctx.pool must outlive the decoder.
  static Result<Decoder> Create(const Context& ctx, const ModelConfig& config, const ModelWeights* weights,
                                const ShardPlan& plan, Communicator* comm, const DecoderOptions& options);

  // Runs the step; on a GPU enqueues it. The batch's arrays are the host's. logits: [logit_rows][local vocab] F32, row
  // stride local vocab, on the decoder's device. Statuses come from the communicator and from the device's memory only;
  // sizes beyond the options are CHECKed.
  Status Forward(const ForwardBatch& batch, float* logits);

  // Of the last Forward; on a GPU after Synchronize.
  const AttentionStats& last_stats() const;
  size_t scratch_bytes() const;  // what Create made, plus workspaces grown since
  void set_observer(SelectionObserver* observer);  // not owned; null: none

 private:
  struct Impl;
  explicit Decoder(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace quire

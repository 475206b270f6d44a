// The attention of one layer of a step: appends the new K and V, lets each decode row's policy select, runs the decode
// and prefill kernels over runs of rows that share policy and density, and shows policies that remember the attention
// that rows have paid. Holds the kernels' workspaces. On a rank without heads it does none of this, but is there where
// the others gather.
#pragma once

#include <cstdint>
#include <vector>

#include "core/model/decoder.h"
#include "core/model/decoder_inputs.h"
#include "core/model/decoder_replicas.h"
#include "core/model/decoder_rows.h"
#include "core/model/decoder_scratch.h"
#include "kernels/attention_decode.h"
#include "kernels/attention_mass.h"
#include "kernels/elementwise.h"

namespace quire {

// One layer's part of a step, as the decoder gives it.
struct LayerAttention {
  int layer = 0;
  bool last = false;   // prefill rows without logits needn't attend
  int window = 0;      // 0: none
  LayerPages pages;
  PageTableView table;
  RopeParams rope = {};        // of q and k in qkv
  // [decode_rows][2][rotary_dim / 2] what turns queries to where they stand for their sinks; null: no row has any.
  const float* turns = nullptr;
  const float* qkv = nullptr;  // [rows][(q_heads + 2 * kv_heads) * head_dim], not rotated yet; rows by place
  float* out = nullptr;        // [rows][q_heads * head_dim]
};

// Floats of attention mass that rows of prompts are shown by at once, unless one row has more: K is read once for each lot.
constexpr int64_t PromptMassFloats(Device device) {
  return int64_t{1} << (device.kind == DeviceKind::kCpu ? 20 : 24);
}

class AttentionRunner {
 public:
  // comm outlives the runner. max_length: the longest sequence, 0 if unknown; selections are sized for it.
  static Result<AttentionRunner> Create(const Context& ctx, const ModelConfig& config, const ShardPlan& plan,
                                        Communicator* comm, int64_t max_length);

  // Before a step's first layer.
  Status BeginStep(const DecoderRows& rows);
  Status Run(const LayerAttention& step, const DecoderRows& rows, const DecoderInputs& inputs, AttentionStats& stats);
  // Adds what the layer reads of dense rows, and of page data; of all layers, in order, whether Run enqueued them or a graph
  // had their work. Asks nothing but lengths.
  void Count(const LayerAttention& step, const DecoderRows& rows, AttentionStats& stats);
  // All that the layer's launches depend on beside its pages, inputs and out: how its decode rows are cut into runs.
  void AppendKey(const LayerAttention& step, const DecoderRows& rows, std::vector<uint64_t>* key) const;
  // After its last: what the selections listed is on its way to the host …
  Status FetchCounts();
  // … and is counted once it is there (a GPU: after Synchronize).
  void CountPages(const DecoderRows& rows, AttentionStats& stats) const;

  size_t scratch_bytes() const;
  void set_observer(SelectionObserver* observer) { observer_ = observer; }
  void set_missing_mass_bound(bool on) { missing_mass_bound_ = on; }

 private:
  // Consecutive decode rows [begin, end), none two of one sequence, that one call serves; policy null: dense. Rows that
  // fill up follow the row before them.
  // remembers: their policy, if it makes a history of this layer of what they paid, dense or not. weighs: their policy, if it
  // keeps a map of slots, likewise. overwrites: each row takes another token's slot, and nothing is selected.
  struct DecodeRun {
    int begin = 0, end = 0;
    const AttentionPolicy* policy = nullptr;
    const AttentionPolicy* remembers = nullptr;
    const AttentionPolicy* weighs = nullptr;
    bool overwrites = false;
  };
  // Rotates and appends the rows that have a slot of their own.
  void Append(const LayerAttention& step, const DecoderRows& rows, const DecoderInputs& inputs);
  // The run's rows are rotated, and take the slots that their policy gives up.
  Status Overwrite(const LayerAttention& step, const DecoderInputs& inputs, const DecodeRun& run);
  DecodeRun NextRun(const LayerAttention& step, const DecoderRows& rows, int begin) const;
  Status RunDecode(const LayerAttention& step, const DecoderRows& rows, const DecoderInputs& inputs, const DecodeRun& run,
                   AttentionStats& stats);
  void CountRun(const LayerAttention& step, const DecoderRows& rows, const DecodeRun& run, AttentionStats& stats);
  Status RunPrefill(const LayerAttention& step, const DecoderRows& rows, const DecoderInputs& inputs);
  // Over sinks and a window, by a policy whose positions count inside what it keeps.
  Status AttendSinks(const LayerAttention& step, const AttentionDecodeParams& decode, const DecodeRun& run,
                     const SinkWindow& window);
  // Shows the run's rows to their policy; mass_ is theirs.
  Status RememberDecode(const LayerAttention& step, const DecoderInputs& inputs, const DecodeRun& run, int64_t mass_pages);
  // Of the layer's queries, whose log-sum-exps are in lse_.
  PrefillMassParams MassParams(const LayerAttention& step);
  // The same by slots, in a second pass over K; lse_ is known.
  Status RememberSlots(const LayerAttention& step, const DecoderInputs& inputs, const DecodeRun& run, int64_t slots);
  // Softmax weights for mass_, of params' chunk.
  Status Mass(const PrefillMassParams& params);
  // Shows the rows of a prompt that its policy asks for to it; lse_ is known. chunk: of the prefill chunks.
  Status RememberPrompt(const LayerAttention& step, const DecoderRows& rows, const DecoderInputs& inputs, size_t chunk);
  // Whether what the run's selections leave out is bounded: of policies that choose by page metadata, whatever others beside
  // them keep.
  bool Bounds(const DecodeRun& run) const;
  // Makes the bounds; lse_ has the rows' log-sum-exps.
  Status BoundMissingMass(const LayerAttention& step, const DecoderRows& rows, const DecoderInputs& inputs, const DecodeRun& run);
  // The run's rows with this rank's own queries.
  SelectParams ParamsOf(const LayerAttention& step, const DecoderRows& rows, const DecoderInputs& inputs,
                        const DecodeRun& run) const;
  // Fills selection_ for the run's rows.
  Status Select(const LayerAttention& step, const DecoderRows& rows, const DecoderInputs& inputs, const DecodeRun& run);
  // On a rank without heads: nothing but its part in the gathers of those that share KV heads, in their order.
  Status RunWithoutHeads(const LayerAttention& step, const DecoderRows& rows);

  Context ctx_;
  int layers_ = 0;
  int q_heads_ = 0, kv_heads_ = 0, head_dim_ = 0;  // local
  int model_group_ = 1;  // query heads of a KV head, in the whole model
  int64_t qkv_width_ = 0;
  float scale_ = 1.0f, softcap_ = 0.0f;  // softcap_ 0: none
  int64_t max_length_ = 0;
  SelectionObserver* observer_ = nullptr;
  bool missing_mass_bound_ = false;
  DecoderReplicas replicas_;
  bool counts_pages_ = true;  // the first replica of a KV head does, so that sums over ranks have each head once
  SelectionView selection_;
  // What the host learns of the step's selections, run by run: the lengths of their lists, [rows][kv_heads], and where they
  // are bounded behind these a float a row.
  struct CountedRun {
    int begin = 0, end = 0;  // decode rows
    bool bounds = false;
    size_t first = 0;        // in counts_memory_
    int64_t block_bytes = 0;  // of K and V of a page and KV head
  };
  std::vector<CountedRun> counted_runs_;
  size_t counts_used_ = 0, counts_seen_ = 0;  // numbers, by Run, by Count
  GrowBuffer counts_memory_;
  HostBuffer counts_on_host_;
  GrowBuffer workspace_, selection_memory_;
  GrowBuffer masks_;                    // of selection_, [rows][kv_heads][max_pages][words]
  GrowBuffer correction_;               // of selection_: alpha [rows][q_heads], v_mean [rows][kv_heads][head_dim]
  GrowBuffer turned_;                   // [rows][q_heads][head_dim] queries for sinks
  GrowBuffer mass_;                     // [rows][kv_heads][pages or slots]
  GrowBuffer lse_;                      // [rows][q_heads], of prompts, of rows that remember by slots and of those whose missing mass is bounded
  GrowBuffer taken_;                    // [kv_heads][rows] slots that a run's rows take, by the heads' own maps
};

}  // namespace quire

// The forward pass, top to bottom. Rows are f32 throughout (a GPU rounds those that only a product reads as it makes them); scratch is made once. Rows run in the order of
// DecoderRows; in the last layer only the rows whose logits are wanted go on after attention.
#include "core/model/decoder.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "core/base/check.h"
#include "core/base/device_memory.h"
#include "core/model/decoder_attention.h"
#include "core/model/decoder_graphs.h"
#include "core/model/decoder_inputs.h"
#include "core/model/decoder_rope.h"
#include "core/model/decoder_rows.h"
#include "kernels/elementwise.h"
#include "kernels/linear.h"

namespace quire {
namespace {

// The rows of a step between kernels; all dense f32.
struct Scratch {
  float* residual = nullptr;  // [max_rows][hidden]
  float* normed = nullptr;    // [max_rows][hidden]
  float* partial = nullptr;   // [max_rows][hidden] this rank's part of a sum over ranks
  float* qkv = nullptr;       // [max_rows][(q_heads + 2 * kv_heads) * head_dim]
  float* attended = nullptr;  // [max_rows][q_heads * head_dim]
  float* gate_up = nullptr;   // [max_rows][2 * ffn]
  float* mlp = nullptr;       // [max_rows][ffn]
  float* cos_sin = nullptr;   // [max_rows][2][rotary_dim / 2]
  float* window_cos_sin = nullptr;  // the same of layers with a window, where theirs is another one
  float* last_residual = nullptr;  // [max_logit_rows][hidden] rows with logits, in the last layer
  float* last_attended = nullptr;  // [max_logit_rows][q_heads * head_dim]
  Buffer memory;
};

// What each pointer of Scratch points to, in elements.
std::vector<std::pair<float* Scratch::*, int64_t>> ScratchParts(const ModelConfig& config, const ShardPlan& plan,
                                                                const DecoderOptions& options) {
  const int64_t rows = options.max_rows, last = options.max_logit_rows, d = config.head_dim;
  const int64_t q = plan.q_heads.size() * d, qkv = q + 2 * plan.kv_heads.size() * d, ffn = plan.ffn.size();
  std::vector<std::pair<float* Scratch::*, int64_t>> parts = {
      {&Scratch::residual, rows * config.hidden},      {&Scratch::normed, rows * config.hidden},
      {&Scratch::partial, rows * config.hidden},       {&Scratch::qkv, rows * qkv},
      {&Scratch::attended, rows * q},                  {&Scratch::gate_up, rows * 2 * ffn},
      {&Scratch::mlp, rows * ffn},                     {&Scratch::cos_sin, rows * config.rope.rotary_dim},
      {&Scratch::window_cos_sin, config.window_rope ? rows * config.window_rope->rotary_dim : 0},
      {&Scratch::last_residual, last * config.hidden}, {&Scratch::last_attended, last * q},
  };
  constexpr int64_t kAlign = Buffer::kAlignment / sizeof(float);
  for (auto& [pointer, elements] : parts) elements = (elements + kAlign - 1) / kAlign * kAlign;
  return parts;
}

Result<Scratch> MakeScratch(const ModelConfig& config, const ShardPlan& plan, const DecoderOptions& options,
                            Device device) {
  Scratch s;
  ASSIGN_OR_RETURN(s.memory, Buffer::Create(DecoderScratchBytes(config, plan, options), device));
  float* next = reinterpret_cast<float*>(s.memory.data());
  for (const auto& [pointer, elements] : ScratchParts(config, plan, options)) {
    s.*pointer = next;
    next += elements;
  }
  return s;
}

// What the config may ask for but the forward pass doesn't do: refused by name, never run wrongly.
Status CheckSupported(const ModelConfig& config) {
  if (config.activation == Activation::kGelu) {
    return Unimplemented("'" + config.name + "' wants GELU by the error function; SiLU and GELU's tanh form are there");
  }
  if (config.window_rope && config.window_rope->rotary_dim != config.rope.rotary_dim) {
    return Unimplemented("'" + config.name + "' rotates another number of channels in layers with a window");
  }
  const int rotary = config.rope.rotary_dim;
  if (rotary < 0 || rotary % 2 != 0 || rotary > config.head_dim) {
    return InvalidArgument("'" + config.name + "' rotates " + std::to_string(rotary) + " of " +
                           std::to_string(config.head_dim) + " channels of a head; an even part of them can be");
  }
  return OkStatus();
}

// Weights and plan come from the same config by our own hands, so a mismatch is a bug.
void CheckShapes(const ModelConfig& config, const ShardPlan& plan, const ModelWeights& weights) {
  const int64_t d = config.head_dim, q = plan.q_heads.size() * d, kv = plan.kv_heads.size() * d;
  CHECK_EQ(static_cast<int>(weights.layers.size()), config.layers);
  CHECK_EQ(weights.embedding.rows(), plan.vocab.size());
  CHECK_EQ(weights.head_or_embedding().rows(), plan.vocab.size());
  for (const LayerWeights& w : weights.layers) {
    CHECK_EQ(w.qkv.rows(), q + 2 * kv);
    CHECK_EQ(w.qkv.cols(), plan.has_heads() ? config.hidden : 0);
    CHECK_EQ(w.out.rows(), plan.has_heads() ? config.hidden : 0);
    CHECK_EQ(w.out.cols(), q);
    CHECK_EQ(w.gate_up.rows(), 2 * plan.ffn.size());
    CHECK_EQ(w.down.cols(), plan.ffn.size());
  }
}

// The tensor's elements, or null where the model has none.
const float* OrNull(const Tensor& tensor) { return tensor.bytes() == 0 ? nullptr : tensor.data<float>(); }

}  // namespace

size_t DecoderScratchBytes(const ModelConfig& config, const ShardPlan& plan, const DecoderOptions& options) {
  size_t bytes = 0;
  for (const auto& [pointer, elements] : ScratchParts(config, plan, options)) {
    bytes += static_cast<size_t>(elements) * sizeof(float);
  }
  return bytes;
}

struct Decoder::Impl {
  Impl(const Context& context, const ModelConfig& model, const ShardPlan& shard, AttentionRunner runner)
      : ctx(context), config(model), plan(shard), attention(std::move(runner)), rope(model.rope) {
    if (model.window_rope) window_rope.emplace(*model.window_rope);
  }

  // After each large part of a layer: a chunk of rows through a large model's layer takes seconds on few processors, and
  // whoever watches must see it move.
  void Advance() const {
    if (ctx.progress != nullptr) ctx.progress->Advance();
  }

  Context ctx;
  ModelConfig config;
  ShardPlan plan;
  AttentionRunner attention;
  RopeTables rope;
  std::optional<RopeTables> window_rope;
  const ModelWeights* weights = nullptr;
  Communicator* comm = nullptr;
  DecoderOptions options;
  std::vector<int> kind_of_layer;  // [layers] index into the step's caches
  std::vector<int> index_in_kind;  // [layers]
  std::vector<int> kind_windows;   // [kinds]
  Scratch scratch;
  DecoderRows rows;
  DecoderInputs inputs;
  StepGraphs graphs;
  StepGraphs::Key key;  // of the step's graph
  AttentionStats stats;
  GrowBuffer turn_tables;  // [decode rows][2][rotary_dim / 2]
  bool counted = true;  // stats has the sparse rows' pages
  // The rows that run now: all of the step, and in the last layer after attention those with logits.
  float* residual = nullptr;
  float* attended = nullptr;
  int64_t live_rows = 0;

  Status Forward(const ForwardBatch& batch, float* logits);
  // Whether the step is filled up, and whether it may be a graph.
  bool FillsUp(const ForwardBatch& batch) const;
  bool GraphsAllowed() const;
  void MakeKey(const ForwardBatch& batch, const float* logits);
  size_t ScratchBytes() const;
  // From embedding to logits; inputs and rope tables are there.
  Status RunLayers(const ForwardBatch& batch, float* logits);
  // Memory for rows that only the product with this weight reads.
  ProductRows RowsFor(const Weight& weight, float* memory) const { return {memory, ProductType(ctx, weight)}; }
  // residual += partial, normed before where the model says so; normed = its norm with `weight`.
  void JoinResidual(const Tensor& post_norm, const Tensor& weight, ProductRows normed);
  // Of queries that are turned for their sinks.
  bool Turns() const { return !rows.turns.empty() && rope.half() > 0; }
  Status FillTurns();
  Status EmbedRows();
  void ProjectQkv(int layer);
  RopeParams RopeOf(int layer) const;
  LayerAttention AttentionOf(const ForwardBatch& batch, int layer);
  void KeepLogitRows();
  Status ProjectOut(int layer);
  Status Mlp(int layer);
  void Logits(float* logits);
  // partial = sum over ranks of partial.
  Status SumPartial();
  // The same where this rank has no part of the product. It isn't rank 0 then, which adds the biases.
  Status SumNothing();
};

Status Decoder::Impl::SumPartial() {
  if (plan.tp == 1) return OkStatus();
  return comm->AllReduce({scratch.partial, DType::kF32, {live_rows, config.hidden}, ctx.device}, ctx.stream);
}

Status Decoder::Impl::SumNothing() {
  RETURN_IF_ERROR(ClearOnDevice(ctx.device, scratch.partial, sizeof(float) * live_rows * config.hidden, ctx.stream));
  return SumPartial();
}

Status Decoder::Impl::FillTurns() {
  if (!Turns()) return OkStatus();
  RETURN_IF_ERROR(turn_tables.Reserve(sizeof(float) * rows.decode_rows * 2 * rope.half(), ctx.device));
  return rope.FillTurns(ctx, rows, inputs.turns, turn_tables.As<float>());
}

Status Decoder::Impl::EmbedRows() {
  const Weight& table = weights->embedding;
  for (const int32_t token : rows.tokens) CHECK(token >= 0 && token < config.vocab);
  Embed(ctx, table.data(), table.dtype(), plan.vocab.begin, plan.vocab.size(), inputs.tokens, live_rows,
        config.hidden, residual);
  if (plan.tp > 1) {
    RETURN_IF_ERROR(comm->AllReduce({residual, DType::kF32, {live_rows, config.hidden}, ctx.device}, ctx.stream));
  }
  if (config.embedding_scale != 1.0f) Scale(ctx, config.embedding_scale, live_rows, config.hidden, residual);
  return OkStatus();
}

void Decoder::Impl::JoinResidual(const Tensor& post_norm, const Tensor& weight, ProductRows normed) {
  Scratch& s = scratch;
  if (const float* post = OrNull(post_norm); post != nullptr) {
    RmsNorm(ctx, s.partial, post, config.norm_eps, live_rows, config.hidden, s.partial);
  }
  AddRmsNorm(ctx, s.partial, residual, weight.data<float>(), config.norm_eps, live_rows, config.hidden, normed);
}

void Decoder::Impl::ProjectQkv(int layer) {
  const LayerWeights& w = weights->layers[layer];
  Scratch& s = scratch;
  const ProductRows normed = RowsFor(w.qkv, s.normed);
  if (layer == 0) {
    RmsNorm(ctx, residual, w.attn_norm.data<float>(), config.norm_eps, live_rows, config.hidden, normed);
  } else {
    JoinResidual(weights->layers[layer - 1].post_mlp_norm, w.attn_norm, normed);
  }
  if (!plan.has_heads()) return;
  const int q_heads = static_cast<int>(plan.q_heads.size()), kv_heads = static_cast<int>(plan.kv_heads.size());
  const int d = config.head_dim;
  const int64_t width = w.qkv.rows();
  Linear(ctx, normed, config.hidden, live_rows, w.qkv, OrNull(w.qkv_bias), s.qkv, width);
  if (config.qk_norm) {
    HeadRmsNorm(ctx, s.qkv, width, w.q_norm.data<float>(), config.norm_eps, live_rows, q_heads, d);
    HeadRmsNorm(ctx, s.qkv + int64_t{q_heads} * d, width, w.k_norm.data<float>(), config.norm_eps, live_rows, kv_heads,
                d);
  }
}

// q and k stand side by side in a row, so one call rotates both.
RopeParams Decoder::Impl::RopeOf(int layer) const {
  return {.x = scratch.qkv,
          .x_stride = weights->layers[layer].qkv.rows(),
          .rows = live_rows,
          .heads = static_cast<int>(plan.q_heads.size() + plan.kv_heads.size()),
          .head_dim = config.head_dim,
          .rotary_dim = config.rope.rotary_dim,
          .interleaved = config.rope.interleaved,
          .positions = inputs.pos,
          .cos_sin = window_rope && config.window[layer] > 0 ? scratch.window_cos_sin : scratch.cos_sin};
}

LayerAttention Decoder::Impl::AttentionOf(const ForwardBatch& batch, int layer) {
  const int kind = kind_of_layer[layer];
  const CacheView& cache = batch.caches[kind];
  return {.layer = layer,
          .last = layer + 1 == config.layers,
          .window = kind_windows[kind],
          .pages = cache.layers[index_in_kind[layer]],
          .table = inputs.tables[kind],
          .rope = RopeOf(layer),
          .turns = Turns() ? turn_tables.As<float>() : nullptr,
          .qkv = scratch.qkv,
          .out = scratch.attended};
}

void Decoder::Impl::KeepLogitRows() {
  const int64_t hidden = config.hidden, width = plan.q_heads.size() * config.head_dim;
  live_rows = static_cast<int64_t>(rows.logit_places.size());
  const auto take = [&](const float* from, int64_t columns, float* to) {
    Embed(ctx, from, DType::kF32, 0, rows.rows, inputs.logit_places, live_rows, columns, to);
  };
  take(residual, hidden, scratch.last_residual);
  if (width > 0) take(attended, width, scratch.last_attended);
  residual = scratch.last_residual;
  attended = scratch.last_attended;
}

Status Decoder::Impl::ProjectOut(int layer) {
  if (!plan.has_heads()) return SumNothing();
  const LayerWeights& w = weights->layers[layer];
  Linear(ctx, attended, w.out.cols(), live_rows, w.out, OrNull(w.out_bias), scratch.partial, config.hidden);
  return SumPartial();
}

Status Decoder::Impl::Mlp(int layer) {
  const LayerWeights& w = weights->layers[layer];
  Scratch& s = scratch;
  const int64_t ffn = plan.ffn.size();
  const ProductRows normed = RowsFor(w.gate_up, s.normed), mlp = RowsFor(w.down, s.mlp);
  JoinResidual(w.post_attn_norm, w.mlp_norm, normed);
  if (ffn == 0) return SumNothing();
  Linear(ctx, normed, config.hidden, live_rows, w.gate_up, OrNull(w.gate_up_bias), s.gate_up, 2 * ffn);
  Advance();
  if (config.activation == Activation::kSilu) {
    SiluMul(ctx, s.gate_up, live_rows, ffn, mlp);
  } else {
    GeluTanhMul(ctx, s.gate_up, live_rows, ffn, mlp);
  }
  Linear(ctx, mlp, ffn, live_rows, w.down, OrNull(w.down_bias), s.partial, config.hidden);
  return SumPartial();
}

void Decoder::Impl::Logits(float* logits) {
  Scratch& s = scratch;
  const Weight& head = weights->head_or_embedding();
  if (head.empty()) return;  // no part of the vocabulary
  const ProductRows normed = RowsFor(head, s.normed);
  JoinResidual(weights->layers.back().post_mlp_norm, weights->final_norm, normed);
  Linear(ctx, normed, config.hidden, live_rows, head, nullptr, logits, head.rows());
  if (config.final_softcap > 0) SoftCapRows(ctx, config.final_softcap, live_rows, head.rows(), logits);
}

// A GPU's steps of decode rows alone, where no sequence evicts.
bool Decoder::Impl::FillsUp(const ForwardBatch& batch) const {
  return ctx.device.kind == DeviceKind::kCuda && !batch.chunks.empty() &&
         std::all_of(batch.chunks.begin(), batch.chunks.end(), [](const ForwardChunk& chunk) {
           return chunk.decode && (chunk.policy == nullptr || chunk.policy->capacity() == 0);
         });
}

bool Decoder::Impl::GraphsAllowed() const {
  return rows.padded && !options.enforce_eager && (plan.tp == 1 || comm->StaysOnStream());
}

// All that RunLayers passes on but what Create fixed.
void Decoder::Impl::MakeKey(const ForwardBatch& batch, const float* logits) {
  key.clear();
  const auto add = [&](uint64_t number) { key.push_back(number); };
  const auto add_address = [&](const void* p) { add(reinterpret_cast<uintptr_t>(p)); };
  add(static_cast<uint64_t>(rows.rows));
  add(rows.logit_places.size());
  for (const void* p : {inputs.tokens, inputs.seq, inputs.pos, inputs.len, inputs.logit_places}) add_address(p);
  add_address(inputs.history);
  add_address(logits);
  for (size_t kind = 0; kind < inputs.tables.size(); ++kind) {
    const PageTableView& table = inputs.tables[kind];
    for (const void* p : {table.page_ids, table.page_begin, table.group_ids, table.group_begin}) add_address(p);
    add(static_cast<uint64_t>(table.num_seqs));
  }
  add(static_cast<uint64_t>(Turns()));
  for (int layer = 0; layer < config.layers; ++layer) {
    const LayerAttention step = AttentionOf(batch, layer);
    add_address(step.pages.k);
    attention.AppendKey(step, rows, &key);
  }
}

size_t Decoder::Impl::ScratchBytes() const {
  return scratch.memory.size() + turn_tables.size() + attention.scratch_bytes() + inputs.bytes();
}

Status Decoder::Impl::RunLayers(const ForwardBatch& batch, float* logits) {
  RETURN_IF_ERROR(attention.BeginStep(rows));  // once more: after a capture that failed all is enqueued again
  live_rows = rows.rows;
  residual = scratch.residual;
  attended = scratch.attended;
  RETURN_IF_ERROR(EmbedRows());
  for (int layer = 0; layer < config.layers; ++layer) {
    ProjectQkv(layer);
    Advance();
    RETURN_IF_ERROR(attention.Run(AttentionOf(batch, layer), rows, inputs, stats));
    Advance();
    if (layer + 1 == config.layers) {
      RETURN_IF_ERROR(attention.FetchCounts());
      KeepLogitRows();
      if (live_rows == 0) return OkStatus();  // a chunk in the middle of a prompt: its K and V are all it is for
    }
    RETURN_IF_ERROR(ProjectOut(layer));
    Advance();
    RETURN_IF_ERROR(Mlp(layer));
    Advance();
  }
  Logits(logits);
  return OkStatus();
}

Status Decoder::Impl::Forward(const ForwardBatch& batch, float* logits) {
  CHECK_LE(static_cast<int64_t>(batch.tokens.size()), int64_t{options.max_rows});
  CHECK_LE(static_cast<int64_t>(batch.logit_rows.size()), int64_t{options.max_logit_rows});
  CHECK_EQ(batch.caches.size(), kind_windows.size());
  stats = {};
  counted = false;
  const RowPadding padding{options.max_rows, options.max_logit_rows, config.layers - 1,
                           batch.caches[0].table.format.page_size, options.max_length};
  rows.Build(batch, FillsUp(batch) ? &padding : nullptr);
  const auto decodes = static_cast<size_t>(
      std::count_if(batch.chunks.begin(), batch.chunks.end(), [](const ForwardChunk& chunk) { return chunk.decode; }));
  stats.row_reads.assign(decodes, {});
  if (rows.rows == 0) return attention.BeginStep(rows);
  rows.PlanTurns(config.layers - 1, batch.caches[0].table.format.page_size);
  RETURN_IF_ERROR(inputs.Bring(ctx, rows, batch.caches));
  RETURN_IF_ERROR(rope.Fill(ctx, rows, inputs.pos, scratch.cos_sin));
  if (window_rope) RETURN_IF_ERROR(window_rope->Fill(ctx, rows, inputs.pos, scratch.window_cos_sin));
  RETURN_IF_ERROR(FillTurns());
  RETURN_IF_ERROR(attention.BeginStep(rows));
  if (GraphsAllowed()) {
    MakeKey(batch, logits);
    RETURN_IF_ERROR(graphs.Run(*ctx.session, key, ScratchBytes() + ctx.session->bytes(),
                               [&] { return RunLayers(batch, logits); }));
    Advance();
  } else {
    RETURN_IF_ERROR(RunLayers(batch, logits));
  }
  for (int layer = 0; layer < config.layers; ++layer) attention.Count(AttentionOf(batch, layer), rows, stats);
  return OkStatus();
}

Decoder::Decoder(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Decoder::~Decoder() = default;
Decoder::Decoder(Decoder&&) noexcept = default;

Result<Decoder> Decoder::Create(const Context& ctx, const ModelConfig& config, const ModelWeights* weights,
                                const ShardPlan& plan, Communicator* comm, const DecoderOptions& options) {
  CHECK(weights != nullptr && comm != nullptr && ctx.pool != nullptr);
  CHECK_EQ(comm->size(), plan.tp);
  CHECK_EQ(comm->rank(), plan.rank);
  RETURN_IF_ERROR(CheckSupported(config));
  if (options.max_rows < 1 || options.max_logit_rows < 1) {
    return InvalidArgument("a decoder for " + std::to_string(options.max_rows) + " rows and " +
                           std::to_string(options.max_logit_rows) + " rows of logits can't run; both must be at least 1");
  }
  CheckShapes(config, plan, *weights);
  ASSIGN_OR_RETURN(AttentionRunner runner, AttentionRunner::Create(ctx, config, plan, comm, options.max_length));
  runner.set_missing_mass_bound(options.missing_mass_bound);
  auto impl = std::make_unique<Impl>(ctx, config, plan, std::move(runner));
  impl->weights = weights;
  impl->comm = comm;
  impl->options = options;
  impl->kind_of_layer.resize(config.layers);
  impl->index_in_kind.resize(config.layers);
  const std::vector<CacheKind> kinds = CacheKinds(config, plan);
  for (size_t kind = 0; kind < kinds.size(); ++kind) {
    impl->kind_windows.push_back(kinds[kind].window);
    for (size_t i = 0; i < kinds[kind].layers.size(); ++i) {
      impl->kind_of_layer[kinds[kind].layers[i]] = static_cast<int>(kind);
      impl->index_in_kind[kinds[kind].layers[i]] = static_cast<int>(i);
    }
  }
  ASSIGN_OR_RETURN(impl->scratch, MakeScratch(config, plan, options, ctx.device));
  return Decoder(std::move(impl));
}

Status Decoder::Forward(const ForwardBatch& batch, float* logits) { return impl_->Forward(batch, logits); }
const AttentionStats& Decoder::last_stats() const {
  if (!impl_->counted) impl_->attention.CountPages(impl_->rows, impl_->stats);
  impl_->counted = true;
  return impl_->stats;
}
size_t Decoder::scratch_bytes() const {
  return impl_->ScratchBytes();
}
void Decoder::set_observer(SelectionObserver* observer) { impl_->attention.set_observer(observer); }

}  // namespace quire

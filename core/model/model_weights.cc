// Loading: every matrix is either borrowed from the mapped file (rows whole, type as wanted, joined parts neighbours) or
// converted by all threads, a block of rows a task, straight into its place in a joined matrix.
#include "core/model/model_weights.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <span>
#include <string>
#include <utility>

#include "core/base/device_memory.h"
#include "core/model/weight_slices.h"

namespace quire {
namespace {

constexpr int64_t kTaskBytes = 256 << 10;  // of output: some dozen microseconds of conversion

// A slice of one tensor; a Weight is one or more of them of equal width, one below the other.
struct Part {
  std::string name;
  TensorSlice slice;
  int64_t rows() const { return slice.row_end - slice.row_begin; }
  int64_t cols() const { return slice.col_end - slice.col_begin; }
};

// One task of a conversion: some rows of a part.
struct Task {
  const Part* part = nullptr;
  const std::byte* mapped = nullptr;  // the part's first row, when it lies in the file as wanted
  int64_t row = 0, rows = 0;          // within the part
  std::byte* dst = nullptr;
};

class Loader {
 public:
  Loader(const Context& ctx, const Checkpoint& checkpoint, const ShardPlan& plan, DType dtype)
      : ctx_(ctx), checkpoint_(checkpoint), plan_(plan), source_(*checkpoint.weights), dtype_(dtype) {}

  bool Has(Param param) const { return Holds(checkpoint_.config, plan_, param); }

  // This rank's part of one parameter.
  Part Slice(Param param, int layer) const {
    return {checkpoint_.TensorName(param, layer), SliceOf(checkpoint_.config, plan_, param)};
  }

  // Parts joined, ready for Linear.
  Result<Weight> Matrix(std::span<const Part> parts) const {
    ASSIGN_OR_RETURN(Weight weight, Rows(parts));
    if (!weight.empty()) RETURN_IF_ERROR(PrepareWeight(ctx_, weight));
    return weight;
  }
  Result<Weight> Matrix(const Part& part) const { return Matrix(std::span<const Part>(&part, 1)); }

  // Parts joined, for looking rows up only.
  Result<Weight> Rows(std::span<const Part> parts) const {
    const int64_t cols = parts[0].cols();
    int64_t rows = 0;
    for (const Part& part : parts) rows += part.rows();
    if (rows == 0 || cols == 0) return Weight();  // a rank without columns of this layer
    std::vector<const std::byte*> mapped;
    for (const Part& part : parts) mapped.push_back(MappedRows(part));
    const bool aligned = reinterpret_cast<uintptr_t>(mapped[0]) % kMappedAlignment == 0;
    if (aligned && AreNeighbours(parts, mapped)) {
      source_.CountMapped(rows * cols * ElementSize(dtype_));
      Advance();
      if (ctx_.device.kind == DeviceKind::kCpu) return Weight::Borrow(mapped[0], dtype_, rows, cols);
      ASSIGN_OR_RETURN(Tensor there, Brought(mapped[0], dtype_, {rows, cols}));
      return Weight::Own(std::move(there));
    }
    ASSIGN_OR_RETURN(Tensor tensor, Tensor::Create(dtype_, {rows, cols}));
    RETURN_IF_ERROR(Fill(parts, mapped, dtype_, tensor.data<std::byte>()));
    ASSIGN_OR_RETURN(tensor, Placed(std::move(tensor)));
    return Weight::Own(std::move(tensor));
  }

  // Slices of vectors joined, as f32, each element `offset` more than the file's. Columns of a Part are the vector's
  // elements, its rows are [0, 1).
  Result<Tensor> Vector(std::span<const Part> parts, float offset = 0) const {
    int64_t elements = 0;
    for (const Part& part : parts) elements += part.cols();
    if (elements == 0) return Tensor();
    ASSIGN_OR_RETURN(Tensor tensor, Tensor::Create(DType::kF32, {elements}));
    float* dst = tensor.data<float>();
    for (const Part& part : parts) {
      RETURN_IF_ERROR(source_.Read(part.name, part.slice, DType::kF32, dst));
      for (int64_t i = 0; offset != 0 && i < part.cols(); ++i) dst[i] += offset;
      dst += part.cols();
    }
    Advance();
    return Placed(std::move(tensor));
  }
  Result<Tensor> Vector(const Part& part) const { return Vector(std::span<const Part>(&part, 1)); }

  // A norm's weight as it is multiplied with; empty where the model has none of the kind.
  Result<Tensor> Norm(Param param, int layer) const {
    if (!Has(param)) return Tensor();
    const Part part = Slice(param, layer);
    return Vector(std::span<const Part>(&part, 1), checkpoint_.config.norm_offset);
  }

 private:
  // A copy on the context's device of what lies in host memory.
  Result<Tensor> Brought(const void* data, DType dtype, const Shape& shape) const {
    ASSIGN_OR_RETURN(Tensor there, Tensor::Create(dtype, shape, ctx_.device));
    RETURN_IF_ERROR(CopyToDevice(ctx_.device, there.data<std::byte>(), data, there.bytes()));
    return there;
  }
  // The tensor, of host memory, where the context's kernels read it.
  Result<Tensor> Placed(Tensor tensor) const {
    if (ctx_.device.kind == DeviceKind::kCpu) return tensor;
    return Brought(tensor.data<std::byte>(), tensor.dtype(), tensor.shape());
  }

  void Advance() const {
    if (ctx_.progress != nullptr) ctx_.progress->Advance();
  }

  // The part's first row in the mapped file; null when it isn't there as whole rows of dtype_.
  const std::byte* MappedRows(const Part& part) const {
    const TensorInfo* info = source_.Find(part.name);
    if (info == nullptr || part.slice.col_begin != 0 || part.slice.col_end != info->cols) return nullptr;
    if (part.slice.row_begin < 0 || part.slice.row_end > info->rows) return nullptr;  // Read says what is wrong
    const auto* first = static_cast<const std::byte*>(source_.Mapped(part.name, dtype_));
    return first == nullptr ? nullptr : first + part.slice.row_begin * info->cols * ElementSize(dtype_);
  }

  bool AreNeighbours(std::span<const Part> parts, const std::vector<const std::byte*>& mapped) const {
    for (size_t i = 0; i < parts.size(); ++i) {
      if (mapped[i] == nullptr) return false;
      if (i == 0) continue;
      const int64_t bytes = parts[i - 1].rows() * parts[i - 1].cols() * ElementSize(dtype_);
      if (mapped[i] != mapped[i - 1] + bytes) return false;
    }
    return true;
  }

  Status Fill(std::span<const Part> parts, const std::vector<const std::byte*>& mapped, DType dtype,
              std::byte* dst) const {
    std::vector<Task> tasks;
    for (size_t i = 0; i < parts.size(); ++i) {
      const int64_t row_bytes = parts[i].cols() * ElementSize(dtype);
      const int64_t step = std::max<int64_t>(1, kTaskBytes / row_bytes);
      for (int64_t row = 0; row < parts[i].rows(); row += step) {
        const int64_t rows = std::min(step, parts[i].rows() - row);
        tasks.push_back({&parts[i], mapped[i], row, rows, dst});
        dst += rows * row_bytes;
      }
    }
    std::mutex mutex;
    Status first_error;
    ctx_.pool->ParallelFor(static_cast<int64_t>(tasks.size()), [&](int64_t t, int) {
      Status status = Run(tasks[t], dtype);
      if (status.ok()) return;
      std::lock_guard lock(mutex);
      if (first_error.ok()) first_error = std::move(status);
    });
    return first_error;
  }

  Status Run(const Task& task, DType dtype) const {
    Advance();
    const TensorSlice& whole = task.part->slice;
    if (task.mapped != nullptr) {
      const int64_t row_bytes = task.part->cols() * ElementSize(dtype);
      std::memcpy(task.dst, task.mapped + task.row * row_bytes, static_cast<size_t>(task.rows * row_bytes));
      source_.CountMapped(task.rows * row_bytes);
      return OkStatus();
    }
    const int64_t begin = whole.row_begin + task.row;
    return source_.Read(task.part->name, {begin, begin + task.rows, whole.col_begin, whole.col_end}, dtype, task.dst);
  }

  const Context& ctx_;
  const Checkpoint& checkpoint_;
  const ShardPlan& plan_;
  const WeightSource& source_;
  DType dtype_;
};

// The attention half of a layer: q, k, v by heads (rows), out by heads (columns).
Status LoadAttention(const Loader& loader, int layer, LayerWeights& out) {
  ASSIGN_OR_RETURN(out.attn_norm, loader.Norm(Param::kAttnNorm, layer));
  const Part qkv[] = {loader.Slice(Param::kQ, layer), loader.Slice(Param::kK, layer), loader.Slice(Param::kV, layer)};
  ASSIGN_OR_RETURN(out.qkv, loader.Matrix(qkv));
  if (loader.Has(Param::kQBias)) {
    const Part bias[] = {loader.Slice(Param::kQBias, layer), loader.Slice(Param::kKBias, layer),
                         loader.Slice(Param::kVBias, layer)};
    ASSIGN_OR_RETURN(out.qkv_bias, loader.Vector(bias));
  }
  ASSIGN_OR_RETURN(out.q_norm, loader.Norm(Param::kQNorm, layer));
  ASSIGN_OR_RETURN(out.k_norm, loader.Norm(Param::kKNorm, layer));
  ASSIGN_OR_RETURN(out.post_attn_norm, loader.Norm(Param::kPostAttnNorm, layer));
  ASSIGN_OR_RETURN(out.out, loader.Matrix(loader.Slice(Param::kO, layer)));
  if (loader.Has(Param::kOBias)) {
    ASSIGN_OR_RETURN(out.out_bias, loader.Vector(loader.Slice(Param::kOBias, layer)));
  }
  return OkStatus();
}

// The mlp half: gate and up by rows, down by columns.
Status LoadMlp(const Loader& loader, int layer, LayerWeights& out) {
  ASSIGN_OR_RETURN(out.mlp_norm, loader.Norm(Param::kMlpNorm, layer));
  ASSIGN_OR_RETURN(out.post_mlp_norm, loader.Norm(Param::kPostMlpNorm, layer));
  const Part gate_up[] = {loader.Slice(Param::kGate, layer), loader.Slice(Param::kUp, layer)};
  ASSIGN_OR_RETURN(out.gate_up, loader.Matrix(gate_up));
  ASSIGN_OR_RETURN(out.down, loader.Matrix(loader.Slice(Param::kDown, layer)));
  if (loader.Has(Param::kGateBias)) {
    const Part bias[] = {loader.Slice(Param::kGateBias, layer), loader.Slice(Param::kUpBias, layer)};
    ASSIGN_OR_RETURN(out.gate_up_bias, loader.Vector(bias));
  }
  if (loader.Has(Param::kDownBias)) {
    ASSIGN_OR_RETURN(out.down_bias, loader.Vector(loader.Slice(Param::kDownBias, layer)));
  }
  return OkStatus();
}

void Count(const Weight& weight, WeightBytes& bytes) {
  (weight.owned() ? bytes.owned : bytes.mapped) += weight.bytes();
  bytes.packed += weight.packed_bytes();
}

}  // namespace

Result<ModelWeights> LoadWeights(const Context& ctx, Checkpoint& checkpoint, const ShardPlan& plan, DType dtype,
                                 const std::function<void(int, int)>& progress) {
  if (dtype != DType::kF32 && dtype != DType::kBF16 && dtype != DType::kF16) {
    return InvalidArgument("weights can't be held as " + std::string(DTypeName(dtype)) +
                           "; use float32, bfloat16 or float16");
  }
  if (checkpoint.weights == nullptr) {
    return FailedPrecondition("the weights of '" + checkpoint.config.name + "' were taken already; open it again");
  }
  const ModelConfig& config = checkpoint.config;
  const Loader loader(ctx, checkpoint, plan, dtype);
  ModelWeights weights;
  weights.dtype = dtype;
  const Part embedding = loader.Slice(Param::kEmbedding, 0);
  if (config.tie_embeddings) {
    ASSIGN_OR_RETURN(weights.embedding, loader.Matrix(embedding));
  } else {
    ASSIGN_OR_RETURN(weights.embedding, loader.Rows({&embedding, 1}));
  }
  weights.layers.resize(config.layers);
  for (int layer = 0; layer < config.layers; ++layer) {
    if (progress) progress(layer, config.layers);
    RETURN_IF_ERROR(LoadAttention(loader, layer, weights.layers[layer]));
    RETURN_IF_ERROR(LoadMlp(loader, layer, weights.layers[layer]));
  }
  ASSIGN_OR_RETURN(weights.final_norm, loader.Norm(Param::kFinalNorm, 0));
  if (!config.tie_embeddings) {
    ASSIGN_OR_RETURN(weights.head, loader.Matrix(loader.Slice(Param::kHead, 0)));
  }
  if (progress) progress(config.layers, config.layers);
  // The copies went through the device's own stream, which the rank's doesn't wait for.
  RETURN_IF_ERROR(Synchronize(ctx.device, {}));
  weights.bytes_read = checkpoint.weights->bytes_read();
  weights.source = std::move(checkpoint.weights);
  // With nothing borrowed the mapping has done its work, and its pages needn't stay in memory.
  if (weights.bytes().mapped == 0) weights.source.reset();
  return weights;
}

WeightBytes ModelWeights::bytes() const {
  WeightBytes total;
  Count(embedding, total);
  Count(head, total);
  total.owned += final_norm.bytes();
  for (const LayerWeights& l : layers) {
    for (const Weight* w : {&l.qkv, &l.out, &l.gate_up, &l.down}) Count(*w, total);
    for (const Tensor* t : {&l.attn_norm, &l.qkv_bias, &l.q_norm, &l.k_norm, &l.out_bias, &l.post_attn_norm,
                            &l.mlp_norm, &l.gate_up_bias, &l.down_bias, &l.post_mlp_norm}) {
      total.owned += t->bytes();
    }
  }
  return total;
}

}  // namespace quire

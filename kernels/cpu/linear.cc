// Weight, and Linear's choice of a loop: how the product is cut into tasks and which kernel runs them.
//
// Our own two loops (linear_tile.h) keep one summation order, so their results depend neither on m nor on the cut.
// oneDNN (onednn_matmul.h) takes over where PrepareWeight packed for it, and never in batch-invariant mode.
#include "kernels/linear.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>

#include "core/base/check.h"
#include "kernels/cpu/linear_tile.h"
#include "kernels/cpu/onednn_matmul.h"
#include "kernels/cpu/ops.h"

namespace quire {

// Made by PrepareWeight for oneDNN.
struct Weight::Packed {
  std::unique_ptr<cpu::OneDnnMatmul> matmul;
  int64_t from_m = 1;  // rows of x from which it is used
};

namespace {

// Weight bytes a task of the direct loop reads at least and at most: enough to hide the hand-out and the start of a
// stream, small enough to balance; in between, some eight tasks a thread.
constexpr int64_t kDirectTaskMinBytes = 64 << 10;
constexpr int64_t kDirectTaskMaxBytes = 1 << 20;
// Products with fewer multiply-adds run inline: waking the pool costs some microseconds.
constexpr int64_t kInlineWork = 32 << 10;
// From this many rows of x on, expanding weights once pays.
constexpr int64_t kPanelsFromM = 17;
// Below this many rows of x the product is bound by reading weights, which our kernel does without rounding x to bf16.
constexpr int64_t kOneDnnFromM = 5;
// Rows of x per task of the panel loop.
constexpr int64_t kPanelTaskM = 256;

// This thread's scratch of at least `floats`, kept between calls.
float* Scratch(int64_t floats) {
  static thread_local Buffer buffer;
  const size_t bytes = static_cast<size_t>(floats) * sizeof(float);
  if (buffer.size() < bytes) {
    Result<Buffer> grown = Buffer::Create(bytes);
    CHECK(grown.ok());
    buffer = std::move(grown).value();
  }
  return reinterpret_cast<float*>(buffer.data());
}

Status CheckShape(DType dtype, int64_t rows, int64_t cols) {
  if (dtype != DType::kF32 && dtype != DType::kBF16 && dtype != DType::kF16) {
    return InvalidArgument("a weight of dtype " + std::string(DTypeName(dtype)) +
                           " can't be multiplied; use float32, bfloat16 or float16");
  }
  if (rows <= 0 || cols <= 0) {
    return InvalidArgument("a weight of shape [" + std::to_string(rows) + ", " + std::to_string(cols) +
                           "] has no elements; both sizes must be positive");
  }
  return OkStatus();
}

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

Weight::Weight() = default;
Weight::~Weight() = default;
Weight::Weight(Weight&& other) noexcept { *this = std::move(other); }
Weight& Weight::operator=(Weight&& other) noexcept {
  if (this == &other) return *this;
  data_ = std::exchange(other.data_, nullptr);
  dtype_ = other.dtype_;
  rows_ = std::exchange(other.rows_, 0);
  cols_ = std::exchange(other.cols_, 0);
  storage_ = std::exchange(other.storage_, Tensor());
  packed_ = std::move(other.packed_);
  return *this;
}

Result<Weight> Weight::Borrow(const void* data, DType dtype, int64_t rows, int64_t cols) {
  RETURN_IF_ERROR(CheckShape(dtype, rows, cols));
  CHECK(data != nullptr);
  Weight w;
  w.data_ = data;
  w.dtype_ = dtype;
  w.rows_ = rows;
  w.cols_ = cols;
  return w;
}

Result<Weight> Weight::Own(Tensor tensor) {
  if (tensor.shape().rank != 2) {
    return InvalidArgument("a weight must have two dimensions; got shape " + tensor.shape().ToString());
  }
  RETURN_IF_ERROR(CheckShape(tensor.dtype(), tensor.shape()[0], tensor.shape()[1]));
  Weight w;
  w.storage_ = std::move(tensor);
  w.data_ = w.storage_.data<std::byte>();
  w.dtype_ = w.storage_.dtype();
  w.rows_ = w.storage_.shape()[0];
  w.cols_ = w.storage_.shape()[1];
  return w;
}

Result<Weight> Weight::Concat(Weight* parts, int count) {
  if (count <= 0) return InvalidArgument("Concat of no weights; give at least one");
  if (count == 1) return std::move(parts[0]);
  int64_t rows = 0;
  bool adjacent = true;
  for (int i = 0; i < count; ++i) {
    const Weight& part = parts[i];
    if (part.empty()) return InvalidArgument("part " + std::to_string(i) + " of a Concat is an empty weight");
    if (part.cols_ != parts[0].cols_ || part.dtype_ != parts[0].dtype_) {
      return InvalidArgument("part " + std::to_string(i) + " of a Concat has " + std::to_string(part.cols_) + " columns of " +
                             std::string(DTypeName(part.dtype_)) + ", part 0 has " + std::to_string(parts[0].cols_) +
                             " of " + std::string(DTypeName(parts[0].dtype_)) + "; they must be equal");
    }
    rows += part.rows_;
    if (part.owned()) adjacent = false;
    if (i > 0) {
      const Weight& before = parts[i - 1];
      if (static_cast<const std::byte*>(before.data_) + before.bytes() != part.data_) adjacent = false;
    }
  }
  if (adjacent) return Borrow(parts[0].data_, parts[0].dtype_, rows, parts[0].cols_);
  ASSIGN_OR_RETURN(Tensor joined, Tensor::Create(parts[0].dtype_, {rows, parts[0].cols_}));
  std::byte* to = joined.data<std::byte>();
  for (int i = 0; i < count; ++i) {
    std::memcpy(to, parts[i].data_, parts[i].bytes());
    to += parts[i].bytes();
    parts[i] = Weight();
  }
  return Own(std::move(joined));
}

bool Weight::owned() const { return storage_.bytes() != 0; }
size_t Weight::packed_bytes() const { return packed_ == nullptr ? 0 : packed_->matmul->packed_bytes(); }

// QUIRE_ONEDNN=never keeps to our own kernels; =always takes oneDNN for every product that it has (f32 too, any m), which is
// how its path is tested on machines without a matrix unit.
Status cpu::PrepareWeight(const Context& ctx, Weight& weight) {
  if (weight.empty()) return InvalidArgument("PrepareWeight of an empty weight");
  if (weight.packed_ != nullptr || ctx.batch_invariant) return OkStatus();
  const char* text = std::getenv("QUIRE_ONEDNN");
  const std::string_view choice = text == nullptr ? "auto" : text;
  if (choice != "auto" && choice != "never" && choice != "always") {
    return InvalidArgument("QUIRE_ONEDNN is '" + std::string(choice) + "'; use auto, never or always");
  }
  const bool always = choice == "always" && weight.dtype() != DType::kF16;
  if (choice == "never" || (!always && !cpu::OneDnnPays(cpu::DetectMatrixUnit(), weight.dtype()))) return OkStatus();
  Result<std::unique_ptr<cpu::OneDnnMatmul>> matmul =
      cpu::OneDnnMatmul::Create(ctx, weight.data(), weight.dtype(), weight.rows(), weight.cols());
  if (!matmul.ok()) {
    // Not having a product is no failure: ours serves every weight.
    return matmul.status().code() == StatusCode::kUnimplemented ? OkStatus() : matmul.status();
  }
  weight.packed_ = std::make_unique<Weight::Packed>();
  weight.packed_->matmul = std::move(matmul).value();
  weight.packed_->from_m = always ? 1 : kOneDnnFromM;
  return OkStatus();
}

void cpu::Linear(const Context& ctx, const float* x, int64_t x_stride, int64_t m, const Weight& weight, const float* bias,
            float* out, int64_t out_stride, bool accumulate) {
  CHECK(!weight.empty());
  CHECK_GE(x_stride, weight.cols());
  CHECK_GE(out_stride, weight.rows());
  if (m <= 0) return;
  if (const Weight::Packed* packed = weight.packed(); packed != nullptr && !ctx.batch_invariant && m >= packed->from_m) {
    return packed->matmul->Run(ctx, x, x_stride, m, bias, out, out_stride, accumulate);
  }
  cpu::LinearBlock all;
  all.weight = weight.data();
  all.dtype = weight.dtype();
  all.cols = weight.cols();
  all.x = x;
  all.x_stride = x_stride;
  all.bias = bias;
  all.out = out;
  all.out_stride = out_stride;
  all.accumulate = accumulate;
  all.m_end = m;
  all.row_end = weight.rows();

  if (m < kPanelsFromM) {
    if (m * weight.rows() * weight.cols() < kInlineWork) return cpu::LinearDirect(all);
    const int64_t row_bytes = weight.cols() * ElementSize(weight.dtype());
    const int64_t share = weight.rows() * row_bytes / (int64_t{8} * ctx.pool->threads());
    const int64_t task_bytes = std::clamp(share, kDirectTaskMinBytes, kDirectTaskMaxBytes);
    const int64_t task_rows = std::max<int64_t>(24, CeilDiv(task_bytes / row_bytes, 24) * 24);
    ctx.pool->ParallelFor(CeilDiv(weight.rows(), task_rows), [&](int64_t task, int) {
      cpu::LinearBlock block = all;
      block.row_begin = task * task_rows;
      block.row_end = std::min(block.row_begin + task_rows, weight.rows());
      cpu::LinearDirect(block);
    });
    return;
  }
  const int64_t panels = CeilDiv(weight.rows(), cpu::kPanelRows);
  const int64_t chunks = CeilDiv(m, kPanelTaskM);
  ctx.pool->ParallelFor(panels * chunks, [&](int64_t task, int) {
    cpu::LinearBlock block = all;
    block.row_begin = task % panels * cpu::kPanelRows;
    block.row_end = std::min(block.row_begin + cpu::kPanelRows, weight.rows());
    block.m_begin = task / panels * kPanelTaskM;
    block.m_end = std::min(block.m_begin + kPanelTaskM, m);
    cpu::LinearPanels(block, Scratch(cpu::LinearPanelsScratch(kPanelTaskM, weight.cols())));
  });
}

}  // namespace quire

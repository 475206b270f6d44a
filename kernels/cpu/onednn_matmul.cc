#include "kernels/cpu/onednn_matmul.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <oneapi/dnnl/dnnl.hpp>
#include <string>
#include <utility>
#include <vector>

#include "core/base/buffer.h"
#include "core/base/check.h"
#include "kernels/cpu/linear_tile.h"

namespace quire::cpu {
namespace {

using dnnl::memory;

// Rows of x of one product: a call takes as many of the larger as fit, and pads the rest.
constexpr std::array<int64_t, 3> kTileRows = {16, 64, 256};
// Output features of one packed block, and so of one task.
constexpr int64_t kBlockRows = 256;

// Rows of x that one task converts.
constexpr int64_t kConvertRows = 16;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// While it lives, OpenMP regions entered by this thread have one thread. Looked up at run time: oneDNN brings the
// OpenMP runtime that it was built with, and a build of it without OpenMP needs none of this.
class OneOpenMpThread {
 public:
  OneOpenMpThread() {
    if (get() == nullptr || set() == nullptr) return;
    before_ = get()();
    if (before_ != 1) set()(1);
  }
  ~OneOpenMpThread() {
    if (before_ > 1) set()(before_);
  }
  OneOpenMpThread(const OneOpenMpThread&) = delete;
  OneOpenMpThread& operator=(const OneOpenMpThread&) = delete;

 private:
  static auto get() -> int (*)() {
    static const auto f = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "omp_get_max_threads"));
    return f;
  }
  static auto set() -> void (*)(int) {
    static const auto f = reinterpret_cast<void (*)(int)>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"));
    return f;
  }
  int before_ = 1;
};

dnnl::matmul::primitive_desc Describe(const dnnl::engine& engine, const memory::desc& src, const memory::desc& weights,
                                      const memory::desc& dst) {
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
#if DNNL_VERSION_MAJOR >= 3
  return dnnl::matmul::primitive_desc(engine, src, weights, dst, attr);
#else
  return dnnl::matmul::primitive_desc(dnnl::matmul::desc(src, weights, dst), attr, engine);
#endif
}

// A thread's buffers between calls: x in the product's dtype, the product, oneDNN's own scratch.
struct ThreadScratch {
  Buffer x, y, pad;
};
ThreadScratch& Scratch() {
  static thread_local ThreadScratch scratch;
  return scratch;
}
std::byte* AtLeast(Buffer& buffer, size_t bytes) {
  if (buffer.size() < bytes) {
    Result<Buffer> grown = Buffer::Create(bytes);
    CHECK(grown.ok());
    buffer = std::move(grown).value();
  }
  return buffer.data();
}

}  // namespace

MatrixUnit DetectMatrixUnit() {
#if defined(__x86_64__)
  // ISA values are sets of bits that include those of the smaller ones.
  const auto have = static_cast<unsigned>(dnnl::get_effective_cpu_isa());
  const auto includes = [&](dnnl::cpu_isa isa) { return (have & static_cast<unsigned>(isa)) == static_cast<unsigned>(isa); };
  if (includes(dnnl::cpu_isa::avx512_core_amx)) return MatrixUnit::kAmxBf16;
  if (includes(dnnl::cpu_isa::avx512_core_bf16)) return MatrixUnit::kAvx512Bf16;
#endif
  return MatrixUnit::kNone;
}

const char* MatrixUnitName(MatrixUnit unit) {
  switch (unit) {
    case MatrixUnit::kNone: return "none";
    case MatrixUnit::kAvx512Bf16: return "avx512_bf16";
    case MatrixUnit::kAmxBf16: return "amx_bf16";
  }
  return "";
}

bool OneDnnPays(MatrixUnit unit, DType dtype) { return unit != MatrixUnit::kNone && dtype == DType::kBF16; }

struct OneDnnMatmul::State {
  // The products of one count of output features: kBlockRows, or what the last block has.
  struct Products {
    std::array<dnnl::matmul, kTileRows.size()> tile;
    memory::desc weights;  // packed
    std::array<memory::desc, kTileRows.size()> src, dst, scratchpad;
  };

  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  DType dtype = DType::kF32;
  int64_t rows = 0, cols = 0;
  std::array<Products, 2> products;  // [0] full blocks, [1] the last one where it is shorter
  std::vector<Buffer> blocks;        // packed weights, one per block of output features
  size_t packed_bytes = 0;

  int64_t BlockRows(size_t block) const {
    return std::min(kBlockRows, rows - static_cast<int64_t>(block) * kBlockRows);
  }
  const Products& ProductsOf(size_t block) const { return products[BlockRows(block) == kBlockRows ? 0 : 1]; }

  void MakeProducts(int64_t block_rows, Products& p) {
    const auto type = dtype == DType::kF32 ? memory::data_type::f32 : memory::data_type::bf16;
    using Tag = memory::format_tag;
    memory::desc weights({cols, block_rows}, type, Tag::any);
    // From the largest down: it chooses the order of the weights, the others must take it.
    for (size_t t = kTileRows.size(); t-- > 0;) {
      p.src[t] = memory::desc({kTileRows[t], cols}, type, Tag::ab);
      p.dst[t] = memory::desc({kTileRows[t], block_rows}, memory::data_type::f32, Tag::ab);
      const auto described = Describe(engine, p.src[t], weights, p.dst[t]);
      weights = described.weights_desc();
      p.scratchpad[t] = described.scratchpad_desc();
      p.tile[t] = dnnl::matmul(described);
    }
    p.weights = weights;
  }

  // Rows [row, row_to) of xs [padded][cols], in dtype: x [m][cols], zeros below.
  void ConvertRows(const float* x, int64_t x_stride, int64_t m, int64_t row, int64_t row_to, std::byte* xs) const {
    const size_t row_bytes = static_cast<size_t>(cols) * ElementSize(dtype);
    for (; row < row_to; ++row) {
      std::byte* to = xs + static_cast<size_t>(row) * row_bytes;
      if (row >= m) {
        std::memset(to, 0, row_bytes);
      } else if (dtype == DType::kF32) {
        std::memcpy(to, x + row * x_stride, row_bytes);
      } else {
        NarrowToBf16(x + row * x_stride, cols, reinterpret_cast<BF16*>(to));
      }
    }
  }

  // Block `block` of the weights by kTileRows[tile] rows xs, of which `count` are stored to out.
  void RunTile(size_t block, size_t tile, std::byte* xs, int64_t count, const float* bias, float* out, int64_t out_stride,
               bool accumulate) const {
    const Products& p = ProductsOf(block);
    const int64_t width = BlockRows(block);
    ThreadScratch& scratch = Scratch();
    auto* ys = reinterpret_cast<float*>(AtLeast(scratch.y, p.dst[tile].get_size()));
    std::byte* pad = AtLeast(scratch.pad, std::max<size_t>(p.scratchpad[tile].get_size(), 64));
    try {
      dnnl::stream stream(engine);
      memory src(p.src[tile], engine, xs), dst(p.dst[tile], engine, ys), scratchpad(p.scratchpad[tile], engine, pad);
      memory weights(p.weights, engine, const_cast<std::byte*>(blocks[block].data()));
      p.tile[tile].execute(stream, {{DNNL_ARG_SRC, src},
                                    {DNNL_ARG_WEIGHTS, weights},
                                    {DNNL_ARG_DST, dst},
                                    {DNNL_ARG_SCRATCHPAD, scratchpad}});
      stream.wait();
    } catch (const dnnl::error& e) {  // a product that could be made must run
      internal::CheckFailed(__FILE__, __LINE__, std::string("oneDNN: ") + e.what());
    }
    const int64_t row0 = static_cast<int64_t>(block) * kBlockRows;
    for (int64_t i = 0; i < count; ++i) {
      StoreProduct(ys + i * width, bias != nullptr ? bias + row0 : nullptr, width, accumulate, out + i * out_stride + row0);
    }
  }

  // Its rows of the row-major weights [rows][cols] into blocks[block].
  void Pack(const void* weight, size_t block) {
    const OneOpenMpThread one;
    const int64_t width = BlockRows(block);
    // [width][cols] row-major read as [cols][width]: the transposition is in the strides.
    const memory::desc plain({cols, width}, dtype == DType::kF32 ? memory::data_type::f32 : memory::data_type::bf16,
                             memory::format_tag::ba);
    const auto* from = static_cast<const std::byte*>(weight) +
                       static_cast<int64_t>(block) * kBlockRows * cols * ElementSize(dtype);
    dnnl::stream stream(engine);
    memory source(plain, engine, const_cast<std::byte*>(from));
    memory packed(ProductsOf(block).weights, engine, blocks[block].data());
    dnnl::reorder(source, packed).execute(stream, source, packed);
    stream.wait();
  }
};

OneDnnMatmul::OneDnnMatmul() = default;
OneDnnMatmul::~OneDnnMatmul() = default;
size_t OneDnnMatmul::packed_bytes() const { return state_->packed_bytes; }

Result<std::unique_ptr<OneDnnMatmul>> OneDnnMatmul::Create(const Context& ctx, const void* weight, DType dtype, int64_t rows,
                                                           int64_t cols) {
  if (dtype != DType::kF32 && dtype != DType::kBF16) {
    return Unimplemented("oneDNN products of " + std::string(DTypeName(dtype)) + " weights");
  }
  try {
    const OneOpenMpThread one;  // the plan of a product depends on the threads it may use
    std::unique_ptr<OneDnnMatmul> matmul(new OneDnnMatmul);
    matmul->state_ = std::make_unique<State>();
    State& s = *matmul->state_;
    s.dtype = dtype;
    s.rows = rows;
    s.cols = cols;
    if (rows >= kBlockRows) s.MakeProducts(kBlockRows, s.products[0]);
    if (rows % kBlockRows != 0) s.MakeProducts(rows % kBlockRows, s.products[1]);
    const auto count = static_cast<size_t>(CeilDiv(rows, kBlockRows));
    for (size_t b = 0; b < count; ++b) {
      ASSIGN_OR_RETURN(Buffer block, Buffer::Create(s.ProductsOf(b).weights.get_size()));
      s.packed_bytes += block.size();
      s.blocks.push_back(std::move(block));
    }
    std::atomic<bool> failed{false};
    ctx.pool->ParallelFor(static_cast<int64_t>(count), [&](int64_t b, int) {
      try {
        s.Pack(weight, static_cast<size_t>(b));
      } catch (const dnnl::error&) {
        failed = true;
      }
    });
    if (failed) return Unimplemented("oneDNN can't pack these weights");
    return matmul;
  } catch (const dnnl::error& e) {
    return Unimplemented("oneDNN has no product of " + std::string(DTypeName(dtype)) + " weights [" + std::to_string(rows) +
                         ", " + std::to_string(cols) + "] on this machine: " + e.what());
  }
}

void OneDnnMatmul::Run(const Context& ctx, const float* x, int64_t x_stride, int64_t m, const float* bias, float* out,
                       int64_t out_stride, bool accumulate) const {
  // The smallest tile that holds all rows, else the largest.
  size_t tile = 0;
  while (tile + 1 < kTileRows.size() && kTileRows[tile] < m) ++tile;
  const int64_t rows_of_tile = kTileRows[tile];
  const int64_t chunks = CeilDiv(m, rows_of_tile);
  const auto blocks = static_cast<int64_t>(state_->blocks.size());
  // x once for all blocks, in this thread's scratch, which the tasks read.
  const size_t row_bytes = static_cast<size_t>(state_->cols) * ElementSize(state_->dtype);
  const int64_t padded = chunks * rows_of_tile;
  std::byte* xs = AtLeast(Scratch().x, static_cast<size_t>(padded) * row_bytes);
  ctx.pool->ParallelFor(CeilDiv(padded, kConvertRows), [&](int64_t task, int) {
    state_->ConvertRows(x, x_stride, m, task * kConvertRows, std::min(padded, (task + 1) * kConvertRows), xs);
  });
  ctx.pool->ParallelFor(blocks * chunks, [&](int64_t task, int) {
    const OneOpenMpThread one;
    const int64_t begin = task / blocks * rows_of_tile;
    const int64_t count = std::min(rows_of_tile, m - begin);
    size_t fitting = tile;  // the last chunk may do with a smaller tile
    while (fitting > 0 && count <= kTileRows[fitting - 1]) --fitting;
    state_->RunTile(static_cast<size_t>(task % blocks), fitting, xs + static_cast<size_t>(begin) * row_bytes, count, bias,
                    out + begin * out_stride, out_stride, accumulate);
  });
}

}  // namespace quire::cpu

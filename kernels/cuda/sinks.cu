#include "kernels/cuda/sinks.h"

#include <algorithm>

#include "kernels/cuda/attention_math.cuh"
#include "kernels/cuda/simt.h"

namespace quire::cuda {
namespace {

// A warp a list, 32 pages at a time.
struct SinkPagesKernel {
  using Params = SinkPagesParams;
  static constexpr const char* kName = "sink_pages";
  static constexpr int kMaxThreads = simt::kWarpSize;
  static constexpr int kMinBlocks = 1;

  QUIRE_DEVICE static void Run(const Params& p) {
    const PageFormat& f = p.table.format;
    const int row = simt::BlockY();
    const int64_t list = int64_t{row} * f.kv_heads + simt::BlockX();
    const int seq = p.row_seq[row];
    if (seq < 0) {
      if (simt::Lane() == 0) p.selection.counts[list] = 0;
      return;
    }
    const int length = p.row_len[row];
    const int sinks = (p.sinks + f.page_size - 1) / f.page_size;
    const int first_recent = (length > p.window ? length - p.window : 0) / f.page_size;
    const int recent = first_recent > sinks ? first_recent : sinks;
    const int n = sinks + (length + f.page_size - 1) / f.page_size - recent;
    const int32_t* ids = p.table.page_ids + p.table.page_begin[seq];
    int32_t* out = p.selection.pages + list * p.selection.max_pages;
    int count = 0;
    for (int first = 0; first < n; first += simt::kWarpSize) {
      const int i = first + simt::Lane();
      const int page = i < sinks ? i : recent + i - sinks;
      const bool there = i < n && ids[page] >= 0;
      const uint32_t all = simt::Ballot(simt::kFullMask, there);
      if (there) out[count + simt::PopCount(all & ((1u << simt::Lane()) - 1))] = page;
      count += simt::PopCount(all);
    }
    if (simt::Lane() == 0) p.selection.counts[list] = count;
  }
};

struct SinkLengthsParams {
  int32_t sinks;
  int rows;
  int32_t* lengths;
};
struct SinkLengthsKernel {
  using Params = SinkLengthsParams;
  static constexpr const char* kName = "sink_lengths";
  static constexpr int kMaxThreads = 128;
  static constexpr int kMinBlocks = 1;
  QUIRE_DEVICE static void Run(const Params& p) {
    const int row = simt::BlockX() * simt::BlockThreads() + simt::ThreadIndex();
    if (row < p.rows) p.lengths[row] = p.sinks;
  }
};

struct MergeSinksKernel {
  using Params = MergeSinksParams;
  static constexpr const char* kName = "merge_sinks";
  static constexpr int kMaxThreads = 256;
  static constexpr int kMinBlocks = 4;
  QUIRE_DEVICE static void Run(const Params& p) {
    const int head = simt::BlockX(), row = simt::BlockY();
    const int64_t i = int64_t{row} * p.q_heads + head;
    const float a = p.sinks_lse[i], b = p.window_lse[i];
    const bool any = a != MinusInfinity();
    const float max = b > a ? b : a;
    const float weight_a = simt::Exp(a - max), weight_b = b == MinusInfinity() ? 0.0f : simt::Exp(b - max);
    const float sum = weight_a + weight_b;
    if (p.lse != nullptr && simt::ThreadIndex() == 0) p.lse[i] = any ? max + simt::Log(sum) : b;
    if (!any) return;
    const float* sinks = p.sinks + i * p.v_dim;
    float* out = p.out + row * p.out_stride + int64_t{head} * p.v_dim;
    for (int c = simt::ThreadIndex(); c < p.v_dim; c += simt::BlockThreads()) {
      out[c] = simt::Fma(weight_a, sinks[c], weight_b * out[c]) / sum;
    }
  }
};

}  // namespace

Status SinkPages(Stream stream, const SinkPagesParams& p) {
  simt::LaunchShape shape;
  shape.grid_x = p.table.format.kv_heads;
  shape.grid_y = p.rows;
  shape.threads = SinkPagesKernel::kMaxThreads;
  return simt::Launch<SinkPagesKernel>(shape, stream, p);
}

Status SinkLengths(Stream stream, int sinks, int rows, int32_t* lengths) {
  simt::LaunchShape shape;
  shape.threads = SinkLengthsKernel::kMaxThreads;
  shape.grid_x = (rows + shape.threads - 1) / shape.threads;
  return simt::Launch<SinkLengthsKernel>(shape, stream, {sinks, rows, lengths});
}

Status MergeSinks(Stream stream, const MergeSinksParams& p) {
  simt::LaunchShape shape;
  shape.grid_x = p.q_heads;
  shape.grid_y = p.rows;
  shape.threads = std::min((p.v_dim + 31) / 32 * 32, MergeSinksKernel::kMaxThreads);
  return simt::Launch<MergeSinksKernel>(shape, stream, p);
}

}  // namespace quire::cuda

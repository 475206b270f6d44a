// The merge of a list's chunks into its result, where the decode kernels' own blocks don't.
#pragma once

#include "kernels/cuda/decode_list.cuh"

namespace quire::cuda {

// Chunks of a (row, head) into one, in order.
template <class Mod>
struct MergeDecodeKernel {
  using Params = ModDecodeArgs<Mod>;
  static constexpr const char* kName = "decode_merge";
  static constexpr int kMaxThreads = 128;
  static constexpr int kMinBlocks = 4;
  struct Layout {
    float scratch[kMaxThreads / simt::kWarpSize];
    float weights[kMaxThreads];
  };

  QUIRE_DEVICE static void Run(const Params& a) {
    auto& s = simt::Shared<Layout>();
    const PageFormat& f = a.p.table.format;
    const int group = a.p.q_heads / f.kv_heads;
    const int head = simt::BlockX(), row = simt::BlockY(), kv_head = head / group;
    const PageList list = ListOf(a, row, kv_head);
    if (list.count > a.most_pages) return;
    const int chunks = ChunkOf(a, list, 0).chunks;
    const float* first = RecordOf(a, row, kv_head, 0);
    const float* stats = first + head % group * 2;
    const float* sums = first + group * 2 + head % group * f.v_dim;
    float max = MinusInfinity();
    for (int i = simt::ThreadIndex(); i < chunks; i += kMaxThreads) {
      const float x = stats[i * a.c.record_floats];
      max = x > max ? x : max;
    }
    max = simt::WarpMax(max);
    if (simt::Lane() == 0) s.scratch[simt::Warp()] = max;
    simt::SyncThreads();
    for (int w = 0; w < kMaxThreads / simt::kWarpSize; ++w) max = s.scratch[w] > max ? s.scratch[w] : max;

    constexpr int kChannels = 4;  // of a thread at once
    for (int base = 0; base < f.v_dim; base += kMaxThreads * kChannels) {
      float acc[kChannels] = {0, 0, 0, 0}, sum = 0;
      for (int from = 0; from < chunks; from += kMaxThreads) {
        const int n = chunks - from < kMaxThreads ? chunks - from : kMaxThreads;
        simt::SyncThreads();
        if (simt::ThreadIndex() < n) {
          const float x = stats[(from + simt::ThreadIndex()) * a.c.record_floats];
          s.weights[simt::ThreadIndex()] = x == MinusInfinity() ? 0.0f : simt::Exp2(x - max);
        }
        simt::SyncThreads();
#pragma unroll 4
        for (int i = 0; i < n; ++i) {
          const int64_t at = (from + i) * a.c.record_floats;
          const float weight = s.weights[i];
          sum = simt::Fma(weight, stats[at + 1], sum);
#pragma unroll
          for (int j = 0; j < kChannels; ++j) {
            const int c = base + j * kMaxThreads + simt::ThreadIndex();
            if (c < f.v_dim) acc[j] = simt::Fma(weight, sums[at + c], acc[j]);
          }
        }
      }
#pragma unroll
      for (int j = 0; j < kChannels; ++j) {
        const int c = base + j * kMaxThreads + simt::ThreadIndex();
        if (c < f.v_dim) WriteOut(a, row, head, c, acc[j], sum);
      }
      if (base == 0 && simt::ThreadIndex() == 0) WriteLse(a, row, head, max, sum);
    }
  }
};

template <class Mod>
Status LaunchDecodeMerge(Stream stream, const ModDecodeArgs<Mod>& a) {
  using Kernel = MergeDecodeKernel<Mod>;
  simt::LaunchShape shape;
  shape.grid_x = a.p.q_heads;
  shape.grid_y = a.p.rows;
  shape.threads = Kernel::kMaxThreads;
  shape.shared_bytes = sizeof(typename Kernel::Layout);
  return simt::Launch<Kernel>(shape, stream, a);
}

}  // namespace quire::cuda

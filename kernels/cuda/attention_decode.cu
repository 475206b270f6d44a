// How decode attention is cut, the merge of chunks, and plain attention as it is called without a Mod. The kernels are in
// attention_decode_plain.cuh and attention_decode_mma.cuh.
#include "kernels/cuda/attention_decode.h"

#include "kernels/cuda/flex_attention.cuh"

namespace quire::cuda {

extern template Status LaunchTensorDecode<IdentityMod>(Stream, const ModDecodeArgs<IdentityMod>&);  // attention_decode_mma.cu

namespace {

// Chunks of a (row, head) into one, in order.
struct MergeDecodeKernel {
  using Params = DecodeArgs;
  static constexpr const char* kName = "decode_merge";
  static constexpr int kMaxThreads = 128;
  static constexpr int kMinBlocks = 4;
  struct Layout {
    float scratch[kMaxThreads / simt::kWarpSize];
    float weights[kMaxThreads];
  };

  QUIRE_DEVICE static void Run(const DecodeArgs& a) {
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

// The layouts differ in the number of heads and channels alone.
size_t PlainShared(const PageFormat& f, int heads, int chunk_slots, int page_slots) {
  if (f.v_dim % 4 != 0) return PlainDecodeKernel<float, kMostPlainHeads, 1>::Bytes(f, chunk_slots, page_slots);
  switch (heads) {
    case 1: return PlainDecodeKernel<float, 1, 4>::Bytes(f, chunk_slots, page_slots);
    case 2: return PlainDecodeKernel<float, 2, 4>::Bytes(f, chunk_slots, page_slots);
    default: return PlainDecodeKernel<float, kMostPlainHeads, 4>::Bytes(f, chunk_slots, page_slots);
  }
}

bool DecodeDimFits(const PageFormat& f) {
  return f.k_dim == f.v_dim && (f.k_dim == 64 || f.k_dim == 96 || f.k_dim == 128 || f.k_dim == 256);
}

}  // namespace

bool TensorDecodeFits(const PageFormat& f, int group) {
  return group >= 4 && DecodeDimFits(f) && f.page_size % 8 == 0 && (f.dtype == DType::kBF16 || f.dtype == DType::kF16);
}

AttentionDecodeConfig AttentionDecodeConfig::For(const PageFormat& f, int q_heads, int most_pages) {
  AttentionDecodeConfig c;
  const int group = q_heads / f.kv_heads, page_slots = PageSlots(f);
  // A shorter list may have more chunks, or longer ones: the bands' ends.
  for (const Band& band : kBands) {
    const int pages = static_cast<int>(std::min<int64_t>(most_pages, band.slots / page_slots));
    c.parts = std::max(c.parts, Chunks(pages, page_slots));
    c.chunk_slots = std::max(c.chunk_slots, ChunkSlots(pages, page_slots));
    if (pages == most_pages) break;
  }
  c.direct = c.parts == 1;
  c.record_floats = int64_t{group} * (f.v_dim + 2);
  if (TensorDecodeFits(f, group)) {
    TensorDecodeConfig(f, group, &c);
    return c;
  }
  c.heads_per_pass = group == 1 && f.v_dim % 4 == 0 ? 1 : group == 2 && f.v_dim % 4 == 0 ? 2 : kMostPlainHeads;
  c.passes = (group + c.heads_per_pass - 1) / c.heads_per_pass;
  c.threads = kPlainThreads;
  c.shared_bytes = PlainShared(f, c.heads_per_pass, c.chunk_slots, page_slots);
  return c;
}

std::string AttentionDecodeConfig::ToString() const {
  return std::string(tensor_cores ? "tensor cores" : "plain") + ", " + std::to_string(passes) + " passes of " +
         std::to_string(heads_per_pass) + " heads, " + std::to_string(threads) + " threads, at most " + std::to_string(parts) +
         " chunks of at most " + std::to_string(chunk_slots) + " slots" + (direct ? ", no merge" : "") + ", " +
         std::to_string(shared_bytes) + " B shared";
}

size_t AttentionDecodeWorkspace(const AttentionDecodeParams& p, int most_pages) {
  const PageFormat& f = p.table.format;
  const AttentionDecodeConfig c = AttentionDecodeConfig::For(f, p.q_heads, most_pages);
  const int64_t records = c.direct ? 0 : int64_t{p.rows} * f.kv_heads * c.parts * c.record_floats;
  const int64_t lse = p.mass != nullptr && p.lse == nullptr ? int64_t{p.rows} * p.q_heads : 0;
  return sizeof(float) * static_cast<size_t>(records + lse);
}

Status MakeDecodeArgs(const AttentionDecodeParams& p, int most_pages, void* workspace, int32_t* counters, DecodeArgs* args) {
  const PageFormat& f = p.table.format;
  if (p.q_heads % f.kv_heads != 0) {
    return Internal("decode attention: " + std::to_string(p.q_heads) + " query heads on " + std::to_string(f.kv_heads) + " KV heads");
  }
  constexpr int kMostPageSize = 32768;  // PageOfSlot's range
  if (f.page_size > kMostPageSize) {
    return InvalidArgument("decode attention: pages of " + std::to_string(f.page_size) + " tokens; the GPU takes at most " +
                           std::to_string(kMostPageSize));
  }
  DecodeArgs& a = *args;
  a.p = p;
  a.p.selection = nullptr;
  a.selected = p.selection != nullptr;
  if (a.selected) a.selection = *p.selection;
  a.c = AttentionDecodeConfig::For(f, p.q_heads, most_pages);
  a.most_pages = most_pages;
  a.page_slots = AttentionDecodeConfig::PageSlots(f);
  a.page_magic = DivisionMagic(a.page_slots);
  a.records = static_cast<float*>(workspace);
  // A block's own merging costs each block a fence, and the last one the reading of all chunks: worth it for a few.
  constexpr int kMostMergedByBlocks = 8;
  const bool few = a.c.parts <= kMostMergedByBlocks && int64_t{p.rows} * f.kv_heads * a.c.passes <= kDecodeCounters;
  a.counters = a.c.tensor_cores && few ? counters : nullptr;
  a.lse = p.lse;
  if (p.mass != nullptr && p.lse == nullptr) {
    a.lse = a.records + (a.c.direct ? 0 : int64_t{p.rows} * f.kv_heads * a.c.parts * a.c.record_floats);
  }
  return OkStatus();
}

Status LaunchDecodeMerge(Stream stream, const DecodeArgs& a) {
  simt::LaunchShape shape;
  shape.grid_x = a.p.q_heads;
  shape.grid_y = a.p.rows;
  shape.threads = MergeDecodeKernel::kMaxThreads;
  shape.shared_bytes = sizeof(MergeDecodeKernel::Layout);
  return simt::Launch<MergeDecodeKernel>(shape, stream, a);
}

template Status AttentionDecode<IdentityMod>(Stream, const AttentionDecodeParams&, int, const IdentityMod&, void*, int32_t*);

Status AttentionDecode(Stream stream, const AttentionDecodeParams& params, int most_pages, void* workspace) {
  return AttentionDecode(stream, params, most_pages, IdentityMod{}, workspace, nullptr);
}

}  // namespace quire::cuda

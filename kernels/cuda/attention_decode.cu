// How decode attention is cut, and plain attention as it is called without a Mod. The kernels are in
// attention_decode_plain.cuh, attention_decode_mma.cuh and attention_decode_merge.cuh.
#include "kernels/cuda/attention_decode.h"

#include "kernels/cuda/flex_attention.cuh"

namespace quire::cuda {

extern template Status LaunchTensorDecode<PlainMod>(Stream, const ModDecodeArgs<PlainMod>&);  // attention_decode_mma.cu

namespace {

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

AttentionDecodeConfig AttentionDecodeConfig::For(const PageFormat& f, int q_heads, int most_pages, int model_group) {
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
  if (TensorDecodeFits(f, std::max(group, model_group))) {
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
  const AttentionDecodeConfig c = AttentionDecodeConfig::For(f, p.q_heads, most_pages, p.model_group);
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
  a.c = AttentionDecodeConfig::For(f, p.q_heads, most_pages, p.model_group);
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

template Status AttentionDecode<PlainMod>(Stream, const AttentionDecodeParams&, int, const PlainMod&, void*, int32_t*);

Status AttentionDecode(Stream stream, const AttentionDecodeParams& params, int most_pages, void* workspace) {
  return AttentionDecode(stream, params, most_pages, PlainMod{}, workspace, nullptr);
}

}  // namespace quire::cuda

// How prefill attention is cut, and plain attention as it is called without a Mod. The kernels are in
// attention_prefill_plain.cuh and attention_prefill_mma.cuh.
#include "kernels/cuda/attention_prefill.h"

#include "kernels/cuda/flex_attention.cuh"

namespace quire::cuda {

extern template Status LaunchTensorPrefill<PlainMod>(  // attention_prefill_mma.cu
    Stream, const simt::LaunchShape&, const ModPrefillArgs<PlainMod>&);

bool TensorPrefillFits(const PageFormat& f) {
  const bool dim = f.k_dim == f.v_dim && (f.k_dim == 64 || f.k_dim == 96 || f.k_dim == 128 || f.k_dim == 256);
  return dim && f.page_size % 8 == 0 && (f.dtype == DType::kBF16 || f.dtype == DType::kF16);
}

AttentionPrefillConfig AttentionPrefillConfig::For(const PageFormat& f) {
  AttentionPrefillConfig c;
  if (TensorPrefillFits(f)) {
    TensorPrefillConfig(f, &c);
    return c;
  }
  using Plain = PlainPrefillKernel<float>;
  c.tile_rows = Plain::kWarps * Plain::kWarpRows;
  c.threads = Plain::kMaxThreads;
  c.shared_bytes = Plain::kWarps * Plain::WarpBytes(f);
  return c;
}

std::string AttentionPrefillConfig::ToString() const {
  return std::string(tensor_cores ? "tensor cores" : "plain") + ", tiles of " + std::to_string(tile_rows) + " rows, " +
         std::to_string(threads) + " threads, " + std::to_string(shared_bytes) + " B shared";
}

Status MakePrefillArgs(const AttentionPrefillParams& p, int64_t most_rows, PrefillArgs* args,
                       simt::LaunchShape* shape) {
  const PageFormat& f = p.table.format;
  if (p.q_heads % f.kv_heads != 0) {
    return Internal("prefill attention: " + std::to_string(p.q_heads) + " query heads on " +
                    std::to_string(f.kv_heads) + " KV heads");
  }
  constexpr int kMostPageSize = 32768;  // (page size + 64) * page size < 2^32, DivideByMagic's range
  if (f.page_size > kMostPageSize) {
    return InvalidArgument("prefill attention: pages of " + std::to_string(f.page_size) +
                           " tokens; the GPU takes at most " + std::to_string(kMostPageSize));
  }
  PrefillArgs& a = *args;
  a.p = p;
  a.c = AttentionPrefillConfig::For(f);
  a.group = p.q_heads / f.kv_heads;
  a.page_magic = DivisionMagic(f.page_size);
  constexpr size_t kMostShared = 99 * 1024;  // of a plain block, on every GPU since sm_86
  if (!a.c.tensor_cores && a.c.shared_bytes > kMostShared) {
    return InvalidArgument("prefill attention: K of " + std::to_string(f.k_dim) + " and V of " +
                           std::to_string(f.v_dim) + " channels a head need " + std::to_string(a.c.shared_bytes) +
                           " B of shared memory; the GPU's kernel has " + std::to_string(kMostShared));
  }
  shape->grid_x = a.c.Tiles(most_rows, p.num_chunks, a.group) * f.kv_heads;
  shape->threads = a.c.threads;
  shape->shared_bytes = a.c.shared_bytes;
  return OkStatus();
}

template Status AttentionPrefill<PlainMod>(Stream, const AttentionPrefillParams&, int64_t, const PlainMod&);

Status AttentionPrefill(Stream stream, const AttentionPrefillParams& params, int64_t most_rows) {
  return AttentionPrefill(stream, params, most_rows, PlainMod{});
}

}  // namespace quire::cuda

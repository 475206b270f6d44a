// A warp takes a run of whole pages, as many as 32 slots hold or a single larger one, for eight rows, and one query head of the
// group after the other: a lane takes a key and all channels of its K (lanes side by side read whole lines of a K word's row),
// and adds the weights that the heads give to it. The block's warps share the queries, in shared memory by channels. At last a
// run's keys are added by pages, in one order: a row's bits depend neither on how the prompt was cut nor on other rows.
#include "kernels/cuda/prefill_mass.h"

#include "kernels/cuda/attention_math.cuh"
#include "kernels/cuda/simt.h"

namespace quire::cuda {
namespace {

template <typename T, class Mod>
struct PrefillMassKernel {
  struct Params {
    PrefillMassParams p;
    Mod mod;
  };
  static constexpr int kWarps = 8;
  static constexpr int kRows = 8;  // of a block
  static constexpr const char* kName = "prefill_mass";
  static constexpr int kMaxThreads = kWarps * simt::kWarpSize;
  static constexpr int kMinBlocks = 2;
  static constexpr int kWord = 4 / static_cast<int>(sizeof(T));
  struct Layout {
    float lse[kRows];
    float weights[kWarps][kRows][simt::kWarpSize];  // of a run's keys
  };  // then the head's queries [k_dim][kRows], times scale
  static constexpr size_t Bytes(const PageFormat& f) {
    return sizeof(Layout) + sizeof(float) * static_cast<size_t>(f.k_dim * kRows);
  }
  static constexpr int RunPages(int page_size) {
    return page_size < simt::kWarpSize ? simt::kWarpSize / page_size : 1;
  }

  // Products of the block's queries with the K at `k`.
  QUIRE_DEVICE static void Scores(const PageFormat& f, const simt::F32x4* q, const T* k, float (&sum)[kRows]) {
    const int64_t step = int64_t{f.page_size} * kWord;
    const auto add = [&](int channel, float y) {
#pragma unroll
      for (int r = 0; r < kRows; r += 4) {
        const simt::F32x4 x = q[channel * (kRows / 4) + r / 4];
        sum[r] = simt::Fma(x.x, y, sum[r]);
        sum[r + 1] = simt::Fma(x.y, y, sum[r + 1]);
        sum[r + 2] = simt::Fma(x.z, y, sum[r + 2]);
        sum[r + 3] = simt::Fma(x.w, y, sum[r + 3]);
      }
    };
#pragma unroll
    for (int r = 0; r < kRows; ++r) sum[r] = 0;
#pragma unroll 4
    for (int w = 0; w < f.k_dim / kWord; ++w) {
      const uint32_t word = simt::LoadReadOnly<uint32_t>(k + w * step);
      if constexpr (kWord == 1) {
        add(w, simt::BitsFloat(word));
      } else {
        add(2 * w, simt::LowFloat<T>(word));
        add(2 * w + 1, simt::HighFloat<T>(word));
      }
    }
  }

  QUIRE_DEVICE static void Run(const Params& params) {
    auto& s = simt::Shared<Layout>();
    auto* q = reinterpret_cast<simt::F32x4*>(simt::SharedBytes() + sizeof(Layout));
    const PrefillMassParams& p = params.p;
    const PageFormat& f = p.table.format;
    const int kv_head = simt::BlockY(), first_row = simt::BlockZ() * kRows;
    const int rows = p.chunk.rows - first_row < kRows ? p.chunk.rows - first_row : kRows;
    const int first_pos = p.chunk.start_pos + first_row, end_pos = first_pos + rows;
    const int group = p.q_heads / f.kv_heads, run_pages = RunPages(f.page_size);
    const int mass_pages = static_cast<int>(p.mass_pages);
    const int block_page = simt::BlockX() * kWarps * run_pages, first_page = block_page + simt::Warp() * run_pages;
    const int end_page = first_page + run_pages < mass_pages ? first_page + run_pages : mass_pages;
    const int64_t first_key = int64_t{first_page} * f.page_size;
    // Keys of the run that some row of the block sees.
    const int64_t run_end = int64_t{end_page} * f.page_size < end_pos ? int64_t{end_page} * f.page_size : end_pos;
    const int keys = first_key < run_end ? static_cast<int>(run_end - first_key) : 0;
    const int32_t* ids = p.table.page_ids + p.table.page_begin[p.chunk.seq];
    float mass[kRows] = {};  // of this lane's keys

    const bool seen = int64_t{block_page} * f.page_size < end_pos;  // the block's first key
    for (int h = 0; seen && h < group; ++h) {
      const int head = kv_head * group + h;
      simt::SyncThreads();
      const float* from = p.q + (int64_t{p.chunk.first_row} + first_row) * p.q_stride + int64_t{head} * f.k_dim;
      for (int i = simt::ThreadIndex(); i < kRows * f.k_dim; i += kMaxThreads) {
        const int r = i / f.k_dim, c = i - r * f.k_dim;
        reinterpret_cast<float*>(q)[c * kRows + r] = r < rows ? from[r * p.q_stride + c] * p.scale : 0.0f;
      }
      const int row = simt::ThreadIndex();
      if (row < rows) s.lse[row] = p.lse[(int64_t{p.chunk.first_row} + first_row + row) * p.q_heads + head];
      simt::SyncThreads();
      for (int key = simt::Lane(); key < keys; key += simt::kWarpSize) {
        const int page = run_pages == 1 ? 0 : key / f.page_size, slot = key - page * f.page_size;
        const int id = ids[first_page + page];
        if (id < 0) continue;
        const T* k = static_cast<const T*>(p.pages.k) + id * f.k_page_stride + kv_head * f.k_head_stride;
        float x[kRows];
        Scores(f, q, k + f.KOffset(slot, 0), x);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const int64_t query = int64_t{first_pos} + r, at = first_key + key;
          if (r >= rows || at > query || at < params.mod.FirstKey(query) || s.lse[r] == MinusInfinity()) continue;
          if constexpr (!Mod::kIsIdentity) {
            if (Mod::kHasMask && !params.mod.Mask(p.chunk.seq, head, query, at)) continue;
            x[r] = params.mod.Score(x[r], p.chunk.seq, head, query, at);
          }
          // Rounding may put a score above the log-sum-exp of all.
          const float below = x[r] - s.lse[r];
          mass[r] += simt::Exp(below > 0 ? 0.0f : below);
        }
      }
    }

    const auto out = [&](int r, int page) -> float& {
      return p.mass[((int64_t{first_row} + r) * f.kv_heads + kv_head) * p.mass_pages + page];
    };
    if (run_pages == 1) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float sum = simt::WarpSum(mass[r]);
        if (r < rows && first_page < end_page && simt::Lane() == 0) out(r, first_page) = sum;
      }
      return;
    }
    float(&weights)[kRows][simt::kWarpSize] = s.weights[simt::Warp()];
#pragma unroll
    for (int r = 0; r < kRows; ++r) weights[r][simt::Lane()] = mass[r];
    simt::SyncWarp();
    for (int i = simt::Lane(); i < rows * run_pages; i += simt::kWarpSize) {
      const int r = i / run_pages, page = i - r * run_pages;
      if (first_page + page >= end_page) continue;
      float sum = 0;
      for (int slot = 0; slot < f.page_size; ++slot) sum += weights[r][page * f.page_size + slot];
      out(r, first_page + page) = sum;
    }
  }
};

template <typename T, class Mod>
Status Launch(Stream stream, const PrefillMassParams& p, const Mod& mod) {
  using Kernel = PrefillMassKernel<T, Mod>;
  const PageFormat& f = p.table.format;
  const int64_t block_pages = int64_t{Kernel::kWarps} * Kernel::RunPages(f.page_size);
  simt::LaunchShape shape;
  shape.grid_x = (p.mass_pages + block_pages - 1) / block_pages;
  shape.grid_y = f.kv_heads;
  shape.grid_z = (p.chunk.rows + Kernel::kRows - 1) / Kernel::kRows;
  shape.threads = Kernel::kMaxThreads;
  shape.shared_bytes = Kernel::Bytes(f);
  return simt::Launch<Kernel>(shape, stream, {p, mod});
}

}  // namespace

template <class Mod>
Status PrefillMass(Stream stream, const PrefillMassParams& p, const Mod& mod) {
  const PageFormat& f = p.table.format;
  if (p.by_token) return Internal("prefill mass: by tokens it is the CPU's alone");
  if (p.q_heads % f.kv_heads != 0) {
    return Internal("prefill mass: " + std::to_string(p.q_heads) + " query heads on " + std::to_string(f.kv_heads) +
                    " KV heads");
  }
  return VisitFloatDType(f.dtype, [&](auto t) { return Launch<decltype(t)>(stream, p, mod); });
}
template Status PrefillMass<PlainMod>(Stream, const PrefillMassParams&, const PlainMod&);
template Status PrefillMass<SoftCapMod>(Stream, const PrefillMassParams&, const SoftCapMod&);

}  // namespace quire::cuda

// Of prompts: a warp takes a run of whole pages, as many as 32 slots hold or a single larger one, for eight rows, and one query
// head of the group after the other: a lane takes a key and all channels of its K (lanes side by side read whole lines of a K
// word's row), and adds the weights that the heads give to it. The block's warps share the queries, in shared memory by channels.
// At last a run's keys are added by pages, in one order: a row's bits depend neither on how the prompt was cut nor on other rows.
// By tokens a run is 32 keys, and each lane writes its own.
//
// Of decode rows: a thread takes a slot of one row, and four query heads at a time.
#include "kernels/cuda/prefill_mass.h"

#include "kernels/cuda/attention_math.cuh"
#include "kernels/cuda/simt.h"

namespace quire::cuda {
namespace {

// Products of kCount queries, in shared memory by channels, with the K at `k`.
template <typename T, int kCount>
QUIRE_DEVICE void Products(const PageFormat& f, const simt::F32x4* q, const T* k, float (&sum)[kCount]) {
  constexpr int kWord = 4 / static_cast<int>(sizeof(T));
  const int64_t step = int64_t{f.page_size} * kWord;
  const auto add = [&](int channel, float y) {
#pragma unroll
    for (int r = 0; r < kCount; r += 4) {
      const simt::F32x4 x = q[channel * (kCount / 4) + r / 4];
      sum[r] = simt::Fma(x.x, y, sum[r]);
      sum[r + 1] = simt::Fma(x.y, y, sum[r + 1]);
      sum[r + 2] = simt::Fma(x.z, y, sum[r + 2]);
      sum[r + 3] = simt::Fma(x.w, y, sum[r + 3]);
    }
  };
#pragma unroll
  for (int r = 0; r < kCount; ++r) sum[r] = 0;
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

// Rounding may put a score above the log-sum-exp of all.
QUIRE_DEVICE float WeightOf(float score, float lse) {
  const float below = score - lse;
  return simt::Exp(below > 0 ? 0.0f : below);
}

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
  struct Layout {
    float lse[kRows];
    float weights[kWarps][kRows][simt::kWarpSize];  // of a run's keys
  };  // then the head's queries [k_dim][kRows], times scale
  static constexpr size_t Bytes(const PageFormat& f) {
    return sizeof(Layout) + sizeof(float) * static_cast<size_t>(f.k_dim * kRows);
  }
  // Numbers of mass that a warp makes for a row, of `unit` tokens each.
  static constexpr int RunNumbers(int unit) { return unit < simt::kWarpSize ? simt::kWarpSize / unit : 1; }
  static constexpr int Unit(const PrefillMassParams& p) { return p.by_token ? 1 : p.table.format.page_size; }

  QUIRE_DEVICE static void Run(const Params& params) {
    auto& s = simt::Shared<Layout>();
    auto* q = reinterpret_cast<simt::F32x4*>(simt::SharedBytes() + sizeof(Layout));
    const PrefillMassParams& p = params.p;
    const PageFormat& f = p.table.format;
    const int kv_head = simt::BlockY(), first_row = simt::BlockZ() * kRows;
    const int rows = p.chunk.rows - first_row < kRows ? p.chunk.rows - first_row : kRows;
    const int first_pos = p.chunk.start_pos + first_row, end_pos = first_pos + rows;
    const int group = p.q_heads / f.kv_heads, unit = Unit(p), run = RunNumbers(unit);
    const int numbers = static_cast<int>(p.mass_pages);
    const int block_first = simt::BlockX() * kWarps * run, first = block_first + simt::Warp() * run;
    const int end = first + run < numbers ? first + run : numbers;
    const int64_t first_key = int64_t{first} * unit;
    // Keys of the run that some row of the block sees.
    const int64_t run_end = int64_t{end} * unit < end_pos ? int64_t{end} * unit : end_pos;
    const int keys = first_key < run_end ? static_cast<int>(run_end - first_key) : 0;
    const int32_t* ids = p.table.page_ids + p.table.page_begin[p.chunk.seq];
    float mass[kRows] = {};  // of this lane's keys

    const bool seen = int64_t{block_first} * unit < end_pos;  // the block's first key
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
        const int at = static_cast<int>(first_key) + key, page = at / f.page_size, slot = at - page * f.page_size;
        const int id = ids[page];
        if (id < 0) continue;
        const T* k = static_cast<const T*>(p.pages.k) + id * f.k_page_stride + kv_head * f.k_head_stride;
        float x[kRows];
        Products(f, q, k + f.KOffset(slot, 0), x);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const int query = first_pos + r;
          if (r >= rows || at > query || at < params.mod.FirstKey(query) || s.lse[r] == MinusInfinity()) continue;
          if constexpr (!Mod::kIsIdentity) {
            if (Mod::kHasMask && !params.mod.Mask(p.chunk.seq, head, query, at)) continue;
            x[r] = params.mod.Score(x[r], p.chunk.seq, head, query, at);
          }
          mass[r] += WeightOf(x[r], s.lse[r]);
        }
      }
    }

    const auto out = [&](int r, int number) -> float& {
      return p.mass[((int64_t{first_row} + r) * f.kv_heads + kv_head) * p.mass_pages + number];
    };
    if (unit == 1) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (r < rows && first + simt::Lane() < end) out(r, first + simt::Lane()) = mass[r];
      }
      return;
    }
    if (run == 1) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float sum = simt::WarpSum(mass[r]);
        if (r < rows && first < end && simt::Lane() == 0) out(r, first) = sum;
      }
      return;
    }
    float(&weights)[kRows][simt::kWarpSize] = s.weights[simt::Warp()];
#pragma unroll
    for (int r = 0; r < kRows; ++r) weights[r][simt::Lane()] = mass[r];
    simt::SyncWarp();
    for (int i = simt::Lane(); i < rows * run; i += simt::kWarpSize) {
      const int r = i / run, page = i - r * run;
      if (first + page >= end) continue;
      float sum = 0;
      for (int slot = 0; slot < unit; ++slot) sum += weights[r][page * unit + slot];
      out(r, first + page) = sum;
    }
  }
};

template <typename T, class Mod>
struct SlotMassKernel {
  struct Params {
    SlotMassParams p;
    Mod mod;
  };
  static constexpr int kHeads = 4;  // at once
  static constexpr const char* kName = "slot_mass";
  static constexpr int kMaxThreads = 128;
  static constexpr int kMinBlocks = 4;
  struct Layout {
    float lse[kHeads];
  };  // then the heads' queries [k_dim][kHeads], times scale
  static constexpr size_t QueriesAt() { return (sizeof(Layout) + 15) / 16 * 16; }
  static constexpr size_t Bytes(const PageFormat& f) {
    return QueriesAt() + sizeof(float) * static_cast<size_t>(f.k_dim * kHeads);
  }

  QUIRE_DEVICE static void Run(const Params& params) {
    auto& s = simt::Shared<Layout>();
    auto* q = reinterpret_cast<simt::F32x4*>(simt::SharedBytes() + QueriesAt());
    const SlotMassParams& p = params.p;
    const PageFormat& f = p.table.format;
    const int kv_head = simt::BlockY(), row = simt::BlockZ(), group = p.q_heads / f.kv_heads;
    const int seq = p.row_seq[row], length = seq < 0 ? 0 : p.row_len[row], block_first = simt::BlockX() * kMaxThreads;
    const int64_t slot = int64_t{block_first} + simt::ThreadIndex();
    const T* k = nullptr;  // of the slot's token, if the row sees it
    if (slot < length) {
      const int at = static_cast<int>(slot), page = at / f.page_size;
      const int64_t id = p.table.page_ids[p.table.page_begin[seq] + page];
      k = static_cast<const T*>(p.pages.k) + id * f.k_page_stride + kv_head * f.k_head_stride +
          f.KOffset(at - page * f.page_size, 0);
    }
    float mass = 0;
    for (int first = 0; block_first < length && first < group; first += kHeads) {
      const int first_head = kv_head * group + first, heads = group - first < kHeads ? group - first : kHeads;
      simt::SyncThreads();
      const float* from = p.q + row * p.q_stride + int64_t{first_head} * f.k_dim;
      for (int i = simt::ThreadIndex(); i < kHeads * f.k_dim; i += kMaxThreads) {
        const int h = i / f.k_dim, c = i - h * f.k_dim;
        reinterpret_cast<float*>(q)[c * kHeads + h] = h < heads ? from[i] * p.scale : 0.0f;
      }
      const int h = simt::ThreadIndex();
      if (h < heads) s.lse[h] = p.lse[int64_t{row} * p.q_heads + first_head + h];
      simt::SyncThreads();
      if (k == nullptr) continue;
      float x[kHeads];
      Products(f, q, k, x);
#pragma unroll
      for (int i = 0; i < kHeads; ++i) {
        if (i >= heads) break;
        if (s.lse[i] == MinusInfinity()) continue;  // the head saw nothing
        if constexpr (!Mod::kIsIdentity) {
          if (Mod::kHasMask && !params.mod.Mask(seq, first_head + i, length - 1, slot)) continue;
          x[i] = params.mod.Score(x[i], seq, first_head + i, length - 1, slot);
        }
        mass += WeightOf(x[i], s.lse[i]);
      }
    }
    if (slot < p.mass_slots) p.mass[(int64_t{row} * f.kv_heads + kv_head) * p.mass_slots + slot] = mass;
  }
};

template <typename T, class Mod>
Status LaunchSlots(Stream stream, const SlotMassParams& p, const Mod& mod) {
  using Kernel = SlotMassKernel<T, Mod>;
  simt::LaunchShape shape;
  shape.grid_x = (p.mass_slots + Kernel::kMaxThreads - 1) / Kernel::kMaxThreads;
  shape.grid_y = p.table.format.kv_heads;
  shape.grid_z = p.rows;
  shape.threads = Kernel::kMaxThreads;
  shape.shared_bytes = Kernel::Bytes(p.table.format);
  return simt::Launch<Kernel>(shape, stream, {p, mod});
}

template <typename T, class Mod>
Status Launch(Stream stream, const PrefillMassParams& p, const Mod& mod) {
  using Kernel = PrefillMassKernel<T, Mod>;
  const PageFormat& f = p.table.format;
  const int64_t numbers = int64_t{Kernel::kWarps} * Kernel::RunNumbers(Kernel::Unit(p));  // of a block
  simt::LaunchShape shape;
  shape.grid_x = (p.mass_pages + numbers - 1) / numbers;
  shape.grid_y = f.kv_heads;
  shape.grid_z = (p.chunk.rows + Kernel::kRows - 1) / Kernel::kRows;
  shape.threads = Kernel::kMaxThreads;
  shape.shared_bytes = Kernel::Bytes(f);
  return simt::Launch<Kernel>(shape, stream, {p, mod});
}

Status CheckHeads(const char* what, int q_heads, const PageFormat& f) {
  if (q_heads % f.kv_heads == 0) return OkStatus();
  return Internal(what + (": " + std::to_string(q_heads)) + " query heads on " + std::to_string(f.kv_heads) + " KV heads");
}

}  // namespace

template <class Mod>
Status PrefillMass(Stream stream, const PrefillMassParams& p, const Mod& mod) {
  const PageFormat& f = p.table.format;
  RETURN_IF_ERROR(CheckHeads("prefill mass", p.q_heads, f));
  return VisitFloatDType(f.dtype, [&](auto t) { return Launch<decltype(t)>(stream, p, mod); });
}
template Status PrefillMass<PlainMod>(Stream, const PrefillMassParams&, const PlainMod&);
template Status PrefillMass<SoftCapMod>(Stream, const PrefillMassParams&, const SoftCapMod&);

template <class Mod>
Status SlotMass(Stream stream, const SlotMassParams& p, const Mod& mod) {
  RETURN_IF_ERROR(CheckHeads("slot mass", p.q_heads, p.table.format));
  return VisitFloatDType(p.table.format.dtype, [&](auto t) { return LaunchSlots<decltype(t)>(stream, p, mod); });
}
template Status SlotMass<PlainMod>(Stream, const SlotMassParams&, const PlainMod&);
template Status SlotMass<SoftCapMod>(Stream, const SlotMassParams&, const SoftCapMod&);

}  // namespace quire::cuda

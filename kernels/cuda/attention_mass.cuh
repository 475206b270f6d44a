// Attention mass per page of a decode step, after the attention itself: exp(score − log-sum-exp) over a page's slots,
// summed over the query group. Scores are made again from K, so a step with mass reads K twice; in return the attention
// kernels know nothing of it, and a page's mass has the same bits wherever the list was cut.
//
// A block takes kPages logical pages of a (row, KV head), listed or not, a warp every fourth listed one of them; a lane
// takes a slot and all channels of its K, for kHeads query heads at a time.
#pragma once

#include "kernels/cuda/decode_list.cuh"

namespace quire::cuda {

template <typename T, class Mod>
struct MassKernel {
  using Params = ModDecodeArgs<Mod>;
  static constexpr int kWarps = 4;
  static constexpr int kPages = 32;
  static constexpr int kHeads = 4;
  static constexpr const char* kName = "decode_mass";
  static constexpr int kMaxThreads = kWarps * simt::kWarpSize;
  static constexpr int kMinBlocks = 4;
  static constexpr int kWord = 4 / static_cast<int>(sizeof(T));
  struct Heads {
    float lse[kHeads];
    float mass[kPages];
  };  // then queries [k_dim][kHeads], times scale
  static constexpr size_t Bytes(const PageFormat& f) {
    return sizeof(Heads) + sizeof(float) * static_cast<size_t>(f.k_dim * kHeads);
  }

  QUIRE_DEVICE static bool Visible(const Params& a, const PageList& list, int entry, int page, int slot) {
    const int pos = page * a.p.table.format.page_size + slot;
    if (pos < list.first_pos || pos >= list.length) return false;
    if (list.mask == nullptr) return true;
    return (list.mask[int64_t{entry} * list.mask_words + slot / 64] >> (slot % 64) & 1) != 0;
  }

  // Of the lane's slots of a page, for the heads in shared memory, the first of which is first_head.
  QUIRE_DEVICE static float LaneMass(const Params& a, const PageList& list, int kv_head, int entry, int page,
                                     int id, const Heads& s, const simt::F32x4* q, int seq, int first_head, int heads) {
    const PageFormat& f = a.p.table.format;
    const T* base = static_cast<const T*>(a.p.pages.k) + id * f.k_page_stride + kv_head * f.k_head_stride;
    float mass = 0;
    for (int slot = simt::Lane(); slot < f.page_size; slot += simt::kWarpSize) {
      if (!Visible(a, list, entry, page, slot)) continue;
      float sum[kHeads] = {0, 0, 0, 0};
      const auto add = [&](const simt::F32x4& x, float y) {
        sum[0] = simt::Fma(x.x, y, sum[0]);
        sum[1] = simt::Fma(x.y, y, sum[1]);
        sum[2] = simt::Fma(x.z, y, sum[2]);
        sum[3] = simt::Fma(x.w, y, sum[3]);
      };
      const T* k = base + f.KOffset(slot, 0);
#pragma unroll 4
      for (int w = 0; w < f.k_dim / kWord; ++w) {
        const uint32_t word = simt::LoadReadOnly<uint32_t>(k + int64_t{w} * f.page_size * kWord);
        if constexpr (kWord == 1) {
          add(q[w], simt::BitsFloat(word));
        } else {
          add(q[2 * w], simt::LowFloat<T>(word));
          add(q[2 * w + 1], simt::HighFloat<T>(word));
        }
      }
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        if (h >= heads) break;
        if constexpr (!Mod::kIsIdentity) {
          const int64_t query = list.length - 1, key = int64_t{page} * f.page_size + slot;
          const bool masked = Mod::kHasMask && !a.mod.Mask(seq, first_head + h, query, key);
          sum[h] = masked ? MinusInfinity() : a.mod.Score(sum[h], seq, first_head + h, query, key);
        }
        if (sum[h] != MinusInfinity()) mass += simt::Exp(sum[h] - s.lse[h]);
      }
    }
    return mass;
  }

  QUIRE_DEVICE static void Run(const Params& a) {
    auto& s = simt::Shared<Heads>();
    auto* q = reinterpret_cast<simt::F32x4*>(simt::SharedBytes() + sizeof(Heads));
    const AttentionDecodeParams& p = a.p;
    const PageFormat& f = p.table.format;
    const int begin = simt::BlockX() * kPages, kv_head = simt::BlockY(), row = simt::BlockZ();
    const int end = begin + kPages < p.mass_pages ? begin + kPages : p.mass_pages;
    const int group = p.q_heads / f.kv_heads;
    const PageList list = ListOf(a, row, kv_head);
    // The list's entries in [begin, end).
    int first, stop;
    if (list.pages != nullptr) {
      first = FirstNotBelow(list.pages, list.count, begin);
      stop = FirstNotBelow(list.pages, list.count, end);
    } else {
      first = begin > list.first_page ? begin - list.first_page : 0;
      stop = end - list.first_page < list.count ? end - list.first_page : list.count;
    }
    for (int i = simt::ThreadIndex(); i < kPages; i += kMaxThreads) s.mass[i] = 0;

    for (int head = 0; head < group && first < stop; head += kHeads) {
      const int heads = group - head < kHeads ? group - head : kHeads;
      simt::SyncThreads();
      const float* from = p.q + row * p.q_stride + (int64_t{kv_head} * group + head) * f.k_dim;
      for (int i = simt::ThreadIndex(); i < kHeads * f.k_dim; i += kMaxThreads) {
        const int h = i / f.k_dim;
        reinterpret_cast<float*>(q + i % f.k_dim)[h] = h < heads ? from[i] * p.scale : 0.0f;
      }
      const int h = simt::ThreadIndex();
      if (h < heads) s.lse[h] = a.lse[int64_t{row} * p.q_heads + kv_head * group + head + h];
      simt::SyncThreads();
      for (int entry = first + simt::Warp(); entry < stop; entry += kWarps) {
        const int page = list.Page(entry), id = list.ids[page];
        if (id < 0) continue;
        const int first_head = kv_head * group + head, seq = p.row_seq[row];
        if (PageState(a, list, seq, first_head, heads, page) == MaskState::kMasked) continue;
        const float mass = simt::WarpSum(LaneMass(a, list, kv_head, entry, page, id, s, q, seq, first_head, heads));
        if (simt::Lane() == 0) s.mass[page - begin] += mass;
      }
    }
    simt::SyncThreads();
    float* mass = p.mass + (int64_t{row} * f.kv_heads + kv_head) * p.mass_pages;
    for (int i = begin + simt::ThreadIndex(); i < end; i += kMaxThreads) mass[i] = s.mass[i - begin];
  }
};

// Once args.lse is there.
template <class Mod>
Status LaunchDecodeMass(Stream stream, const ModDecodeArgs<Mod>& a) {
  const PageFormat& f = a.p.table.format;
  using Any = MassKernel<float, Mod>;
  simt::LaunchShape shape;
  shape.grid_x = (a.p.mass_pages + Any::kPages - 1) / Any::kPages;
  shape.grid_y = f.kv_heads;
  shape.grid_z = a.p.rows;
  shape.threads = Any::kMaxThreads;
  shape.shared_bytes = Any::Bytes(f);
  return VisitFloatDType(f.dtype, [&](auto t) { return simt::Launch<MassKernel<decltype(t), Mod>>(shape, stream, a); });
}

}  // namespace quire::cuda

// Plain decode attention: any group, page size, width and dtype; small groups are bound by memory without tensor cores.
//
// A thread takes a slot of the chunk and all channels of its K (lanes side by side over slots read whole lines of a K
// word's row); the chunk's scores of all heads stay in shared memory, one maximum and one sum per head; then a thread takes four
// channels and every n-th word of V, and the threads' sums meet in order. A page that the Mod's mask leaves nothing of counts
// as one that isn't there.
#pragma once

#include "kernels/cuda/decode_list.cuh"

namespace quire::cuda {

inline constexpr int kPlainThreads = 128;
inline constexpr int kMostPlainHeads = 4;

// kHeads: of the query group, by one block. kVec: channels of V a thread loads at once; v_dim is a multiple.
template <typename T, int kHeads, int kVec, class Mod = PlainMod>
struct PlainDecodeKernel {
  using Params = ModDecodeArgs<Mod>;
  static constexpr const char* kName = "decode_plain";
  static constexpr int kMaxThreads = kPlainThreads;
  static constexpr int kMinBlocks = 4;
  static constexpr int kWord = 4 / static_cast<int>(sizeof(T));

  struct Shared {
    float* q;        // [k_dim][kHeads], times scale and log2 e
    float* p;        // [kHeads][chunk_slots] scores, then weights
    float* partial;  // [threads][kHeads][kVec]
    float* stats;    // [kHeads][2] maximum and sum
    int* ids;        // [pages of the chunk] −1: nothing to read
    int* start;      // [..] position of its first slot
    int* tested;     // [..] with a mask: whether its keys are asked for one by one
  };
  static constexpr size_t Bytes(const PageFormat& f, int chunk_slots, int page_slots) {
    return sizeof(float) * static_cast<size_t>(f.k_dim * kHeads + kHeads * chunk_slots + kPlainThreads * kHeads * kVec +
                                               kHeads * 2 + (Mod::kHasMask ? 3 : 2) * (chunk_slots / page_slots + 2));
  }
  QUIRE_DEVICE static Shared Place(const Params& a) {
    Shared s;
    s.partial = reinterpret_cast<float*>(simt::SharedBytes());
    s.q = s.partial + kPlainThreads * kHeads * kVec;
    s.p = s.q + a.p.table.format.k_dim * kHeads;
    s.stats = s.p + kHeads * a.c.chunk_slots;
    s.ids = reinterpret_cast<int*>(s.stats + kHeads * 2);
    s.start = s.ids + a.c.chunk_slots / a.page_slots + 2;
    s.tested = s.start + a.c.chunk_slots / a.page_slots + 2;
    return s;
  }

  // Of the chunk's page e (0 is its first).
  QUIRE_DEVICE static bool Visible(const DecodeArgs& a, const Shared& s, const PageList& list, const ListChunk& c, int e, int slot) {
    const int pos = s.start[e] + slot;
    if (s.ids[e] < 0 || slot >= a.p.table.format.page_size || pos < list.first_pos || pos >= list.length) return false;
    if (list.mask == nullptr) return true;
    return (list.mask[int64_t{c.first_entry + e} * list.mask_words + slot / 64] >> (slot % 64) & 1) != 0;
  }
  QUIRE_DEVICE static bool WholePage(const DecodeArgs& a, const Shared& s, const PageList& list, int e) {
    const int size = a.p.table.format.page_size;
    return s.start[e] >= list.first_pos && s.start[e] + size <= list.length && list.mask == nullptr && size == a.page_slots;
  }

  // The Mod's part for the key at `position`; sum: of the first `heads` heads from first_head on.
  QUIRE_DEVICE static void Modify(const Params& a, const PageList& list, int seq, int first_head, int heads, int position,
                                  bool tested, float (&sum)[kHeads]) {
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      if (h >= heads) break;
      if constexpr (Mod::kHasScore) {
        sum[h] = a.mod.Score(sum[h], seq, first_head + h, list.length - 1, position) * kLog2E;
      }
      if (Mod::kHasMask && tested && !a.mod.Mask(seq, first_head + h, list.length - 1, position)) sum[h] = MinusInfinity();
    }
  }

  QUIRE_DEVICE static void Scores(const Params& a, const Shared& s, const PageList& list, const ListChunk& c, int kv_head,
                                  int seq, int first_head, int heads) {
    const PageFormat& f = a.p.table.format;
    const T* base = static_cast<const T*>(a.p.pages.k) + kv_head * f.k_head_stride;
    const int n = c.end - c.begin, words = f.k_dim / kWord;
    const int64_t step = int64_t{f.page_size} * kWord;
    for (int i = simt::ThreadIndex(); i < n; i += kPlainThreads) {
      const int e = PageOfSlot(a, c.offset + i), slot = c.offset + i - e * a.page_slots;
      float sum[kHeads];
      if (Visible(a, s, list, c, e, slot)) {
        const T* k = base + s.ids[e] * f.k_page_stride + slot * kWord;
#pragma unroll
        for (int h = 0; h < kHeads; ++h) sum[h] = 0;
#pragma unroll 8
        for (int w = 0; w < words; ++w) {
          const uint32_t word = simt::LoadStreaming<uint32_t>(k + w * step);
          if constexpr (kWord == 1) {
#pragma unroll
            for (int h = 0; h < kHeads; ++h) sum[h] = simt::Fma(s.q[w * kHeads + h], simt::BitsFloat(word), sum[h]);
          } else {
            const float low = simt::LowFloat<T>(word), high = simt::HighFloat<T>(word);
            const float* q = s.q + w * 2 * kHeads;
#pragma unroll
            for (int h = 0; h < kHeads; ++h) sum[h] = simt::Fma(q[kHeads + h], high, simt::Fma(q[h], low, sum[h]));
          }
        }
        if constexpr (!Mod::kIsIdentity) {
          Modify(a, list, seq, first_head, heads, s.start[e] + slot, Mod::kHasMask && s.tested[e] != 0, sum);
        }
      } else {
#pragma unroll
        for (int h = 0; h < kHeads; ++h) sum[h] = MinusInfinity();
      }
#pragma unroll
      for (int h = 0; h < kHeads; ++h) s.p[h * a.c.chunk_slots + i] = sum[h];
    }
  }

  // Scores become weights; a warp a head. A NaN score does not become the maximum, its weight is NaN.
  QUIRE_DEVICE static void Weights(const DecodeArgs& a, const Shared& s, int n) {
    for (int h = simt::Warp(); h < kHeads; h += kPlainThreads / simt::kWarpSize) {
      float* p = s.p + h * a.c.chunk_slots;
      float max = MinusInfinity();
      for (int i = simt::Lane(); i < n; i += simt::kWarpSize) max = p[i] > max ? p[i] : max;
      max = simt::WarpMax(max);
      float sum = 0;
      for (int i = simt::Lane(); i < n; i += simt::kWarpSize) {
        const float x = p[i];
        const float weight = x == MinusInfinity() ? 0.0f : simt::Exp2(x - max);
        p[i] = weight;
        sum += weight;
      }
      sum = simt::WarpSum(sum);
      if (simt::Lane() == 0) {
        s.stats[2 * h] = max;
        s.stats[2 * h + 1] = sum;
      }
    }
  }

  // Sums of this thread's words of V over its kVec channels from `channel` on.
  QUIRE_DEVICE static void Values(const DecodeArgs& a, const Shared& s, const PageList& list, const ListChunk& c, int kv_head,
                                  int channel, int part, int parts, float (&acc)[kHeads][kVec]) {
    const PageFormat& f = a.p.table.format;
    const T* base = static_cast<const T*>(a.p.pages.v) + kv_head * f.v_head_stride;
    const int words = (c.end - c.begin) / kWord;
#pragma unroll 4
    for (int w = part; w < words; w += parts) {
      const int i = w * kWord;
      const int e = PageOfSlot(a, c.offset + i), slot = c.offset + i - e * a.page_slots;
      if (s.ids[e] < 0) continue;
      const T* v = base + s.ids[e] * f.v_page_stride + (int64_t{slot / kWord} * f.v_dim + channel) * kWord;
      uint32_t x[kVec];
      if constexpr (kVec == 4) {
        const simt::U32x4 load = simt::LoadStreaming<simt::U32x4>(v);
        x[0] = load.x, x[1] = load.y, x[2] = load.z, x[3] = load.w;
      } else {
        x[0] = simt::LoadStreaming<uint32_t>(v);
      }
      // What does not count may be anything: 0 · NaN would leak.
      uint32_t keep = 0xffffffffu;
      const bool tested = Mod::kHasMask && s.tested[e] != 0;
      if (!WholePage(a, s, list, e)) {
        keep = Visible(a, s, list, c, e, slot) ? (kWord == 1 ? 0xffffffffu : 0xffffu) : 0u;
        if (kWord == 2 && Visible(a, s, list, c, e, slot + 1)) keep |= 0xffff0000u;
      }
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        const uint32_t word = x[j] & keep;
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
          const float* p = s.p + h * a.c.chunk_slots + i;
          // A key that this head doesn't see may be anything, too.
          if constexpr (kWord == 1) {
            if (!tested || p[0] != 0) acc[h][j] = simt::Fma(p[0], simt::BitsFloat(word), acc[h][j]);
          } else if (tested) {
            if (p[0] != 0) acc[h][j] = simt::Fma(p[0], simt::LowFloat<T>(word), acc[h][j]);
            if (p[1] != 0) acc[h][j] = simt::Fma(p[1], simt::HighFloat<T>(word), acc[h][j]);
          } else {
            acc[h][j] = simt::Fma(p[1], simt::HighFloat<T>(word), simt::Fma(p[0], simt::LowFloat<T>(word), acc[h][j]));
          }
        }
      }
    }
  }

  QUIRE_DEVICE static void Run(const Params& a) {
    const AttentionDecodeParams& p = a.p;
    const PageFormat& f = p.table.format;
    const int kv_head = simt::BlockX() / a.c.passes, chunk = simt::BlockY(), row = simt::BlockZ();
    const int group = p.q_heads / f.kv_heads, first_head = simt::BlockX() % a.c.passes * kHeads;
    const PageList list = ListOf(a, row, kv_head);
    const ListChunk c = ChunkOf(a, list, chunk);
    if (list.count > a.most_pages) {
      if (chunk == 0) RefuseRow(a, row, kv_head * group + first_head, first_head + kHeads < group ? kHeads : group - first_head);
      return;
    }
    if (chunk >= c.chunks && !a.c.direct) return;
    const Shared s = Place(a);
    const int n = list.count == 0 ? 0 : c.end - c.begin;
    const int seq = p.row_seq[row], first_query = kv_head * group + first_head;
    const int heads = first_head + kHeads < group ? kHeads : group - first_head;
    const float factor = Mod::kHasScore ? p.scale : p.scale * kLog2E;  // a score functor wants scores as they are
    const float* q = p.q + row * p.q_stride + (int64_t{kv_head} * group + first_head) * f.k_dim;
    for (int i = simt::ThreadIndex(); i < kHeads * f.k_dim; i += kPlainThreads) {
      const int h = i / f.k_dim, channel = i % f.k_dim;
      s.q[channel * kHeads + h] = first_head + h < group ? q[i] * factor : 0.0f;
    }
    const int entries = n == 0 ? 0 : PageOfSlot(a, c.offset + n - 1) + 1;
    for (int e = simt::ThreadIndex(); e < entries; e += kPlainThreads) {
      const int page = list.Page(c.first_entry + e);
      s.ids[e] = list.ids[page];
      s.start[e] = page * f.page_size;
      if constexpr (Mod::kHasMask) {
        const MaskState state = PageState(a, list, seq, first_query, heads, page);
        if (state == MaskState::kMasked) s.ids[e] = -1;
        s.tested[e] = state == MaskState::kMixed ? 1 : 0;
      }
    }
    simt::SyncThreads();
    if (n > 0) Scores(a, s, list, c, kv_head, seq, first_query, heads);
    simt::SyncThreads();
    Weights(a, s, n);
    simt::SyncThreads();

    float* record = a.c.direct ? nullptr : RecordOf(a, row, kv_head, chunk) + first_head * 2;
    float* sums = a.c.direct ? nullptr : RecordOf(a, row, kv_head, chunk) + group * 2 + first_head * f.v_dim;
    for (int base = 0; base < f.v_dim; base += kPlainThreads * kVec) {
      const int width = f.v_dim - base < kPlainThreads * kVec ? f.v_dim - base : kPlainThreads * kVec;
      const int columns = width / kVec, parts = kPlainThreads / columns;
      const int part = simt::ThreadIndex() / columns, column = simt::ThreadIndex() % columns;
      float acc[kHeads][kVec];
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
#pragma unroll
        for (int j = 0; j < kVec; ++j) acc[h][j] = 0;
      }
      if (part < parts && n > 0) Values(a, s, list, c, kv_head, base + column * kVec, part, parts, acc);
      if (base > 0) simt::SyncThreads();
      if (part < parts) {
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
#pragma unroll
          for (int j = 0; j < kVec; ++j) s.partial[(part * kHeads + h) * width + column * kVec + j] = acc[h][j];
        }
      }
      simt::SyncThreads();
      for (int i = simt::ThreadIndex(); i < kHeads * width; i += kPlainThreads) {
        const int h = i / width, channel = base + i % width;
        if (first_head + h >= group) break;
        float sum = 0;
        for (int r = 0; r < parts; ++r) sum += s.partial[r * kHeads * width + i];
        if (a.c.direct) {
          WriteOut(a, row, kv_head * group + first_head + h, channel, sum, s.stats[2 * h + 1]);
        } else {
          sums[h * f.v_dim + channel] = sum;
        }
      }
    }
    const int h = simt::ThreadIndex();
    if (h < kHeads && first_head + h < group) {
      if (a.c.direct) {
        WriteLse(a, row, kv_head * group + first_head + h, s.stats[2 * h], s.stats[2 * h + 1]);
      } else {
        record[2 * h] = s.stats[2 * h];
        record[2 * h + 1] = s.stats[2 * h + 1];
      }
    }
  }
};

template <typename T, int kHeads, int kVec, class Mod>
Status LaunchPlainDecode(Stream stream, const ModDecodeArgs<Mod>& a) {
  using Kernel = PlainDecodeKernel<T, kHeads, kVec, Mod>;
  simt::LaunchShape shape = DecodeShape(a);
  shape.shared_bytes = Kernel::Bytes(a.p.table.format, a.c.chunk_slots, a.page_slots);
  return simt::Launch<Kernel>(shape, stream, a);
}

// Where tensor cores aren't used.
template <typename T, class Mod>
Status LaunchPlainHeads(Stream stream, const ModDecodeArgs<Mod>& a) {
  if (a.p.table.format.v_dim % 4 != 0) return LaunchPlainDecode<T, kMostPlainHeads, 1>(stream, a);
  switch (a.c.heads_per_pass) {
    case 1: return LaunchPlainDecode<T, 1, 4>(stream, a);
    case 2: return LaunchPlainDecode<T, 2, 4>(stream, a);
    default: return LaunchPlainDecode<T, kMostPlainHeads, 4>(stream, a);
  }
}

}  // namespace quire::cuda

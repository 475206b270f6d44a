// Plain prefill attention: any page size, width and dtype, f32 throughout.
//
// A warp takes four (token, head) pairs and walks the keys alone. A lane takes one key of a block and all
// channels of its K (lanes side by side over slots read whole lines of a K word's row), then a channel of V and all
// keys of the block. Results grow in shared memory; what a row doesn't see never touches it, whatever it holds.
#pragma once

#include "kernels/cuda/prefill_tile.cuh"

namespace quire::cuda {

template <typename T, class Mod = PlainMod>
struct PlainPrefillKernel {
  using Params = ModPrefillArgs<Mod>;
  static constexpr int kWarps = 4;
  static constexpr int kWarpRows = 4;
  static constexpr const char* kName = "prefill_plain";
  static constexpr int kMaxThreads = kWarps * simt::kWarpSize;
  static constexpr int kMinBlocks = 4;
  static constexpr int kWord = 4 / static_cast<int>(sizeof(T));

  // Of one warp, each [..][kWarpRows]: queries by channel, results by channel, weights by key; and where each key's V
  // lies.
  struct Shared {
    simt::F32x4* q;
    simt::F32x4* out;
    simt::F32x4* weights;
    int64_t* at;  // −1: nobody sees it
  };
  static constexpr size_t WarpBytes(const PageFormat& f) {
    return sizeof(simt::F32x4) * static_cast<size_t>(f.k_dim + f.v_dim + kKeyBlock) + sizeof(int64_t) * kKeyBlock;
  }
  QUIRE_DEVICE static Shared Place(const Params& a) {
    const PageFormat& f = a.p.table.format;
    Shared s;
    s.q = reinterpret_cast<simt::F32x4*>(simt::SharedBytes() + WarpBytes(f) * simt::Warp());
    s.out = s.q + f.k_dim;
    s.weights = s.out + f.v_dim;
    s.at = reinterpret_cast<int64_t*>(s.weights + kKeyBlock);
    return s;
  }

  // Products of the warp's queries with the K at `k`.
  QUIRE_DEVICE static void Scores(const PageFormat& f, const simt::F32x4* q, const T* k, float (&sum)[kWarpRows]) {
    const int64_t step = int64_t{f.page_size} * kWord;
    const auto add = [&](const simt::F32x4& x, float y) {
      sum[0] = simt::Fma(x.x, y, sum[0]);
      sum[1] = simt::Fma(x.y, y, sum[1]);
      sum[2] = simt::Fma(x.z, y, sum[2]);
      sum[3] = simt::Fma(x.w, y, sum[3]);
    };
    sum[0] = sum[1] = sum[2] = sum[3] = 0;
#pragma unroll 4
    for (int w = 0; w < f.k_dim / kWord; ++w) {
      const uint32_t word = simt::LoadReadOnly<uint32_t>(k + w * step);
      if constexpr (kWord == 1) {
        add(q[w], simt::BitsFloat(word));
      } else {
        add(q[2 * w], simt::LowFloat<T>(word));
        add(q[2 * w + 1], simt::HighFloat<T>(word));
      }
    }
  }

  QUIRE_DEVICE static void Run(const Params& a) {
    const AttentionPrefillParams& p = a.p;
    const PageFormat& f = p.table.format;
    const int index = simt::BlockX() / f.kv_heads, kv_head = simt::BlockX() - index * f.kv_heads;
    const int lane = simt::Lane(), first = simt::Warp() * kWarpRows;
    const PrefillTile tile = FindTile(a, index);
    if (tile.count == 0) return;
    if (tile.chunk.seq < 0) return WriteNothing(a, tile, kv_head);
    if (first >= tile.count) return;
    const int rows = tile.count - first < kWarpRows ? tile.count - first : kWarpRows;
    const Shared s = Place(a);

    const float factor = Mod::kHasScore ? p.scale : p.scale * kLog2E;  // a score functor wants scores as they are
    for (int c = lane; c < f.k_dim; c += simt::kWarpSize) {
      float x[kWarpRows];
#pragma unroll
      for (int r = 0; r < kWarpRows; ++r) {
        x[r] = r < rows ? QueryOf(a, tile, kv_head, first + r)[c] * factor : 0.0f;
      }
      s.q[c] = {x[0], x[1], x[2], x[3]};
    }
    for (int c = lane; c < f.v_dim; c += simt::kWarpSize) s.out[c] = {0, 0, 0, 0};
    simt::SyncWarp();

    int position[kWarpRows], end_of[kWarpRows];
    float max[kWarpRows], shrink[kWarpRows];
    float sum[kWarpRows];  // of this lane's keys
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
      position[r] = PositionOf(a, tile, first + (r < rows ? r : rows - 1));
      end_of[r] = EndOf(a, tile, first + (r < rows ? r : rows - 1));
      max[r] = MinusInfinity();
      sum[r] = 0;
    }
    const int low = FirstVisible(a, position[0]), end = end_of[kWarpRows - 1];
    const int32_t* ids = p.table.page_ids + p.table.page_begin[tile.chunk.seq];
    for (int start = low / kKeyBlock * kKeyBlock; start < end; start += kKeyBlock) {
      MaskState state = MaskState::kOpen;  // of the group's heads
      if constexpr (Mod::kHasMask) {
        const int block_end = start + kKeyBlock < end ? start + kKeyBlock : end;
        state = a.mod.State(tile.chunk.seq, kv_head * a.group, a.group,
                            {position[0], position[kWarpRows - 1] + 1, start, block_end});
        if (state == MaskState::kMasked) continue;
      }
      const KeyBlock block = KeysAt(a, ids, start, end);
      int slot;
      const int key = start + lane, page = PageOf(a, block, lane, &slot);
      const bool seen = page >= 0 && key >= low;
      float x[kWarpRows];
      if (seen) {
        const T* k = static_cast<const T*>(p.pages.k) + page * f.k_page_stride + kv_head * f.k_head_stride;
        Scores(f, s.q, k + f.KOffset(slot, 0), x);
      }
#pragma unroll
      for (int r = 0; r < kWarpRows; ++r) {
        if (!seen || key >= end_of[r] || key < FirstVisible(a, position[r])) {
          x[r] = MinusInfinity();
        } else if constexpr (!Mod::kIsIdentity) {
          const int head = kv_head * a.group + (tile.first + first + (r < rows ? r : rows - 1)) % a.group;
          if (state == MaskState::kMixed && !a.mod.Mask(tile.chunk.seq, head, position[r], key)) {
            x[r] = MinusInfinity();
          } else if constexpr (Mod::kHasScore) {
            x[r] = a.mod.Score(x[r], tile.chunk.seq, head, position[r], key) * kLog2E;
          }
        }
        // A NaN score does not become the maximum, its weight is NaN.
        const float most = simt::WarpMax(x[r]);
        shrink[r] = 1;
        if (most > max[r]) {
          shrink[r] = max[r] == MinusInfinity() ? 0.0f : simt::Exp2(max[r] - most);
          max[r] = most;
        }
        x[r] = x[r] == MinusInfinity() ? 0.0f : simt::Exp2(x[r] - max[r]);
        sum[r] = simt::Fma(sum[r], shrink[r], x[r]);
      }
      s.weights[lane] = {x[0], x[1], x[2], x[3]};
      s.at[lane] = seen ? page * f.v_page_stride + kv_head * f.v_head_stride + f.VOffset(slot, 0) : -1;
      simt::SyncWarp();
      for (int c = lane; c < f.v_dim; c += simt::kWarpSize) {
        simt::F32x4 out = s.out[c];
        out = {out.x * shrink[0], out.y * shrink[1], out.z * shrink[2], out.w * shrink[3]};
        for (int i = 0; i < kKeyBlock; ++i) {
          if (s.at[i] < 0) continue;
          const float v =
              simt::ToFloat(simt::LoadReadOnly<T>(static_cast<const T*>(p.pages.v) + s.at[i] + int64_t{c} * kWord));
          const simt::F32x4 w = s.weights[i];
          // What weighs nothing may be anything: 0 · NaN would leak.
          out.x = simt::Fma(w.x, w.x == 0 ? 0.0f : v, out.x);
          out.y = simt::Fma(w.y, w.y == 0 ? 0.0f : v, out.y);
          out.z = simt::Fma(w.z, w.z == 0 ? 0.0f : v, out.z);
          out.w = simt::Fma(w.w, w.w == 0 ? 0.0f : v, out.w);
        }
        s.out[c] = out;
      }
      simt::SyncWarp();
    }

#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
      if (r >= rows) break;
      const float total = simt::WarpSum(sum[r]);
      const float share = total == 0 ? 0.0f : 1.0f / total;
      float* out = OutOf(a, tile, kv_head, first + r);
      for (int c = lane; c < f.v_dim; c += simt::kWarpSize)
        out[c] = reinterpret_cast<const float*>(&s.out[c])[r] * share;
      if (lane == 0) WriteLse(a, tile, kv_head, first + r, max[r], total);
    }
  }
};

}  // namespace quire::cuda

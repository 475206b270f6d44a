// Prefill attention on tensor cores, after FlashAttention-2 (Dao, arXiv 2307.08691), for bf16 and f16 pages whose size
// 8 divides.
//
// A block of four warps takes kRows (token, head) pairs of a KV head, a warp 16 · kTiles of them. K and V come by
// cp.async in blocks of 32 keys into two stages of shared memory, as the pages' words lie: the next block is under way
// while one is used, and one barrier a block orders both. Scores, weights and results stay in registers.
//
// With g = lane / 4 and t = lane % 4, a lane reads the K words of slots 4g … 4g + 3 for channel pairs t and t + 4 of
// each 16 channels, 16 bytes at a time: word j is the B fragment of the product with column g = slot 4g + j. So slots
// 8t … 8t + 7 of rows g and g + 8 come out in one lane, and those, two by two, are the A fragment of the second product
// when V's words of slot pairs 4t … 4t + 3 are its B fragment. V's slot pair 4t + i lies in row 4i + t of its stage,
// and rows are 8 words longer than they need be: eight lanes' 16 bytes meet no bank twice.
//
// A warp skips key blocks that none of its rows sees, and looks at single keys only in blocks that not all of its rows
// see whole.
#pragma once

#include "kernels/cuda/prefill_tile.cuh"

namespace quire::cuda {

// kDim: of K and V. kTiles: A operands of 16 rows by one warp.
template <typename T, int kDim, int kTiles, class Mod>
struct TensorPrefillKernel {
  using Params = ModPrefillArgs<Mod>;
  static constexpr int kWarps = 4;
  static constexpr int kThreads = kWarps * simt::kWarpSize;
  static constexpr const char* kName = "prefill_tensor";
  static constexpr int kMaxThreads = kThreads;
  static constexpr int kMinBlocks = 2;
  static constexpr int kRows = kWarps * 16 * kTiles;
  static constexpr int kSteps = kDim / 16;   // of the first product
  static constexpr int kBlocks = kDim / 32;  // of 32 channels of V
  struct Stage {
    uint32_t k[kDim / 2][kKeyBlock + 8];  // [channel pair][slot]
    uint32_t v[kKeyBlock / 2][kDim + 8];  // [4 (slot pair % 4) + slot pair / 4][channel]
  };
  struct Layout {
    uint32_t q[kWarps * kTiles][kSteps][simt::kWarpSize][4];  // A fragments of the queries
    Stage stages[2];
  };

  // The queries' A fragments, rounded to T. sign: of the scale.
  QUIRE_DEVICE static void PutQueries(const Params& a, const PrefillTile& tile, int kv_head, float sign,
                                      Layout& s) {
    for (int i = simt::ThreadIndex(); i < kRows * kDim / 2; i += kThreads) {
      const int row = i / (kDim / 2), pair = i % (kDim / 2);
      uint32_t word = 0;
      if (row < tile.count) {
        const float* q = QueryOf(a, tile, kv_head, row) + 2 * pair;
        word = simt::PackPair<T>(q[0] * sign, q[1] * sign);
      }
      s.q[row / 16][pair / 8][row % 8 * 4 + pair % 4][pair % 8 / 4 * 2 + row % 16 / 8] = word;
    }
  }

  QUIRE_DEVICE static void Fetch(const Params& a, const KeyBlock& block, int kv_head, Stage& stage) {
    const PageFormat& f = a.p.table.format;
    {
      constexpr int kUnits = kKeyBlock / 4;  // of four slots, neighbouring threads'
      const int unit = simt::ThreadIndex() % kUnits, first = simt::ThreadIndex() / kUnits;
      int slot;
      const int id = PageOf(a, block, 4 * unit, &slot);
      const bool there = id >= 0;
      const uint32_t* k =
          static_cast<const uint32_t*>(a.p.pages.k) +
          (there ? (id * f.k_page_stride + kv_head * f.k_head_stride) / 2 + int64_t{first} * f.page_size + slot : 0);
      const int64_t step = there ? int64_t{kThreads / kUnits} * f.page_size : 0;
#pragma unroll
      for (int i = 0; i < kDim / 2 * kUnits / kThreads; ++i) {
        simt::CpAsyncOrZero<16>(&stage.k[first + i * (kThreads / kUnits)][4 * unit], k, there);
        k += step;
      }
    }
    constexpr int kUnits = kDim / 4;  // of four channels
#pragma unroll
    for (int i = 0; i < kKeyBlock / 2 * kUnits / kThreads; ++i) {
      const int pair = (simt::ThreadIndex() + i * kThreads) / kUnits,
                unit = (simt::ThreadIndex() + i * kThreads) % kUnits;
      int slot;
      const int id = PageOf(a, block, 2 * pair, &slot);
      const bool there = id >= 0;
      const uint32_t* v =
          static_cast<const uint32_t*>(a.p.pages.v) +
          (there ? (id * f.v_page_stride + kv_head * f.v_head_stride) / 2 + int64_t{slot / 2} * kDim + 4 * unit : 0);
      simt::CpAsyncOrZero<16>(&stage.v[pair % 4 * 4 + pair / 4][4 * unit], v, there);
    }
  }

  // Bit i: the lane's slot i, at position `at` + i, lies in [first, last].
  QUIRE_DEVICE static uint32_t Bits(int at, int first, int last) {
    const int low = first - at, high = last + 1 - at;
    if (low >= 8 || high <= 0) return 0;
    const uint32_t bits = high >= 8 ? 0xffu : (1u << high) - 1;
    return low > 0 ? bits & 0xffu << low : bits;
  }

  QUIRE_DEVICE static void Run(const Params& a) {
    auto& s = simt::Shared<Layout>();
    const AttentionPrefillParams& p = a.p;
    const int kv_head = simt::BlockY(), warp = simt::Warp(), lane = simt::Lane(), g = lane / 4, t = lane % 4;
    const PrefillTile tile = FindTile(a);
    if (tile.count == 0) return;
    if (tile.chunk.seq < 0) return WriteNothing(a, tile, kv_head);

    const int32_t* ids = p.table.page_ids + p.table.page_begin[tile.chunk.seq];
    const int begin = FirstVisible(a, PositionOf(a, tile, 0)) / kKeyBlock * kKeyBlock;
    const int end = EndOf(a, tile, tile.count - 1);
    const int blocks = (end - begin + kKeyBlock - 1) / kKeyBlock;
    Fetch(a, KeysAt(a, ids, begin, end), kv_head, s.stages[0]);
    simt::CpAsyncCommit();

    // The maximum is taken of raw scores, so their factor must be positive: its sign goes to the queries.
    const float sign = p.scale < 0 ? -1.0f : p.scale == 0 ? 0.0f : 1.0f;
    const float natural = p.scale == 0 ? 1.0f : p.scale * sign;
    const float scale = Mod::kHasScore ? kLog2E : natural * kLog2E;  // a score functor leaves finished scores
    PutQueries(a, tile, kv_head, sign, s);

    // What the warp's rows see: first and last keys of its first and of its last row.
    const int warp_row = warp * 16 * kTiles;
    const bool idle = warp_row >= tile.count;
    const auto clamp = [&](int row) { return row < tile.count ? row : tile.count - 1; };
    const int low_last = PositionOf(a, tile, clamp(warp_row)),
              high_last = PositionOf(a, tile, clamp(warp_row + 16 * kTiles - 1));
    const int low_first = FirstVisible(a, low_last), high_first = FirstVisible(a, high_last);
    // Positions after the last keys that its first and its last row see.
    const int low_end = EndOf(a, tile, clamp(warp_row)), high_end = EndOf(a, tile, clamp(warp_row + 16 * kTiles - 1));
    int position[kTiles][2], end_of[kTiles][2], head[kTiles][2];
    float max[kTiles][2], sum[kTiles][2];
    float acc[kTiles][kBlocks][4][4];  // [..][32 channels][word j][fragment]
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int pair = clamp(warp_row + 16 * m + 8 * r + g);
        position[m][r] = PositionOf(a, tile, pair);
        end_of[m][r] = EndOf(a, tile, pair);
        head[m][r] = kv_head * a.group + (tile.first + pair) % a.group;
        max[m][r] = MinusInfinity();
        sum[m][r] = 0;
      }
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
        for (int j = 0; j < 4; ++j) acc[m][b][j][0] = acc[m][b][j][1] = acc[m][b][j][2] = acc[m][b][j][3] = 0;
      }
    }

    for (int n = 0; n < blocks; ++n) {
      const int start = begin + n * kKeyBlock;
      const Stage& stage = s.stages[n % 2];
      int slot;
      const bool there = PageOf(a, KeysAt(a, ids, start, end), 8 * t, &slot) >= 0;
      simt::CpAsyncWait<0>();
      simt::SyncThreads();
      if (n + 1 < blocks) {
        Fetch(a, KeysAt(a, ids, start + kKeyBlock, end), kv_head, s.stages[(n + 1) % 2]);
        simt::CpAsyncCommit();
      }
      if (idle || start >= high_end || start + kKeyBlock <= low_first) continue;
      MaskState state = MaskState::kOpen;
      if constexpr (Mod::kHasMask) {
        const int block_end = start + kKeyBlock < end ? start + kKeyBlock : end;
        state = a.mod.State(tile.chunk.seq, kv_head * a.group, a.group, {low_last, high_last + 1, start, block_end});
        if (state == MaskState::kMasked) continue;
      }

      float scores[kTiles][4][4];
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
#pragma unroll
        for (int j = 0; j < 4; ++j) scores[m][j][0] = scores[m][j][1] = scores[m][j][2] = scores[m][j][3] = 0;
      }
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const simt::U32x4 k0 = simt::Load<simt::U32x4>(&stage.k[8 * step + t][4 * g]);
        const simt::U32x4 k1 = simt::Load<simt::U32x4>(&stage.k[8 * step + 4 + t][4 * g]);
        const uint32_t low[4] = {k0.x, k0.y, k0.z, k0.w}, high[4] = {k1.x, k1.y, k1.z, k1.w};
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
          const simt::U32x4 x = simt::Load<simt::U32x4>(s.q[warp * kTiles + m][step][lane]);
          const uint32_t q[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
          for (int j = 0; j < 4; ++j) simt::MmaM16N8K16<T>(scores[m][j], q, {low[j], high[j]});
        }
      }

      const int at = start + 8 * t;
      const bool whole = state == MaskState::kOpen && start + kKeyBlock <= low_end && start >= high_first &&
                         simt::All(simt::kFullMask, there);
      if constexpr (Mod::kHasScore) {
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
#pragma unroll
          for (int r = 0; r < 2; ++r) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
              float& x = scores[m][i % 4][2 * r + i / 4];
              if (!there || at + i >= end_of[m][r]) continue;  // no key to ask about
              x = a.mod.Score(x * natural, tile.chunk.seq, head[m][r], position[m][r], at + i);
            }
          }
        }
      }
      uint32_t kept = 0;  // with a mixed mask, bit i: some row of the warp sees slot 8t + i
      if (!whole) {
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            uint32_t visible = there ? Bits(at, FirstVisible(a, position[m][r]), end_of[m][r] - 1) : 0u;
            if (Mod::kHasMask && state == MaskState::kMixed) {
#pragma unroll
              for (int i = 0; i < 8; ++i) {
                if ((visible >> i & 1) == 0) continue;
                if (!a.mod.Mask(tile.chunk.seq, head[m][r], position[m][r], at + i)) visible &= ~(1u << i);
              }
              kept |= visible;
            }
#pragma unroll
            for (int i = 0; i < 8; ++i) {
              float& x = scores[m][i % 4][2 * r + i / 4];
              x = (visible >> i & 1) != 0 ? x : MinusInfinity();
            }
          }
        }
      }

      uint32_t weights[kTiles][2][4];  // A fragments of slots 8t + 4 half …
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        float most[2], shrink[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          most[r] = max[m][r];
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            const float x = scores[m][i % 4][2 * r + i / 4];
            most[r] = x > most[r] ? x : most[r];
          }
#pragma unroll
          for (int distance = 1; distance <= 2; distance *= 2) {
            const float other = simt::ShuffleXor(simt::kFullMask, most[r], distance);
            most[r] = other > most[r] ? other : most[r];
          }
          shrink[r] = most[r] > max[m][r] ? simt::Exp2((max[m][r] - most[r]) * scale) : 1.0f;
        }
        if (simt::Any(simt::kFullMask, most[0] > max[m][0] || most[1] > max[m][1])) {
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            max[m][r] = most[r];
            sum[m][r] *= shrink[r];
#pragma unroll
            for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
              for (int j = 0; j < 4; ++j) {
                acc[m][b][j][2 * r] *= shrink[r];
                acc[m][b][j][2 * r + 1] *= shrink[r];
              }
            }
          }
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          // Nothing seen yet: weights of 0, not of −inf + inf.
          const float shift = max[m][r] == MinusInfinity() ? 0.0f : -max[m][r] * scale;
          float x[8];
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            x[i] = simt::Exp2(simt::Fma(scores[m][i % 4][2 * r + i / 4], scale, shift));
            sum[m][r] += x[i];
          }
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            weights[m][half][r] = simt::PackPair<T>(x[4 * half], x[4 * half + 1]);
            weights[m][half][2 + r] = simt::PackPair<T>(x[4 * half + 2], x[4 * half + 3]);
          }
        }
      }

      // What no row of the warp sees may be anything: 0 · NaN would leak.
      if (Mod::kHasMask && state == MaskState::kMixed) {
#pragma unroll
        for (int distance = 4; distance < simt::kWarpSize; distance *= 2) {
          kept |= simt::ShuffleXor(simt::kFullMask, kept, distance);
        }
      }
      const uint32_t seen = whole ? 0xffu
                            : Mod::kHasMask && state == MaskState::kMixed ? kept
                            : there ? Bits(at, low_first, high_end - 1) : 0u;
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        uint32_t words[4][4];  // [slot pair 4t + i][channel 32b + 4g + j]
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const simt::U32x4 x = simt::Load<simt::U32x4>(&stage.v[4 * i + t][32 * b + 4 * g]);
          words[i][0] = x.x, words[i][1] = x.y, words[i][2] = x.z, words[i][3] = x.w;
        }
        if (!whole) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const uint32_t keep =
                ((seen >> (2 * i) & 1) != 0 ? 0xffffu : 0u) | ((seen >> (2 * i + 1) & 1) != 0 ? 0xffff0000u : 0u);
#pragma unroll
            for (int j = 0; j < 4; ++j) words[i][j] &= keep;
          }
        }
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            simt::MmaM16N8K16<T>(acc[m][b][j], weights[m][0], {words[0][j], words[1][j]});
            simt::MmaM16N8K16<T>(acc[m][b][j], weights[m][1], {words[2][j], words[3][j]});
          }
        }
      }
    }

    if (idle) return;
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float total = sum[m][r];
        total += simt::ShuffleXor(simt::kFullMask, total, 1);
        total += simt::ShuffleXor(simt::kFullMask, total, 2);
        const int row = warp_row + 16 * m + 8 * r + g;
        if (row >= tile.count) continue;
        const float share = total == 0 ? 0.0f : 1.0f / total;
        float* out = OutOf(a, tile, kv_head, row);
#pragma unroll
        for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            out[32 * b + 8 * t + j] = acc[m][b][j][2 * r] * share;
            out[32 * b + 8 * t + 4 + j] = acc[m][b][j][2 * r + 1] * share;
          }
        }
        if (t == 0) WriteLse(a, tile, kv_head, row, max[m][r] * scale, total);
      }
    }
  }
};

// f(kernel type) for this width, or `none`.
template <typename T, class Mod, typename R, typename F>
R VisitPrefillKernel(const PageFormat& f, R none, F visit) {
  switch (f.k_dim) {
    case 64: return visit(TensorPrefillKernel<T, 64, 2, Mod>{});
    case 96: return visit(TensorPrefillKernel<T, 96, 2, Mod>{});
    case 128: return visit(TensorPrefillKernel<T, 128, 2, Mod>{});
    case 256: return visit(TensorPrefillKernel<T, 256, 1, Mod>{});
    default: return none;
  }
}

inline void TensorPrefillConfig(const PageFormat& f, AttentionPrefillConfig* c) {
  c->tensor_cores = true;
  c->threads = TensorPrefillKernel<BF16, 64, 2, IdentityMod>::kThreads;
  c->tile_rows = VisitPrefillKernel<BF16, IdentityMod>(f, 0, [](auto kernel) { return kernel.kRows; });
  c->shared_bytes = VisitPrefillKernel<BF16, IdentityMod>(
      f, size_t{0}, [](auto kernel) { return sizeof(typename decltype(kernel)::Layout); });
}

template <class Mod>
Status LaunchTensorPrefill(Stream stream, const simt::LaunchShape& shape, const ModPrefillArgs<Mod>& a) {
  const auto launch = [&](auto kernel) { return simt::Launch<decltype(kernel)>(shape, stream, a); };
  const Status none = Internal("prefill attention: no tensor-core kernel for these sizes");
  const PageFormat& f = a.p.table.format;
  return f.dtype == DType::kBF16 ? VisitPrefillKernel<BF16, Mod>(f, none, launch)
                                 : VisitPrefillKernel<F16, Mod>(f, none, launch);
}

}  // namespace quire::cuda

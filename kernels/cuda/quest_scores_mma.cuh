// Page scores on tensor cores, for caches of 16 bits. A bound is a product: Σ_c max(q_c · min_c, q_c · max_c) is
// [q⁺ | q⁻] · [max; min], with q⁺ = max(q, 0) and q⁻ = min(q, 0): 2 k_dim channels by 16 pages for a metadata group. Queries are
// f32, metadata 16 bits: a query is three numbers of 16 bits whose sum is it to 24 bits (in f16 as far as its exponents go),
// rows of the A operand of their own, so scores are as good as the f32 kernel's (kernels/cuda/quest.cu).
//
// A warp takes a group of one (row, KV head) at a time, 8 KB at d 128, in slices of its minima and its maxima that are copied
// in the order of their addresses, kSlices of them under way; ldmatrix transposes them into B fragments.
//
// Bytes: rows * kv_heads * groups * 2 * k_dim * 16 * element size.
#pragma once

#include "kernels/cuda/page_scores.cuh"
#include "kernels/cuda/quest.h"
#include "kernels/cuda/scored_groups.cuh"
#include "kernels/cuda/simt.h"

namespace quire::cuda {

// T: cache; Q: query. kTiles: A operands: 1 takes four heads at once, 2 eight.
template <typename T, typename Q, int kTiles>
struct TensorQuestScoresKernel {
  struct Params {
    QuestParams p;
    QuestScoresConfig c;
  };
  static constexpr const char* kName = "quest_scores_tensor";
  static constexpr int kWarps = 4;
  static constexpr int kMaxThreads = kWarps * simt::kWarpSize;
  static constexpr int kMinBlocks = 3;
  static constexpr int kSlices = 4;
  static constexpr int kHeads = 4 * kTiles;
  static_assert(sizeof(T) == 2);

  // Shared memory: A fragments [half][k_dim / 16][kTiles][lane][4 words], then rings [warp][slice][k_dim][8 words].
  QUIRE_DEVICE static uint32_t* Fragment(uint32_t* a, int k_dim, int half, int step, int tile) {
    return a + (((half * (k_dim / 16) + step) * kTiles + tile) * simt::kWarpSize + simt::Lane()) * 4;
  }
  static size_t Bytes(int k_dim) {
    return sizeof(uint32_t) * (size_t{2} * k_dim / 16 * kTiles * simt::kWarpSize * 4 + size_t{kWarps} * kSlices * k_dim * 8);
  }

  // Rows of the A operands: head h's three parts are rows h, h + kHeads and h + 2 kHeads, sixteen to a tile.

  // The queries of a group, at most kHeads, into A fragments: a thread takes two channels of a head at a time.
  QUIRE_DEVICE static void WriteFragments(const Q* q, int heads, int k_dim, uint32_t* a) {
    // Rows without a head or a part of one are zeros.
    for (int i = simt::ThreadIndex(); i < k_dim * kTiles * 16; i += simt::BlockThreads()) a[i] = 0;
    simt::SyncThreads();
    for (int head = simt::Warp(); head < heads; head += simt::BlockThreads() / simt::kWarpSize) {
      for (int pair = simt::Lane(); pair < k_dim / 2; pair += simt::kWarpSize) {
        const Q* at = q + int64_t{head} * k_dim + pair * 2;
        const float x = simt::ToFloat(at[0]), y = simt::ToFloat(at[1]);
        // Where channels 2 · pair and the next lie: step, lane's t and word.
        const int step = pair / 8, t = pair % 4, high = pair / 4 % 2;
#pragma unroll
        for (int half = 0; half < 2; ++half) {  // q⁻ for the minima, q⁺ for the maxima
          float u = (x < 0) == (half == 1) ? 0.0f : x, v = (y < 0) == (half == 1) ? 0.0f : y;
#pragma unroll
          for (int part = 0; part < 3; ++part) {
            const int row = head + part * kHeads, tile = row / 16, r = row % 16;
            const uint32_t word = simt::PackPair<T>(u, v);
            a[(((half * (k_dim / 16) + step) * kTiles + tile) * simt::kWarpSize + r % 8 * 4 + t) * 4 + high * 2 + r / 8] = word;
            u -= simt::LowFloat<T>(word);
            v -= simt::HighFloat<T>(word);
          }
        }
      }
    }
  }

  // Channels of a half (minima or maxima), swizzled: 16 bytes (eight pages) of a row change places in every second four.
  QUIRE_DEVICE static uint32_t* Place(uint32_t* slice, int channel, int octet) {
    return slice + channel * 8 + (octet ^ (channel / 4 & 1)) * 4;
  }
  QUIRE_DEVICE static void Fetch(const T* half, int k_dim, uint32_t* slice) {
    for (int at = simt::Lane(); at < k_dim * 2; at += simt::kWarpSize) {
      simt::CpAsync<16>(Place(slice, at / 2, at % 2), half + int64_t{at} * 8);
    }
  }

  QUIRE_DEVICE static void Run(const Params& params) {
    const QuestParams& p = params.p;
    const QuestScoresConfig& config = params.c;
    const PageFormat& f = p.table.format;
    const int kv_head = simt::BlockX(), row = simt::BlockZ(), k_dim = f.k_dim, steps = k_dim / 16;
    const ScoredGroups scored = ScoredGroups::Create(p, row, kv_head);
    const int begin = scored.first + simt::BlockY() * config.warps * config.groups_per_warp;
    if (begin >= scored.last) return;
    const int end = begin + config.warps * config.groups_per_warp < scored.last ? begin + config.warps * config.groups_per_warp
                                                                                 : scored.last;
    const int heads = p.q_heads / f.kv_heads, warp = simt::Warp();
    uint32_t* fragments = reinterpret_cast<uint32_t*>(simt::SharedBytes());
    uint32_t* ring = fragments + 2 * steps * kTiles * simt::kWarpSize * 4 + warp * kSlices * k_dim * 8;
    const int mine = begin + warp < end ? (end - begin - warp + config.warps - 1) / config.warps : 0;  // groups of this warp
    // Group n of this warp; −1 past the last one and where a window has freed it. Looked up one group ahead.
    const auto id_of = [&](int n) { return n < mine ? scored.Id(begin + warp + n * config.warps) : -1; };
    // Slice 2n: minima of the warp's n-th group, 2n + 1: its maxima.
    const auto fetch = [&](int slice, int id) {
      if (id >= 0) {
        const T* group = static_cast<const T*>(p.pages.meta) + id * f.meta_group_stride + kv_head * f.meta_head_stride;
        Fetch(group + slice % 2 * int64_t{k_dim} * kPagesPerGroup, k_dim, ring + slice % kSlices * k_dim * 8);
      }
      simt::CpAsyncCommit();
    };
    static_assert(kSlices == 4);
    int id = id_of(0), next = id_of(1);
    fetch(0, id);
    fetch(1, id);
    fetch(2, next);

    const Q* q = static_cast<const Q*>(p.q) + row * p.q_stride + int64_t{kv_head} * heads * k_dim;
    WriteFragments(q, heads, k_dim, fragments);
    simt::SyncThreads();
    const bool is_max = p.reduce == GroupReduce::kMax;
    const int g = simt::Lane() / 4, t = simt::Lane() % 4;
    for (int n = 0; n < mine; ++n) {
      const int after = id_of(n + 2);
      float acc[kTiles][2][4];  // [tile][pages 8 …][fragment]
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int r = 0; r < 4; ++r) acc[tile][0][r] = acc[tile][1][r] = 0;
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        simt::CpAsyncWait<kSlices - 2>();
        simt::SyncWarp();
        uint32_t* slice = ring + (2 * n + half) % kSlices * k_dim * 8;
        if (id >= 0) {
#pragma unroll 4
          for (int step = 0; step < steps; ++step) {
            // Matrices: channels 0 … 7 and 8 … 15 of the step, for the first eight pages and the other eight.
            uint32_t b[4];
            simt::LdMatrixTranspose<4>(b, Place(slice, step * 16 + simt::Lane() % 16, simt::Lane() / 16));
#pragma unroll
            for (int tile = 0; tile < kTiles; ++tile) {
              const simt::U32x4 x = simt::Load<simt::U32x4>(Fragment(fragments, k_dim, half, step, tile));
              const uint32_t a[4] = {x.x, x.y, x.z, x.w};
              simt::MmaM16N8K16<T>(acc[tile][0], a, {b[0], b[1]});
              simt::MmaM16N8K16<T>(acc[tile][1], a, {b[2], b[3]});
            }
          }
        }
        fetch(2 * n + half + kSlices - 1, half == 0 ? next : after);  // into the slice before this one
      }
      float* out = p.scores + (int64_t{row} * f.kv_heads + kv_head) * p.max_groups * kPagesPerGroup +
                   int64_t{begin + warp + n * config.warps} * kPagesPerGroup;
      const float share = HeadShare(p.reduce, heads);
#pragma unroll
      for (int octet = 0; octet < 2; ++octet) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          // The parts of head g % kHeads, smallest first: of four heads in rows g, g + 4 and g + 8; of eight in g and g + 8 and
          // in the second tile's g.
          float x;
          if constexpr (kTiles == 1) {
            const float middle = simt::ShuffleXor(simt::kFullMask, acc[0][octet][i], 16);
            x = acc[0][octet][2 + i] + middle + acc[0][octet][i];
          } else {
            x = acc[1][octet][i] + acc[0][octet][2 + i] + acc[0][octet][i];
          }
          if (g % kHeads >= heads) x = is_max ? -__builtin_huge_valf() : 0.0f;
#pragma unroll
          for (int bit = 4; bit < 4 * kHeads; bit *= 2) {
            const float other = simt::ShuffleXor(simt::kFullMask, x, bit);
            x = is_max ? MaxOrNan(x, other) : x + other;
          }
          if (g == 0) out[octet * 8 + 2 * t + i] = id < 0 ? simt::BitsFloat(0x7fc00000u) : x * share;
        }
      }
      id = next;
      next = after;
    }
    simt::CpAsyncWait<0>();
  }
};

}  // namespace quire::cuda

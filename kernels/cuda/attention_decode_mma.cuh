// Decode attention on tensor cores, for groups of four query heads and more over bf16 and f16 pages whose size 8 divides.
//
// A warp takes tiles of 32 slots of the chunk, every fourth one. With g = lane / 4 and t = lane % 4 a lane reads from shared
// memory, 16 bytes at a time, the K words of slots 4g … 4g + 3 for channel pairs t and t + 4 of each 16 channels: word j is
// the B fragment of the product with column g = slot 4g + j. What comes out, lane by lane, is slots 8t … 8t + 7 of head g; and
// those, two by two, are the A fragment of the second product when V's words of slot pairs 4t … 4t + 3 are its B fragment: the
// pages' words are used as they lie, and neither operand moves between lanes.
//
// q and the weights are f32: rows 0 … 7 of the A operand are eight heads rounded to the cache's type, rows 8 … 15 what the
// rounding left, and both halves of the result lie in one lane. So a pass of eight heads costs one product, as one with
// half-empty tiles would.
//
// Tiles of K and of V come in turn, by cp.async: kSlices of them are under way a warp and no barrier but the warp's own is
// needed. A page's block of K or V is copied in the order of its addresses, 512 bytes by an instruction: read in smaller
// pieces here and there, as the fragments want it, DRAM gives half of its rate (H200). Places in shared memory are swizzled by 16
// bytes, so that fragments are read without bank conflicts. Warps keep their own maxima and sums and meet once, in order, at the
// chunk's end.
#pragma once

#include "kernels/cuda/decode_list.cuh"

namespace quire::cuda {

// kDim: of K and V. kTiles: A operands of eight heads by one block.
template <typename T, int kDim, int kTiles, class Mod>
struct TensorDecodeKernel {
  using Params = ModDecodeArgs<Mod>;
  static constexpr const char* kName = "decode_tensor";
  static constexpr int kWarps = 4;
  static constexpr int kTile = 32;
  static constexpr int kMaxThreads = kWarps * simt::kWarpSize;
  static constexpr int kMinBlocks = kDim >= 256 ? 1 : 2;
  static constexpr int kHeads = 8 * kTiles;
  static constexpr int kLoads = kDim / 8;                      // of 16 bytes by a lane for a tile of K or V
  static constexpr int kSlices = kDim >= 256 ? 2 : 3;          // ring of K and V tiles of a warp
  static constexpr int kSliceWords = kLoads * simt::kWarpSize * 4;
  static constexpr int kSteps = kDim / 16;                     // of the first product
  static constexpr int kBlocks = kDim / 32;                    // of 32 channels of V
  struct Layout {
    uint32_t q[kTiles][kSteps][simt::kWarpSize][4];            // A fragments of the query
    uint32_t ring[kWarps][kSlices][kSliceWords];               // and at the end [warp][head][channel] sums
    float stats[kWarps][kHeads][2];
    bool last;                                                 // this block is the last of its list
  };
  static_assert(kSlices * kSliceWords >= kHeads * kDim);

  // The query heads of this block.
  struct Heads {
    int seq, first, count;
  };

  // The eight slots of the tile that lane t = Lane() % 4 judges: 8t … 8t + 7. A page has whole ones only.
  struct Octet {
    int id;            // physical page, −1 for none and for one that the mask leaves nothing of
    int slot;          // of the first one in its page
    int pos;           // its position
    uint32_t visible;  // bit i: the slot at pos + i counts
  };

  QUIRE_DEVICE static Octet Find(const Params& a, const PageList& list, const ListChunk& c, const Heads& heads, int tile) {
    Octet o{-1, 0, 0, 0};
    const int i = tile * kTile + simt::Lane() % 4 * 8;
    if (c.begin + i >= c.end) return o;
    const int e = PageOfSlot(a, c.offset + i);
    o.slot = c.offset + i - e * a.page_slots;
    const int entry = c.first_entry + e, page = list.Page(entry);
    o.pos = page * a.page_slots + o.slot;
    if (Mod::kHasMask && PageState(a, list, heads.seq, heads.first, heads.count, page) == MaskState::kMasked) return o;
    o.id = list.ids[page];
    const int low = list.first_pos - o.pos, high = list.length - o.pos;
    if (o.id < 0 || low >= 8 || high <= 0) return o;
    o.visible = high >= 8 ? 0xffu : (1u << high) - 1;
    if (low > 0) o.visible &= 0xffu << low;
    if (list.mask != nullptr) {
      o.visible &= static_cast<uint32_t>(list.mask[int64_t{entry} * list.mask_words + o.slot / 64] >> (o.slot % 64));
    }
    return o;
  }

  // K in shared memory: [channel pair][quad of slots, swizzled][4 words].
  QUIRE_DEVICE static uint32_t* KPlace(uint32_t* slice, int pair, int quad) {
    return slice + pair * kTile + (quad ^ pair % 4 * 2) * 4;
  }
  // V: [slot pair][quad of channels, swizzled][4 words].
  QUIRE_DEVICE static uint32_t* VPlace(uint32_t* slice, int pair, int quad) {
    return slice + pair * kDim + (quad ^ pair / 4 % 4 * 2) * 4;
  }

  // kQuads: of a row of K's words that certainly lie side by side, in one page: 2, 4 or 8.
  template <int kQuads>
  QUIRE_DEVICE static void LoadK(const Params& a, const Octet& octet, int kv_head, uint32_t* slice) {
    const PageFormat& f = a.p.table.format;
    constexpr int kPairs = simt::kWarpSize / kQuads;  // rows of an instruction
    // Rows in an order in which eight lanes write to all banks: of four rows 0, 2, 1, 3.
    const int row = simt::Lane() / kQuads, quad = simt::Lane() % kQuads;
    const int pair = kQuads == 4 ? (row & ~3) | (row & 1) << 1 | (row >> 1 & 1) : row;
#pragma unroll
    for (int part = 0; part < 8 / kQuads; ++part) {
      const int id = simt::ShuffleIndex(simt::kFullMask, octet.id, part * kQuads / 2);
      const int slot = simt::ShuffleIndex(simt::kFullMask, octet.slot, part * kQuads / 2);
      const bool there = id >= 0;
      const uint32_t* k = static_cast<const uint32_t*>(a.p.pages.k) +
                          (there ? (id * f.k_page_stride + kv_head * f.k_head_stride) / 2 + int64_t{pair} * f.page_size + slot +
                                       quad * 4
                                 : 0);
      const int64_t step = there ? int64_t{kPairs} * f.page_size : 0;
#pragma unroll
      for (int i = 0; i < kDim / 2 / kPairs; ++i) {
        simt::CpAsyncOrZero<16>(KPlace(slice, pair + i * kPairs, part * kQuads + quad), k, there);
        k += step;
      }
    }
  }

  QUIRE_DEVICE static void LoadV(const Params& a, const Octet& octet, int kv_head, uint32_t* slice) {
    const PageFormat& f = a.p.table.format;
    constexpr int kQuads = kDim / 4;  // of a slot pair
#pragma unroll
    for (int part = 0; part < 4; ++part) {  // octets: four slot pairs each
      const int id = simt::ShuffleIndex(simt::kFullMask, octet.id, part);
      const int slot = simt::ShuffleIndex(simt::kFullMask, octet.slot, part);
      const bool there = id >= 0;
      const uint32_t* v = static_cast<const uint32_t*>(a.p.pages.v) +
                          (there ? (id * f.v_page_stride + kv_head * f.v_head_stride) / 2 + int64_t{slot / 2} * kDim : 0);
#pragma unroll
      for (int i = 0; i < kQuads * 4 / simt::kWarpSize; ++i) {
        const int at = i * simt::kWarpSize + simt::Lane();
        simt::CpAsyncOrZero<16>(VPlace(slice, part * 4 + at / kQuads, at % kQuads), v + (there ? at * 4 : 0), there);
      }
    }
  }

  // x in two parts of type T: x rounded, and what that left.
  QUIRE_DEVICE static void Split(float x, float y, uint32_t* high, uint32_t* low) {
    *high = simt::PackPair<T>(x, y);
    *low = simt::PackPair<T>(x - simt::LowFloat<T>(*high), y - simt::HighFloat<T>(*high));
  }

  QUIRE_DEVICE static void Run(const Params& a) {
    auto& s = simt::Shared<Layout>();
    const AttentionDecodeParams& p = a.p;
    const PageFormat& f = p.table.format;
    const int kv_head = simt::BlockX() / a.c.passes, chunk = simt::BlockY(), row = simt::BlockZ();
    const int group = p.q_heads / f.kv_heads, first_head = simt::BlockX() % a.c.passes * kHeads;
    const int heads = first_head + kHeads < group ? kHeads : group - first_head;
    const PageList list = ListOf(a, row, kv_head);
    const ListChunk c = ChunkOf(a, list, chunk);
    if (list.count > a.most_pages) {
      if (chunk == 0) RefuseRow(a, row, kv_head * group + first_head, heads);
      return;
    }
    if (chunk >= c.chunks && !a.c.direct) {
      if (c.chunks == 0 && chunk == 0 && a.counters != nullptr) EmptyRow(a, row, kv_head * group + first_head, heads);
      return;
    }

    const int warp = simt::Warp(), lane = simt::Lane(), g = lane / 4, t = lane % 4;
    const Heads mine_heads{p.row_seq[row], kv_head * group + first_head, heads};
    const int tiles = list.count == 0 ? 0 : (c.end - c.begin + kTile - 1) / kTile;
    const int mine = tiles > warp ? (tiles - warp + kWarps - 1) / kWarps : 0;  // tiles of this warp
    // Slice 2n is K of the n-th tile, 2n + 1 its V.
    const auto fetch = [&](int slice, const Octet& octet) {
      if (slice < 2 * mine) {
        uint32_t* to = s.ring[warp][slice % kSlices];
        if (slice % 2 == 1) {
          LoadV(a, octet, kv_head, to);
        } else if (f.page_size % 32 == 0) {
          LoadK<8>(a, octet, kv_head, to);
        } else if (f.page_size % 16 == 0) {
          LoadK<4>(a, octet, kv_head, to);
        } else {
          LoadK<2>(a, octet, kv_head, to);
        }
      }
      simt::CpAsyncCommit();
    };
    Octet octet = Find(a, list, c, mine_heads, warp);
#pragma unroll
    for (int i = 0; i < kSlices - 1; ++i) fetch(i, octet);

    const float* q = p.q + row * p.q_stride + (int64_t{kv_head} * group + first_head) * kDim;
    for (int i = simt::ThreadIndex(); i < kTiles * kSteps * simt::kWarpSize * 2; i += kMaxThreads) {
      const int half = i % 2, to = i / 2 % simt::kWarpSize, step = i / 2 / simt::kWarpSize % kSteps;
      const int tile = i / 2 / simt::kWarpSize / kSteps, h = tile * 8 + to / 4;
      float x = 0, y = 0;
      if (h < heads) {
        const float* at = q + h * kDim + step * 16 + half * 8 + to % 4 * 2;
        const float factor = Mod::kHasScore ? p.scale : p.scale * kLog2E;  // a score functor wants scores as they are
        x = at[0] * factor;
        y = at[1] * factor;
      }
      Split(x, y, &s.q[tile][step][to][2 * half], &s.q[tile][step][to][2 * half + 1]);
    }
    simt::SyncThreads();

    float acc[kTiles][kBlocks][4][4];  // [..][32 channels][word j][fragment]
    float max[kTiles], sum[kTiles];
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      max[m] = MinusInfinity();
      sum[m] = 0;
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
        for (int j = 0; j < 4; ++j) acc[m][b][j][0] = acc[m][b][j][1] = acc[m][b][j][2] = acc[m][b][j][3] = 0;
      }
    }
    for (int n = 0; n < mine; ++n) {
      const Octet now = octet;
      octet = Find(a, list, c, mine_heads, warp + (n + 1) * kWarps);
      uint32_t any = Mod::kHasMask ? 0u : now.visible;  // bit i: some head sees slot 8t + i
      float scores[kTiles][4][4];
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
#pragma unroll
        for (int j = 0; j < 4; ++j) scores[m][j][0] = scores[m][j][1] = scores[m][j][2] = scores[m][j][3] = 0;
      }
      simt::CpAsyncWait<kSlices - 2>();
      simt::SyncWarp();
      uint32_t* k = s.ring[warp][2 * n % kSlices];
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const simt::U32x4 k0 = simt::Load<simt::U32x4>(KPlace(k, 8 * step + t, g));
        const simt::U32x4 k1 = simt::Load<simt::U32x4>(KPlace(k, 8 * step + 4 + t, g));
        const uint32_t low[4] = {k0.x, k0.y, k0.z, k0.w}, high[4] = {k1.x, k1.y, k1.z, k1.w};
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
          const simt::U32x4 x = simt::Load<simt::U32x4>(s.q[m][step][lane]);
          const uint32_t qa[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
          for (int j = 0; j < 4; ++j) simt::MmaM16N8K16<T>(scores[m][j], qa, {low[j], high[j]});
        }
      }
      // Its place is that of the slice before this one, which all lanes have read.
      fetch(2 * n + kSlices - 1, kSlices == 2 ? now : octet);

      // [..][i]: slot 8t + i of head g; then its weight, in two parts as A fragments.
      uint32_t weights[kTiles][2][4];
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        float x[8];
        float most = MinusInfinity();
        uint32_t seen = now.visible;  // by this lane's head
        if constexpr (Mod::kHasMask) {
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            if (m * 8 + g >= heads || ((now.visible >> i & 1) != 0 && !a.mod.Mask(mine_heads.seq, mine_heads.first + m * 8 + g,
                                                                             list.length - 1, now.pos + i))) {
              seen &= ~(1u << i);
            }
          }
          any |= seen;
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          float score = scores[m][i % 4][i / 4] + scores[m][i % 4][i / 4 + 2];
          if constexpr (Mod::kHasScore) {
            if (m * 8 + g < heads && (seen >> i & 1) != 0) {
              score = a.mod.Score(score, mine_heads.seq, mine_heads.first + m * 8 + g, list.length - 1, now.pos + i) * kLog2E;
            }
          }
          x[i] = (seen >> i & 1) != 0 ? score : MinusInfinity();
          most = x[i] > most ? x[i] : most;
        }
        float other = simt::ShuffleXor(simt::kFullMask, most, 1);
        most = other > most ? other : most;
        other = simt::ShuffleXor(simt::kFullMask, most, 2);
        most = other > most ? other : most;
        const bool grows = most > max[m];
        if (simt::Any(simt::kFullMask, grows)) {
          const float shrink = !grows ? 1.0f : max[m] == MinusInfinity() ? 0.0f : simt::Exp2(max[m] - most);
          max[m] = grows ? most : max[m];
          sum[m] *= shrink;
#pragma unroll
          for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
#pragma unroll
              for (int r = 0; r < 4; ++r) acc[m][b][j][r] *= shrink;
            }
          }
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          x[i] = (seen >> i & 1) != 0 && (!Mod::kHasScore || x[i] != MinusInfinity()) ? simt::Exp2(x[i] - max[m]) : 0.0f;
          sum[m] += x[i];
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          Split(x[4 * half], x[4 * half + 1], &weights[m][half][0], &weights[m][half][1]);
          Split(x[4 * half + 2], x[4 * half + 3], &weights[m][half][2], &weights[m][half][3]);
        }
      }

      simt::CpAsyncWait<kSlices - 2>();
      simt::SyncWarp();
      uint32_t* v = s.ring[warp][(2 * n + 1) % kSlices];
      if constexpr (Mod::kHasMask) {
#pragma unroll
        for (int distance = 4; distance < simt::kWarpSize; distance *= 2) {
          any |= simt::ShuffleXor(simt::kFullMask, any, distance);
        }
      }
      const bool whole = simt::All(simt::kFullMask, any == 0xffu);
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        uint32_t words[4][4];  // [slot pair 4t + i][channel 32b + 4g + j]
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const simt::U32x4 x = simt::Load<simt::U32x4>(VPlace(v, 4 * t + i, 8 * b + g));
          words[i][0] = x.x, words[i][1] = x.y, words[i][2] = x.z, words[i][3] = x.w;
        }
        if (!whole) {
          // What does not count may be anything: 0 · NaN would leak.
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const uint32_t keep = ((any >> (2 * i) & 1) != 0 ? 0xffffu : 0u) | ((any >> (2 * i + 1) & 1) != 0 ? 0xffff0000u : 0u);
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
      fetch(2 * n + kSlices, octet);
    }
    simt::CpAsyncWait<0>();

    // Each warp's sums to its own ring: [head][channel].
    float* sums = reinterpret_cast<float*>(s.ring[warp]);
    simt::SyncWarp();
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      sum[m] += simt::ShuffleXor(simt::kFullMask, sum[m], 1);
      sum[m] += simt::ShuffleXor(simt::kFullMask, sum[m], 2);
      if (t == 0) {
        s.stats[warp][m * 8 + g][0] = max[m];
        s.stats[warp][m * 8 + g][1] = sum[m];
      }
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          float* to = sums + (m * 8 + g) * kDim + 32 * b + 8 * t + j;
          to[0] = acc[m][b][j][0] + acc[m][b][j][2];
          to[4] = acc[m][b][j][1] + acc[m][b][j][3];
        }
      }
    }
    simt::SyncThreads();

    float* record = a.c.direct ? nullptr : RecordOf(a, row, kv_head, chunk);
    for (int i = simt::ThreadIndex(); i < heads * kDim; i += kMaxThreads) {
      const int h = i / kDim, channel = i % kDim;
      float most = MinusInfinity();
#pragma unroll
      for (int w = 0; w < kWarps; ++w) most = s.stats[w][h][0] > most ? s.stats[w][h][0] : most;
      float value = 0, total = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const float share = s.stats[w][h][0] == MinusInfinity() ? 1.0f : simt::Exp2(s.stats[w][h][0] - most);
        value = simt::Fma(share, reinterpret_cast<const float*>(s.ring[w])[i], value);
        total = simt::Fma(share, s.stats[w][h][1], total);
      }
      if (a.c.direct) {
        WriteOut(a, row, kv_head * group + first_head + h, channel, value, total);
        if (channel == 0) WriteLse(a, row, kv_head * group + first_head + h, most, total);
      } else {
        record[group * 2 + (first_head + h) * kDim + channel] = value;
        if (channel == 0) {
          record[(first_head + h) * 2] = most;
          record[(first_head + h) * 2 + 1] = total;
        }
      }
    }
    if (a.c.direct || a.counters == nullptr) return;
    // The block that finds all others of its list done merges them.
    simt::ThreadFence();
    simt::SyncThreads();
    if (simt::ThreadIndex() == 0) {
      int32_t* counter = a.counters + (int64_t{row} * f.kv_heads + kv_head) * a.c.passes + first_head / kHeads;
      s.last = simt::AtomicAdd(counter, 1) == c.chunks - 1;
      if (s.last) *counter = 0;
    }
    simt::SyncThreads();
    if (!s.last) return;
    simt::ThreadFence();
    for (int h = warp; h < heads; h += kWarps) MergeHead(a, row, kv_head * group + first_head + h, c.chunks);
  }

  // The chunks of a head into one, by a warp; bits as MergeDecodeKernel's.
  QUIRE_DEVICE static void MergeHead(const Params& a, int row, int head, int chunks) {
    const int group = a.p.q_heads / a.p.table.format.kv_heads, kv_head = head / group, lane = simt::Lane();
    const float* first = RecordOf(a, row, kv_head, 0);
    const float* stats = first + head % group * 2;
    const float* sums = first + group * 2 + head % group * kDim;
    float max = MinusInfinity();
    for (int i = lane; i < chunks; i += simt::kWarpSize) {
      const float x = stats[i * a.c.record_floats];
      max = x > max ? x : max;
    }
    max = simt::WarpMax(max);
    constexpr int kOwn = (kDim + 127) / 128;  // four channels each
    float acc[kOwn][4] = {}, sum = 0;
    for (int from = 0; from < chunks; from += simt::kWarpSize) {
      const int n = chunks - from < simt::kWarpSize ? chunks - from : simt::kWarpSize;
      float weight = 0, total = 0;
      if (lane < n) {
        const float* at = stats + (from + lane) * a.c.record_floats;
        weight = at[0] == MinusInfinity() ? 0.0f : simt::Exp2(at[0] - max);
        total = at[1];
      }
#pragma unroll 4
      for (int i = 0; i < n; ++i) {
        const float w = simt::ShuffleIndex(simt::kFullMask, weight, i);
        sum = simt::Fma(w, simt::ShuffleIndex(simt::kFullMask, total, i), sum);
#pragma unroll
        for (int own = 0; own < kOwn; ++own) {
          const int channel = own * 128 + lane * 4;
          if (channel >= kDim) continue;
          const float* x = sums + (from + i) * a.c.record_floats + channel;
#pragma unroll
          for (int j = 0; j < 4; ++j) acc[own][j] = simt::Fma(w, x[j], acc[own][j]);
        }
      }
    }
#pragma unroll
    for (int own = 0; own < kOwn; ++own) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int channel = own * 128 + lane * 4 + j;
        if (channel < kDim) WriteOut(a, row, head, channel, acc[own][j], sum);
      }
    }
    if (lane == 0) WriteLse(a, row, head, max, sum);
  }
};

// f(kernel type) for these sizes, or `none`.
template <typename T, int kDim, class Mod, typename F, typename R>
R VisitDecodeTiles(int tiles, F& f) {
  if constexpr (kDim < 256) {
    if (tiles == 2) return f(TensorDecodeKernel<T, kDim, 2, Mod>{});
  }
  return f(TensorDecodeKernel<T, kDim, 1, Mod>{});
}
template <typename T, class Mod, typename R, typename F>
R VisitDecodeKernel(const PageFormat& f, int tiles, R none, F visit) {
  switch (f.k_dim) {
    case 64: return VisitDecodeTiles<T, 64, Mod, F, R>(tiles, visit);
    case 96: return VisitDecodeTiles<T, 96, Mod, F, R>(tiles, visit);
    case 128: return VisitDecodeTiles<T, 128, Mod, F, R>(tiles, visit);
    case 256: return VisitDecodeTiles<T, 256, Mod, F, R>(tiles, visit);
    default: return none;
  }
}

inline void TensorDecodeConfig(const PageFormat& f, int group, AttentionDecodeConfig* c) {
  const int tiles = group > 8 && f.k_dim < 256 ? 2 : 1;
  c->tensor_cores = true;
  c->heads_per_pass = 8 * tiles;
  c->passes = (group + c->heads_per_pass - 1) / c->heads_per_pass;
  c->threads = TensorDecodeKernel<BF16, 64, 1, PlainMod>::kMaxThreads;
  c->shared_bytes = VisitDecodeKernel<BF16, PlainMod>(
      f, tiles, size_t{0}, [](auto kernel) { return sizeof(typename decltype(kernel)::Layout); });
}

template <class Mod>
Status LaunchTensorDecode(Stream stream, const ModDecodeArgs<Mod>& a) {
  const PageFormat& f = a.p.table.format;
  const auto launch = [&](auto kernel) {
    return simt::Launch<decltype(kernel)>(DecodeShape(a), stream, a);
  };
  const Status none = Internal("decode attention: no tensor-core kernel for these sizes");
  const int tiles = a.c.heads_per_pass / 8;
  return f.dtype == DType::kBF16 ? VisitDecodeKernel<BF16, Mod>(f, tiles, none, launch)
                                 : VisitDecodeKernel<F16, Mod>(f, tiles, none, launch);
}

}  // namespace quire::cuda

// Prefill attention on tensor cores, after FlashAttention-2 (Dao, arXiv 2307.08691), for bf16 and f16 pages whose size
// 8 divides.
//
// A block of four warps takes kRows (token, head) pairs of a KV head, a warp 16 · kTiles of them: what it reads of K and
// V serves kTiles products. Keys come in blocks of kKeys; K and V of a block are slices that take turns in a ring of
// three in shared memory: while one is used, the next two are under way by cp.async, and one barrier a slice orders
// both. Scores, weights and results stay in registers.
//
// A word of K holds two channels of a slot, a word of V two slots of a channel: with lanes numbered g = lane / 4 and
// t = lane % 4 the word of column g and contraction pair t is half of a B fragment, so fragments are read word by word
// where the pages' words lie, without a move between registers, and the first product's results, two by two, are the
// second one's A fragment. A warp copies 8 or 16 slots of a page in the order of their addresses, 16 bytes a lane;
// places in shared memory are swizzled by 32 bytes so that neither copies nor reads meet a bank twice.
//
// A warp skips key blocks that none of its rows sees, and looks at single keys only in blocks that not all of its rows
// see whole. Keys that no row of the block of threads sees have a V of zeros: 0 · NaN would leak.
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
  static constexpr int kWarpRows = 16 * kTiles, kRows = kWarps * kWarpRows;
  static constexpr int kKeys = kDim > 128 ? 32 : 64;       // of a block of keys
  static constexpr int kOctets = kKeys / 8 / kWarps;       // of slots, that a warp fetches of a block: 1 or 2
  static constexpr int kSteps = kDim / 16;                 // of the first product
  static constexpr int kColumns = kDim / 8;                // B fragments of V over its channels
  static constexpr int kRing = 3;
  static constexpr int kSliceWords = kKeys * kDim / 2;
  struct Layout {
    uint32_t q[kWarps * kTiles][kSteps][simt::kWarpSize][4];  // A fragments of the queries
    uint32_t ring[kRing][kSliceWords];                        // slice 2n is K of the n-th block of keys, 2n + 1 its V
    int32_t positions[kRows];                                 // of a warp without rows: −1
    PrefillTile tile;                                         // with kv_head, for the end: registers are scarce
    int kv_head;
    uint8_t there[kRing][kWarps];  // of K at this place of the ring, by who copied: bit i, octet i lies in a page
  };

  // The octets of slots that this warp fetches of a block of keys: kOctets from position `pos` on. Entry `page` of the
  // sequence's table has the first, from `slot` on.
  struct Cursor {
    int pos, page, slot;
  };
  // Their physical pages; −1: none, or nobody here sees it.
  struct Pages {
    int id[kOctets];
  };
  // The keys that some row of the tile may see: [low, end).
  struct Seen {
    int low, end;
  };

  // Octet i of the cursor's: whether it lies a page on (at most one, for 8 divides a page), and from which slot on.
  QUIRE_DEVICE static bool NextPage(const Params& a, const Cursor& c, int i) {
    return c.slot + 8 * i >= a.p.table.format.page_size;
  }
  QUIRE_DEVICE static int SlotOf(const Params& a, const Cursor& c, int i) {
    return c.slot + 8 * i - (NextPage(a, c, i) ? a.p.table.format.page_size : 0);
  }
  QUIRE_DEVICE static Pages Find(const Params& a, const int32_t* ids, const Cursor& c, const Seen& seen) {
    Pages pages;
#pragma unroll
    for (int i = 0; i < kOctets; ++i) {
      const int pos = c.pos + 8 * i;
      pages.id[i] = pos + 8 > seen.low && pos < seen.end
                        ? simt::LoadReadOnly<int32_t>(ids + c.page + NextPage(a, c, i))
                        : -1;
    }
    return pages;
  }
  QUIRE_DEVICE static void Advance(const Params& a, Cursor* c) {
    c->pos += kKeys;
    const int slot = c->slot + kKeys, pages = DivideByMagic(slot, a.page_magic);
    c->page += pages;
    c->slot = slot - pages * a.p.table.format.page_size;
  }

  // K in shared memory: [channel pair][slot], V: [slot pair][channel], octets of words swizzled.
  QUIRE_DEVICE static uint32_t* KPlace(uint32_t* slice, int pair, int slot) {
    return slice + pair * kKeys + (slot ^ pair / 2 % 4 * 8);
  }
  QUIRE_DEVICE static uint32_t* VPlace(uint32_t* slice, int pair, int channel) {
    return slice + pair * kDim + (channel ^ pair % 4 * 8);
  }

  QUIRE_DEVICE static void FetchK(const Params& a, const Cursor& c, const Pages& pages, int kv_head, uint32_t* slice,
                                  uint8_t* there_of) {
    const PageFormat& f = a.p.table.format;
    constexpr int kQuads = 2 * kOctets, kPairs = simt::kWarpSize / kQuads;  // by an instruction
    const int row = simt::Lane() / kQuads, quad = simt::Lane() % kQuads;
    // Rows in an order in which eight lanes write to all banks.
    const int pair = kQuads == 4 ? row / 2 % 4 + row % 2 * 4 : row % 4 * 2 + row / 4 % 2 + row / 8 * 8;
    const int id = quad < 2 ? pages.id[0] : pages.id[kOctets - 1], slot = SlotOf(a, c, quad / 2);
    const bool there = id >= 0;
    if (simt::Lane() == 0) {
      there_of[simt::Warp()] = (pages.id[0] >= 0 ? 1 : 0) | (pages.id[kOctets - 1] >= 0 ? kOctets : 0);
    }
    const uint32_t* k = static_cast<const uint32_t*>(a.p.pages.k) +
                        ((there ? id : 0) * f.k_page_stride + kv_head * f.k_head_stride) / 2 +
                        int64_t{pair} * f.page_size + slot + quad % 2 * 4;
    const int64_t step = int64_t{kPairs} * f.page_size;
    uint32_t* to = KPlace(slice, pair, (simt::Warp() * kQuads + quad) * 4);  // rows kPairs apart have the same swizzle
#pragma unroll
    for (int i = 0; i < kDim / 2 / kPairs; ++i) {
      simt::CpAsyncOrZero<16>(to + i * kPairs * kKeys, k, there);
      k += step;
    }
  }

  QUIRE_DEVICE static void FetchV(const Params& a, const Cursor& c, const Pages& pages, const Seen& seen, int kv_head,
                                  uint32_t* slice) {
    const PageFormat& f = a.p.table.format;
    constexpr int kQuads = kDim / 4;  // of a slot pair
    const bool all = c.pos >= seen.low && c.pos + 8 * kOctets <= seen.end;
    const uint32_t* v = nullptr;
#pragma unroll
    for (int n = 0; n < kOctets; ++n) {
      const int id = pages.id[n], first = (simt::Warp() * kOctets + n) * 4;
      const bool there = id >= 0;
      if (n == 0 || NextPage(a, c, n) || id != pages.id[0]) {
        v = static_cast<const uint32_t*>(a.p.pages.v) +
            ((there ? id : 0) * f.v_page_stride + kv_head * f.v_head_stride) / 2 + int64_t{SlotOf(a, c, n) / 2} * kDim;
      } else {
        v += 4 * kDim;
      }
      if (there && !all) {
#pragma unroll
        for (int i = 0; i < kQuads * 4 / simt::kWarpSize; ++i) {
          const int at = i * simt::kWarpSize + simt::Lane(), pair = at / kQuads, key = c.pos + 8 * n + 2 * pair;
          const uint32_t keep = (key >= seen.low && key < seen.end ? 0xffffu : 0u) |
                                (key + 1 >= seen.low && key + 1 < seen.end ? 0xffff0000u : 0u);
          simt::U32x4 x = simt::Load<simt::U32x4>(v + at * 4);
          x = {x.x & keep, x.y & keep, x.z & keep, x.w & keep};
          simt::Store(VPlace(slice, first + pair, at % kQuads * 4), x);
        }
        continue;
      }
#pragma unroll
      for (int i = 0; i < kQuads * 4 / simt::kWarpSize; ++i) {
        const int at = i * simt::kWarpSize + simt::Lane();
        simt::CpAsyncOrZero<16>(VPlace(slice, first + at / kQuads, at % kQuads * 4), v + at * 4, there);
      }
    }
  }

  // Floats side by side from or to an address that their size divides, or not.
  QUIRE_DEVICE static simt::F32x4 GetFour(const float* p, bool aligned) {
    if (aligned) return simt::LoadReadOnly<simt::F32x4>(p);
    return {p[0], p[1], p[2], p[3]};
  }
  QUIRE_DEVICE static void PutTwo(float* p, const simt::F32x2& x, bool aligned) {
    if (aligned) return simt::Store(p, x);
    p[0] = x.x, p[1] = x.y;
  }
  QUIRE_DEVICE static bool Aligned(const float* p, int64_t stride, int floats) {
    return reinterpret_cast<uintptr_t>(p) % (4 * floats) == 0 && stride % floats == 0;
  }

  QUIRE_DEVICE static void Run(const Params& a) {
    auto& s = simt::Shared<Layout>();
    const AttentionPrefillParams& p = a.p;
    const int kv_heads = p.table.format.kv_heads;
    const int index = simt::BlockX() / kv_heads, kv_head = simt::BlockX() - index * kv_heads;
    const int warp = simt::Warp(), lane = simt::Lane(), g = lane / 4, t = lane % 4;
    const PrefillTile tile = FindTile(a, index);
    if (tile.count == 0) return;
    if (tile.chunk.seq < 0) return WriteNothing(a, tile, kv_head);

    const int32_t* ids = p.table.page_ids + p.table.page_begin[tile.chunk.seq];
    const Seen seen{FirstVisible(a, PositionOf(a, tile, 0)), EndOf(a, tile, tile.count - 1)};
    const int begin = seen.low / kKeys * kKeys;
    Cursor cursor;
    cursor.pos = begin + warp * kOctets * 8;
    cursor.page = cursor.pos / p.table.format.page_size;
    cursor.slot = cursor.pos - cursor.page * p.table.format.page_size;
    Pages pages = Find(a, ids, cursor, seen);
    FetchK(a, cursor, pages, kv_head, s.ring[0], s.there[0]);
    simt::CpAsyncCommit();
    FetchV(a, cursor, pages, seen, kv_head, s.ring[1]);
    simt::CpAsyncCommit();
    Advance(a, &cursor);
    pages = Find(a, ids, cursor, seen);

    // The maximum is taken of raw scores, so their factor must be positive: its sign goes to the queries.
    const float sign = p.scale < 0 ? -1.0f : p.scale == 0 ? 0.0f : 1.0f;
    const float natural = p.scale == 0 ? 1.0f : p.scale * sign;
    const float scale = Mod::kHasScore ? kLog2E : natural * kLog2E;  // a score functor leaves finished scores

    // Rows past the tile's last are as that one, and are not written.
    const int warp_row = warp * kWarpRows;
    const auto clamp = [&](int row) { return row < tile.count ? row : tile.count - 1; };
    const bool aligned_q = Aligned(p.q, p.q_stride, 4);
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      const float* q[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) q[r] = QueryOf(a, tile, kv_head, clamp(warp_row + 16 * m + 8 * r + g)) + 4 * t;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        simt::U32x4 fragment;  // read by this lane alone
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const simt::F32x4 x = GetFour(q[r] + 16 * step, aligned_q);
          simt::Word(fragment, r) = simt::PackPair<T>(x.x * sign, x.y * sign);
          simt::Word(fragment, 2 + r) = simt::PackPair<T>(x.z * sign, x.w * sign);
        }
        simt::Store(s.q[warp * kTiles + m][step][lane], fragment);
      }
    }
    for (int i = simt::ThreadIndex(); i < kRows; i += kThreads) {
      s.positions[i] = i / kWarpRows * kWarpRows < tile.count ? PositionOf(a, tile, clamp(i)) : -1;
    }
    if (simt::ThreadIndex() == 0) {
      s.tile = tile;
      s.kv_head = kv_head;
    }
    float max[kTiles][2], sum[kTiles][2];
    float acc[kTiles][kColumns][4];
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        max[m][r] = MinusInfinity();
        sum[m][r] = 0;
      }
#pragma unroll
      for (int c = 0; c < kColumns; ++c) acc[m][c][0] = acc[m][c][1] = acc[m][c][2] = acc[m][c][3] = 0;
    }

    int place = 0;  // in the ring, of K
    for (int start = begin; start < seen.end; start += kKeys) {
      uint32_t* const k = s.ring[place];
      uint32_t* const v = s.ring[(place + 1) % kRing];
      const uint8_t* const there_of = s.there[place];
      const bool more = start + kKeys < seen.end;
      place = (place + 2) % kRing;  // of the next K
      const auto fetch_v = [&] {
        if (more) {
          FetchV(a, cursor, pages, seen, kv_head, s.ring[(place + 1) % kRing]);
          Advance(a, &cursor);
          pages = Find(a, ids, cursor, seen);
        }
        simt::CpAsyncCommit();
      };
      simt::CpAsyncWait<kRing == 3 ? 1 : 0>();
      simt::SyncThreads();
      if (more) FetchK(a, cursor, pages, kv_head, s.ring[place], s.there[place]);
      simt::CpAsyncCommit();
      if constexpr (kRing == 4) fetch_v();

      // The warp's first and last row, read anew for want of registers.
      const int low_last = s.positions[warp_row], high_last = s.positions[warp_row + kWarpRows - 1];
      const auto end_of = [&](int position) { return Mod::kSeesFuture ? seen.end : position + 1; };
      bool busy = high_last >= 0 && start < end_of(high_last) && start + kKeys > FirstVisible(a, low_last);
      MaskState state = MaskState::kOpen;
      if constexpr (Mod::kHasMask) {
        if (busy) {
          const int block_end = start + kKeys < seen.end ? start + kKeys : seen.end;
          state = a.mod.State(tile.chunk.seq, kv_head * a.group, a.group, {low_last, high_last + 1, start, block_end});
          busy = state != MaskState::kMasked;
        }
      }
      uint32_t weights[kTiles][kKeys / 16][4];  // A fragments of 16 slots
      uint32_t kept = 0;  // with a mixed mask, bit 2j + i: some row of the warp sees slot 8j + 2t + i
      if (busy) {
        float scores[kTiles][kKeys / 8][4];  // of slots 8j + 2t + {0, 1} in rows g and g + 8
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
#pragma unroll
          for (int j = 0; j < kKeys / 8; ++j) scores[m][j][0] = scores[m][j][1] = scores[m][j][2] = scores[m][j][3] = 0;
        }
#pragma unroll(kSteps / 2)  // in one piece it takes registers that are not there
        for (int step = 0; step < kSteps; ++step) {
          uint32_t q[kTiles][4];
#pragma unroll
          for (int m = 0; m < kTiles; ++m) {
            const simt::U32x4 x = simt::Load<simt::U32x4>(s.q[warp * kTiles + m][step][lane]);
            q[m][0] = x.x, q[m][1] = x.y, q[m][2] = x.z, q[m][3] = x.w;
          }
#pragma unroll
          for (int j = 0; j < kKeys / 8; ++j) {
            const uint32_t* from = KPlace(k, 2 * t, 8 * j + g) + step * 8 * kKeys;  // both rows are swizzled alike
            const uint32_t b[2] = {simt::Load<uint32_t>(from), simt::Load<uint32_t>(from + kKeys)};
#pragma unroll
            for (int m = 0; m < kTiles; ++m) simt::MmaM16N8K16<T>(scores[m][j], q[m], b);
          }
        }

        uint32_t there = 0;  // bit j: of octet j
#pragma unroll
        for (int w = 0; w < kWarps; ++w) there |= uint32_t{there_of[w]} << (w * kOctets);
        const bool whole = state == MaskState::kOpen && start + kKeys <= end_of(low_last) && start >= FirstVisible(a, high_last) &&
                           there == (1u << (kKeys / 8)) - 1;
        if (Mod::kHasScore || !whole) {
#pragma unroll
          for (int m = 0; m < kTiles; ++m) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
              const int row = warp_row + 16 * m + 8 * r + g, position = s.positions[row];
              const int head = Mod::kIsIdentity ? 0 : kv_head * a.group + (tile.first + clamp(row)) % a.group;
              const int first = FirstVisible(a, position), end = end_of(position);
#pragma unroll
              for (int i = 0; i < kKeys / 4; ++i) {
                const int at = start + i / 2 * 8 + 2 * t + i % 2;
                float& x = scores[m][i / 2][2 * r + i % 2];
                bool visible = (there >> (i / 2) & 1) != 0 && at >= first && at < end;
                if constexpr (!Mod::kIsIdentity) {  // asked about keys that are there alone
                  if (Mod::kHasMask && visible && state == MaskState::kMixed) {
                    visible = a.mod.Mask(tile.chunk.seq, head, position, at);
                  }
                  if (Mod::kHasScore && visible) x = a.mod.Score(x * natural, tile.chunk.seq, head, position, at);
                  kept |= visible ? 1u << i : 0u;
                }
                x = visible ? x : MinusInfinity();
              }
            }
          }
        }

        float most[kTiles][2];
        bool grows = false;
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            float x = max[m][r];
#pragma unroll
            for (int j = 0; j < kKeys / 8; ++j) x = simt::Max(simt::Max(x, scores[m][j][2 * r]), scores[m][j][2 * r + 1]);
            x = simt::Max(x, simt::ShuffleXor(simt::kFullMask, x, 1));
            most[m][r] = simt::Max(x, simt::ShuffleXor(simt::kFullMask, x, 2));
            grows = grows || most[m][r] > max[m][r];
          }
        }
        if (simt::Any(simt::kFullMask, grows)) {
#pragma unroll
          for (int m = 0; m < kTiles; ++m) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
              const float shrink = most[m][r] > max[m][r] ? simt::Exp2((max[m][r] - most[m][r]) * scale) : 1.0f;
              max[m][r] = most[m][r];
              sum[m][r] *= shrink;
#pragma unroll
              for (int c = 0; c < kColumns; ++c) {
                acc[m][c][2 * r] *= shrink;
                acc[m][c][2 * r + 1] *= shrink;
              }
            }
          }
        }
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            // Nothing seen yet: weights of 0, not of −inf + inf.
            const float shift = max[m][r] == MinusInfinity() ? 0.0f : -max[m][r] * scale;
#pragma unroll
            for (int j = 0; j < kKeys / 8; ++j) {
              const float x = simt::Exp2(simt::Fma(scores[m][j][2 * r], scale, shift));
              const float y = simt::Exp2(simt::Fma(scores[m][j][2 * r + 1], scale, shift));
              sum[m][r] += x;
              sum[m][r] += y;
              weights[m][j / 2][j % 2 * 2 + r] = simt::PackPair<T>(x, y);
            }
          }
        }
      }

      if constexpr (kRing == 3) {
        simt::CpAsyncWait<1>();
        simt::SyncThreads();
        fetch_v();
      }
      if (!busy) continue;

      // What the mask leaves to no row of the warp may be anything.
      if (Mod::kHasMask && state == MaskState::kMixed) {
#pragma unroll
        for (int distance = 4; distance < simt::kWarpSize; distance *= 2) {
          kept |= simt::ShuffleXor(simt::kFullMask, kept, distance);
        }
      }
#pragma unroll
      for (int step = 0; step < kKeys / 16; ++step) {
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          const uint32_t* from = VPlace(v, t, 8 * c + g) + step * 8 * kDim;  // both rows are swizzled alike
          uint32_t b[2] = {simt::Load<uint32_t>(from), simt::Load<uint32_t>(from + 4 * kDim)};
          if (Mod::kHasMask && state == MaskState::kMixed) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const uint32_t bits = kept >> (4 * step + 2 * i);
              b[i] &= ((bits & 1) != 0 ? 0xffffu : 0u) | ((bits & 2) != 0 ? 0xffff0000u : 0u);
            }
          }
#pragma unroll
          for (int m = 0; m < kTiles; ++m) simt::MmaM16N8K16<T>(acc[m][c], weights[m][step], b);
        }
      }
    }

    simt::CpAsyncWait<0>();  // of empty groups
    const PrefillTile done = s.tile;
    const bool aligned_out = Aligned(p.out, p.out_stride, 2);
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float total = sum[m][r];
        total += simt::ShuffleXor(simt::kFullMask, total, 1);
        total += simt::ShuffleXor(simt::kFullMask, total, 2);
        const int row = warp_row + 16 * m + 8 * r + g;
        const float share = total == 0 ? 0.0f : 1.0f / total;
        if (row >= done.count) continue;
        float* out = OutOf(a, done, s.kv_head, row) + 2 * t;
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          PutTwo(out + 8 * c, {acc[m][c][2 * r] * share, acc[m][c][2 * r + 1] * share}, aligned_out);
        }
        if (t == 0) WriteLse(a, done, s.kv_head, row, max[m][r] * scale, total);
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
  c->threads = TensorPrefillKernel<BF16, 64, 2, PlainMod>::kThreads;
  c->tile_rows = VisitPrefillKernel<BF16, PlainMod>(f, 0, [](auto kernel) { return kernel.kRows; });
  c->shared_bytes = VisitPrefillKernel<BF16, PlainMod>(
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

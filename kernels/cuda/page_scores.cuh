// What the scores of pages from channel-major metadata share. A warp takes one metadata group of one (row, KV head) at a time:
// each lane loads 16 bytes, the pages of half a group (a quarter in f32) for one channel, so that every load of the warp is
// 512 bytes in a row; it adds what its channels give to its pages for each of kHeads query heads, and the lanes' sums meet by a
// butterfly that halves the pages it carries at each step. Device code.
#pragma once

#include "kernels/cpu/quest_scores.h"
#include "kernels/cuda/page_scores.h"
#include "kernels/cuda/simt.h"
#include "kernels/page_table.h"

namespace quire::cuda {

QUIRE_DEVICE float MaxOrNan(float a, float b) {
  if (a != a) return a;
  return b > a || b != b ? b : a;
}

// T: cache; kHeads: of the query group at once, a power of two.
template <typename T, int kHeads>
struct PageSums {
  static constexpr int kPages = 16 / static_cast<int>(sizeof(T));        // of a 16-byte load
  static constexpr int kLanesPerChannel = kPagesPerGroup / kPages;       // 2, in f32 4
  static constexpr int kChannels = simt::kWarpSize / kLanesPerChannel;   // of a load of the warp
  static constexpr int kValues = kHeads * kPages;                        // [head][page] of a lane
  static constexpr int kKept = kValues > kChannels ? kValues / kChannels : 1;         // of them after AddLanes
  static constexpr int kSplits = kValues > kChannels ? kChannels : kValues;           // lanes that end with different values
  static constexpr int kLanesPerSplit = simt::kWarpSize / kSplits;

  // Which channel of a load is this lane's, and where in its run of 16 pages.
  QUIRE_DEVICE static int Channel() { return simt::Lane() / kLanesPerChannel; }
  QUIRE_DEVICE static int FirstPage() { return simt::Lane() % kLanesPerChannel * kPages; }

  QUIRE_DEVICE static void Widen(const simt::U32x4& v, float (&x)[kPages]) {
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(T) == 4) {
        x[i] = simt::BitsFloat(words[i]);
      } else {
        x[2 * i] = simt::LowFloat<T>(words[i]);
        x[2 * i + 1] = simt::HighFloat<T>(words[i]);
      }
    }
  }

  // Adds the lanes of a page's channels. Afterwards this lane holds values[0 … kKept): of value number
  // (its bits from the top, then the index).
  QUIRE_DEVICE static void AddLanes(float (&sum)[kValues]) {
    int n = kValues;
#pragma unroll
    for (int bit = simt::kWarpSize / 2; bit >= kLanesPerChannel; bit /= 2) {
      if (n > 1) {
        n /= 2;
        const bool upper = (simt::Lane() & bit) != 0;
#pragma unroll
        for (int i = 0; i < kValues / 2; ++i) {
          if (i >= n) continue;
          const float mine = upper ? sum[n + i] : sum[i], other = upper ? sum[i] : sum[n + i];
          sum[i] = mine + simt::ShuffleXor(simt::kFullMask, other, bit);
        }
      } else {
        sum[0] += simt::ShuffleXor(simt::kFullMask, sum[0], bit);
      }
    }
  }

  // The first of this lane's values after AddLanes: its head of the kHeads and its page of the group.
  QUIRE_DEVICE static int Number() { return simt::Lane() / kLanesPerSplit * kKept; }
  QUIRE_DEVICE static int Head() { return Number() / kPages; }
  QUIRE_DEVICE static int Page() { return Number() % kPages + FirstPage(); }

  // total: of the heads before, becomes theirs with these (all of a chunk's, of which `heads` are there).
  QUIRE_DEVICE static void JoinHeads(bool is_max, int heads, bool first, const float (&sum)[kValues], float (&total)[kKept]) {
    const bool there = Head() < heads;
#pragma unroll
    for (int v = 0; v < kKept; ++v) {
      float x = there ? sum[v] : (is_max ? -__builtin_huge_valf() : 0.0f);
      // Heads lie in the upper bits.
#pragma unroll
      for (int bit = simt::kWarpSize / 2; bit > simt::kWarpSize / 2 / kHeads; bit /= 2) {
        const float other = simt::ShuffleXor(simt::kFullMask, x, bit);
        x = is_max ? MaxOrNan(x, other) : x + other;
      }
      total[v] = first ? x : (is_max ? MaxOrNan(total[v], x) : total[v] + x);
    }
  }

  // The group's 16 scores; one lane of those that hold the same page writes it.
  QUIRE_DEVICE static void Write(const float (&total)[kKept], float share, float* out) {
    if (Head() != 0 || simt::Lane() % kLanesPerSplit >= kLanesPerChannel) return;
#pragma unroll
    for (int v = 0; v < kKept; ++v) out[Page() + v] = total[v] * share;
  }
  // Of a group that isn't there.
  QUIRE_DEVICE static void WriteNan(float* out) {
    if (simt::Lane() < kPagesPerGroup) out[simt::Lane()] = simt::BitsFloat(0x7fc00000u);
  }
};

// What a head's sums are multiplied with in the end.
QUIRE_DEVICE float HeadShare(GroupReduce reduce, int heads) {
  return reduce == GroupReduce::kMean ? 1.0f / static_cast<float>(heads) : 1.0f;
}

// Queries of a KV head's group as f32 in shared memory, [chunks of kHeads][k_dim][kHeads], zeros for heads that aren't there.
// All threads; a barrier follows.
template <int kHeads, typename Q>
QUIRE_DEVICE void LoadQueries(const Q* from, int heads, int k_dim, float* q) {
  const int chunks = (heads + kHeads - 1) / kHeads;
  for (int i = simt::ThreadIndex(); i < chunks * kHeads * k_dim; i += simt::BlockThreads()) {
    const int head = i / k_dim, c = i % k_dim;
    q[(head / kHeads * k_dim + c) * kHeads + head % kHeads] = head < heads ? simt::ToFloat(from[i]) : 0.0f;
  }
}

}  // namespace quire::cuda

// The threshold of a top-k in one block: a radix search over ordered keys. Device code that the top-k of pages and the top
// candidates of logits share.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/simt.h"

namespace quire::cuda {

// Unsigned integers in the order of the floats; 0 for NaN, which lies below −inf's 0x007fffff; −0 equals +0.
QUIRE_DEVICE uint32_t OrderedKey(float x) {
  if (x != x) return 0;
  const uint32_t bits = simt::FloatBits(x == 0.0f ? 0.0f : x);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
QUIRE_DEVICE float KeyToFloat(uint32_t key) {
  if (key == 0) return simt::BitsFloat(0x7fc00000u);
  return simt::BitsFloat((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

// What numbers weigh is summed in these: their count, or what they hold of something in fixed point, whose sum is the same in
// any order.
using CountSum = uint32_t;
using FixedSum = unsigned long long;

template <typename Sum>
struct RadixSelectSharedOf {
  Sum histogram[2][256];  // passes take turns
  Sum wanted, in_bin;
  uint32_t least[32], most[32];  // of each warp
  uint32_t digit;
};
using RadixSelectShared = RadixSelectSharedOf<CountSum>;

// Keys above `last` are taken, and of those from `low` to `last` the first `ties`.
struct KeyThreshold {
  uint32_t low = 0, last = 0;
  int ties = 0;
  QUIRE_DEVICE bool Sure(uint32_t key) const { return key > last; }
  QUIRE_DEVICE bool Tie(uint32_t key) const { return key >= low && key <= last; }
};

// Of lanes 0 … Lane().
template <typename Sum>
QUIRE_DEVICE Sum SumToLane(Sum x) {
  for (int distance = 1; distance < simt::kWarpSize; distance *= 2) {
    const Sum other = simt::ShuffleUp(simt::kFullMask, x, distance);
    x += simt::Lane() >= distance ? other : 0;
  }
  return x;
}

// Keys above `last` weigh less than was wanted, and with those from `low` to `last` at least as much. `left`: what these have to
// add. Their keys are one, or they are all needed.
template <typename Sum>
struct WeightThreshold {
  uint32_t low = 0, last = 0;
  Sum left = 0;
};

// The threshold of the largest of key(0) … key(n − 1) whose weights add up to `wanted` > 0; if none do, that of all.
// weight(i), which follows from key(i), is not negative. All threads of a block of at least 64 call it; key and weight are read several times.
// Starts and ends with a barrier. Keys of 0 (NaN) come last and weigh nothing.
//
// The range of the keys is divided into 256 bins, then that of the bin in which the k-th key lies, and so on until all of a
// bin is in, or its keys are one: mostly two or three passes, for the range is that of the keys and not all numbers'.
template <typename Sum, typename Key, typename Weight>
QUIRE_DEVICE WeightThreshold<Sum> FindWeightThreshold(const Key& key, const Weight& weight, int n, Sum wanted,
                                                      RadixSelectSharedOf<Sum>& s) {
  const int thread = simt::ThreadIndex(), threads = simt::BlockThreads(), warps = threads / simt::kWarpSize;
  constexpr int kBinBits = 8, kBins = 256 / simt::kWarpSize;  // of a lane
  simt::SyncThreads();
  uint32_t low = 0xffffffffu, most = 0;
#pragma unroll 4
  for (int i = thread; i < n; i += threads) {
    const uint32_t x = key(i);
    most = x > most ? x : most;
    low = x != 0 && x < low ? x : low;
  }
  low = simt::ReduceMin(simt::kFullMask, low);
  most = simt::ReduceMax(simt::kFullMask, most);
  if (simt::Lane() == 0) {
    s.least[simt::Warp()] = low;
    s.most[simt::Warp()] = most;
  }
  for (int i = thread; i < 256; i += threads) s.histogram[0][i] = 0;
  simt::SyncThreads();
  low = simt::ReduceMin(simt::kFullMask, simt::Lane() < warps ? s.least[simt::Lane()] : 0xffffffffu);
  most = simt::ReduceMax(simt::kFullMask, simt::Lane() < warps ? s.most[simt::Lane()] : 0u);
  WeightThreshold<Sum> t;
  t.left = wanted;
  if (most == 0) return t;  // all are NaN
  uint32_t width = most - low;  // of the range, less 1
  int shift = 0;
  while (width >> shift >> kBinBits != 0) ++shift;
  for (int pass = 0;; pass ^= 1) {
    Sum* histogram = s.histogram[pass];
#pragma unroll 4
    for (int i = thread; i < n; i += threads) {
      const uint32_t x = key(i);
      if (x != 0 && x >= low && x - low <= width) simt::AtomicAdd(&histogram[(x - low) >> shift], weight(i));
    }
    simt::SyncThreads();
    if (simt::Warp() == 0) {
      // Sums from the largest bin down: lane l has bins 255 − 8l and the next seven.
      Sum bin[kBins], sum = 0;
#pragma unroll
      for (int i = 0; i < kBins; ++i) {
        bin[i] = histogram[255 - simt::Lane() * kBins - i];
        sum += bin[i];
      }
      Sum before = SumToLane(sum) - sum;
#pragma unroll
      for (int i = 0; i < kBins; ++i) {
        if (before < t.left && before + bin[i] >= t.left) {
          s.digit = static_cast<uint32_t>(255 - simt::Lane() * kBins - i);
          s.wanted = t.left - before;
          s.in_bin = bin[i];
        }
        before += bin[i];
      }
      if (simt::Lane() == simt::kWarpSize - 1 && before < t.left) {  // more is wanted than the numbers have
        s.digit = 256;
        s.wanted = t.left - before;
      }
    } else if (simt::Warp() == 1) {
      Sum* next = s.histogram[pass ^ 1];
#pragma unroll
      for (int i = 0; i < kBins; ++i) next[simt::Lane() + i * simt::kWarpSize] = 0;
    }
    simt::SyncThreads();
    t.left = s.wanted;
    if (s.digit == 256) break;
    low += s.digit << shift;
    width = (1u << shift) - 1;
    t.low = low;
    t.last = most - low < width ? most : low + width;
    if (shift == 0 || s.in_bin == t.left) break;
    shift = shift > kBinBits ? shift - kBinBits : 0;
  }
  simt::SyncThreads();
  return t;
}

// The threshold of the k largest of key(0) … key(n − 1), 0 < k ≤ n; otherwise as FindWeightThreshold.
template <typename Key>
QUIRE_DEVICE KeyThreshold FindThreshold(const Key& key, int n, int k, RadixSelectShared& s) {
  const auto t = FindWeightThreshold<CountSum>(key, [](int) { return 1u; }, n, static_cast<CountSum>(k), s);
  return {t.low, t.last, static_cast<int>(t.left)};
}

struct CompactionShared {
  int sure[2][32], ties[2][32];  // of each warp; two rounds take turns
};

// Where taken elements go, in order of their index: call Places once for each round of BlockThreads() · kRounds elements, all
// threads, rounds in order. Element i of a thread is number Warp() · 32 · kRounds + 32 · i + Lane() of the round.
class OrderedCompaction {
 public:
  QUIRE_DEVICE explicit OrderedCompaction(int ties) : ties_left_(ties) {}
  // sure: taken whatever; tie: taken while there are ties left. places: of this thread's elements, or −1.
  template <int kRounds>
  QUIRE_DEVICE void Places(const bool (&sure)[kRounds], const bool (&tie)[kRounds], CompactionShared& s, int (&places)[kRounds]) {
    uint32_t sures[kRounds], ties[kRounds];
    int sure_here = 0, ties_here = 0;  // of this warp
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      sures[i] = simt::Ballot(simt::kFullMask, sure[i]);
      ties[i] = simt::Ballot(simt::kFullMask, tie[i]);
      sure_here += simt::PopCount(sures[i]);
      ties_here += simt::PopCount(ties[i]);
    }
    if (simt::Lane() == 0) {
      s.sure[round_][simt::Warp()] = sure_here;
      s.ties[round_][simt::Warp()] = ties_here;
    }
    simt::SyncThreads();
    // Every warp sums over the warps, one a lane.
    const bool there = simt::Lane() < simt::BlockThreads() / simt::kWarpSize;
    const int all = there ? s.sure[round_][simt::Lane()] : 0, all_tied = there ? s.ties[round_][simt::Lane()] : 0;
    const int sums = simt::WarpInclusiveSum(all), tied_sums = simt::WarpInclusiveSum(all_tied);
    int sure_before = simt::ShuffleIndex(simt::kFullMask, sums, simt::Warp()) - sure_here;
    int ties_before = simt::ShuffleIndex(simt::kFullMask, tied_sums, simt::Warp()) - ties_here;
    const int all_sure = simt::ShuffleIndex(simt::kFullMask, sums, simt::kWarpSize - 1);
    const int all_ties = simt::ShuffleIndex(simt::kFullMask, tied_sums, simt::kWarpSize - 1);
    round_ ^= 1;
    const uint32_t below = (1u << simt::Lane()) - 1;
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      const int tied = ties_before + simt::PopCount(ties[i] & below);
      const bool take = sure[i] || (tie[i] && tied < ties_left_);
      places[i] = take ? count_ + sure_before + simt::PopCount(sures[i] & below) + (tied < ties_left_ ? tied : ties_left_) : -1;
      sure_before += simt::PopCount(sures[i]);
      ties_before += simt::PopCount(ties[i]);
    }
    const int ties_taken = all_ties < ties_left_ ? all_ties : ties_left_;
    count_ += all_sure + ties_taken;
    ties_left_ -= ties_taken;
  }
  QUIRE_DEVICE int Place(bool sure, bool tie, CompactionShared& s) {
    const bool sures[1] = {sure}, ties[1] = {tie};
    int place[1];
    Places(sures, ties, s, place);
    return place[0];
  }
  QUIRE_DEVICE int count() const { return count_; }

 private:
  int ties_left_, count_ = 0, round_ = 0;
};

}  // namespace quire::cuda

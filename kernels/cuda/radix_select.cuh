// The threshold of a top-k in one block: a radix search over ordered keys, eight bits at a time from the top. Device code that
// the top-k of pages and the top candidates of logits share.
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

struct RadixSelectShared {
  uint32_t histogram[256];
  uint32_t warp_sums[8];
  uint32_t digit, wanted, in_bin;
};

// Keys whose bits under `mask` exceed `prefix` are taken, and of those that equal it the first `ties`.
struct KeyThreshold {
  uint32_t mask = 0, prefix = 0;
  int ties = 0;
};

// The threshold of the k largest of key(0) … key(n − 1), 0 < k ≤ n. All threads of a block of at least 256 call it; key is
// read several times. Starts and ends with a barrier.
template <typename Key>
QUIRE_DEVICE KeyThreshold FindThreshold(const Key& key, int n, int k, RadixSelectShared& s) {
  KeyThreshold t;
  t.ties = k;
  const int thread = simt::ThreadIndex(), threads = simt::BlockThreads();
  for (int shift = 24; shift >= 0; shift -= 8) {
    simt::SyncThreads();
    if (thread < 256) s.histogram[thread] = 0;
    simt::SyncThreads();
    // Whole warps stay in the loop; lanes with the same digit add once.
    for (int base = 0; base < n; base += threads) {
      const int i = base + thread;
      const uint32_t x = i < n ? key(i) : 0;
      const bool counts = i < n && (x & t.mask) == t.prefix;
      const uint32_t digit = counts ? (x >> shift) & 255u : 256u;
      const uint32_t mates = simt::MatchAny(simt::kFullMask, digit);
      if (counts && simt::Lane() == simt::LowestBit(mates)) {
        simt::AtomicAdd(&s.histogram[digit], static_cast<uint32_t>(simt::PopCount(mates)));
      }
    }
    simt::SyncThreads();
    // Sums from the largest digit down, a digit a thread.
    int count = 0, sum = 0;
    if (thread < 256) {
      count = static_cast<int>(s.histogram[255 - thread]);
      sum = simt::WarpInclusiveSum(count);
      if (simt::Lane() == 31) s.warp_sums[simt::Warp()] = static_cast<uint32_t>(sum);
    }
    simt::SyncThreads();
    if (thread < 256) {
      for (int w = 0; w < simt::Warp(); ++w) sum += static_cast<int>(s.warp_sums[w]);
      if (sum >= t.ties && sum - count < t.ties) {
        s.digit = static_cast<uint32_t>(255 - thread);
        s.wanted = static_cast<uint32_t>(t.ties - (sum - count));
        s.in_bin = static_cast<uint32_t>(count);
      }
    }
    simt::SyncThreads();
    t.prefix |= s.digit << shift;
    t.mask |= 255u << shift;
    t.ties = static_cast<int>(s.wanted);
    if (static_cast<int>(s.in_bin) == t.ties) break;  // all keys with this prefix are in
  }
  simt::SyncThreads();
  return t;
}

struct CompactionShared {
  int sure[2][32], ties[2][32];  // of each warp; two rounds take turns
};

// Where taken elements go, in order of their index: call Place once for each round of BlockThreads() elements, all threads,
// rounds in order. Returns the place of this thread's element or −1.
class OrderedCompaction {
 public:
  QUIRE_DEVICE explicit OrderedCompaction(int ties) : ties_left_(ties) {}
  // sure: taken whatever; tie: taken while there are ties left.
  QUIRE_DEVICE int Place(bool sure, bool tie, CompactionShared& s) {
    const uint32_t sures = simt::Ballot(simt::kFullMask, sure), ties = simt::Ballot(simt::kFullMask, tie);
    const uint32_t below = (1u << simt::Lane()) - 1;
    if (simt::Lane() == 0) {
      s.sure[round_][simt::Warp()] = simt::PopCount(sures);
      s.ties[round_][simt::Warp()] = simt::PopCount(ties);
    }
    simt::SyncThreads();
    int sure_before = 0, ties_before = 0, all_sure = 0, all_ties = 0;
    for (int w = 0; w < simt::BlockThreads() / simt::kWarpSize; ++w) {
      sure_before += w < simt::Warp() ? s.sure[round_][w] : 0;
      ties_before += w < simt::Warp() ? s.ties[round_][w] : 0;
      all_sure += s.sure[round_][w];
      all_ties += s.ties[round_][w];
    }
    round_ ^= 1;
    sure_before += simt::PopCount(sures & below);
    ties_before += simt::PopCount(ties & below);
    const int ties_taken_before = ties_before < ties_left_ ? ties_before : ties_left_;
    const bool take = sure || (tie && ties_before < ties_left_);
    const int place = take ? count_ + sure_before + ties_taken_before : -1;
    const int ties_taken = all_ties < ties_left_ ? all_ties : ties_left_;
    count_ += all_sure + ties_taken;
    ties_left_ -= ties_taken;
    return place;
  }
  QUIRE_DEVICE int count() const { return count_; }

 private:
  int ties_left_, count_ = 0, round_ = 0;
};

}  // namespace quire::cuda

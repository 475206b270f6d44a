// The channels, or words of channels, with the largest sums of |q| over a query group: by counting, for they are few. Device
// code.
#pragma once

#include "kernels/cuda/radix_select.cuh"
#include "kernels/cuda/simt.h"

namespace quire::cuda {

// Shared memory for n sums: keys in fours, and a bit for each.
constexpr size_t TopSumsBytes(int n) {
  return sizeof(uint32_t) * (static_cast<size_t>((n + 3) / 4 * 4) + static_cast<size_t>((n + 31) / 32));
}

// taken(i, place) for the `most` largest sum(i), i < n, places in the order of i; equal sums to the lower i, NaN never. shared:
// TopSumsBytes, 16-byte aligned. All threads of a block; sum(i) is asked for once by one thread, which also gets taken(i).
// Returns how many were taken. Begins and ends with a barrier.
template <typename Sum, typename Taken>
QUIRE_DEVICE int TopSums(int n, int most, const Sum& sum, const Taken& taken, uint32_t* shared) {
  uint32_t* keys = shared;
  uint32_t* masks = shared + (n + 3) / 4 * 4;
  const int rounded = (n + simt::kWarpSize - 1) / simt::kWarpSize * simt::kWarpSize;
  simt::SyncThreads();
  for (int i = simt::ThreadIndex(); i < (n + 3) / 4 * 4; i += simt::BlockThreads()) keys[i] = i < n ? OrderedKey(sum(i)) : 0;
  simt::SyncThreads();
  for (int i = simt::ThreadIndex(); i < rounded; i += simt::BlockThreads()) {
    const uint32_t key = i < n ? keys[i] : 0;
    int above = 0;  // larger ones, and equal ones before
    for (int j = 0; j < n; j += 4) {
      const simt::U32x4 other = simt::Load<simt::U32x4>(keys + j);
      above += other.x > key || (other.x == key && j < i) ? 1 : 0;
      above += other.y > key || (other.y == key && j + 1 < i) ? 1 : 0;
      above += other.z > key || (other.z == key && j + 2 < i) ? 1 : 0;
      above += other.w > key || (other.w == key && j + 3 < i) ? 1 : 0;
    }
    const uint32_t mask = simt::Ballot(simt::kFullMask, key != 0 && above < most);
    if (simt::Lane() == 0) masks[i / simt::kWarpSize] = mask;
  }
  simt::SyncThreads();
  int count = 0;
  for (int w = 0; w < rounded / simt::kWarpSize; ++w) count += simt::PopCount(masks[w]);
  for (int i = simt::ThreadIndex(); i < n; i += simt::BlockThreads()) {
    const uint32_t mask = masks[i / simt::kWarpSize], bit = 1u << (i % simt::kWarpSize);
    if ((mask & bit) == 0) continue;
    int place = simt::PopCount(mask & (bit - 1));
    for (int w = 0; w < i / simt::kWarpSize; ++w) place += simt::PopCount(masks[w]);
    taken(i, place);
  }
  simt::SyncThreads();
  return count;
}

}  // namespace quire::cuda

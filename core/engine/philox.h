// Philox 4x32-10: a counter-based generator (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011, with its constants). A draw is a pure function of (key, counter), so that a token depends on (seed, sequence
// index, position) alone: not on the batch, the rank, or how often the request was preempted and recomputed.
#pragma once

#include <array>
#include <cstdint>

namespace quire {

using PhiloxBlock = std::array<uint32_t, 4>;

constexpr PhiloxBlock Philox4x32(PhiloxBlock counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t b = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

// What the draws are for: the last word of the counter, so that streams of different use never meet.
enum class DrawPurpose : uint32_t { kToken = 1, kRequestSeed = 2, kRandomToken = 3, kRandomHistory = 4 };

// 64 random bits for one use of (seed, stream, position).
constexpr uint64_t RandomBits(uint64_t seed, uint32_t stream, uint64_t position, DrawPurpose purpose) {
  const PhiloxBlock block = Philox4x32(
      {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), stream, static_cast<uint32_t>(purpose)},
      {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return uint64_t{block[1]} << 32 | block[0];
}

// Uniform in [0, 1), a multiple of 2⁻⁵³.
constexpr double UniformDraw(uint64_t seed, uint32_t stream, uint64_t position, DrawPurpose purpose) {
  return static_cast<double>(RandomBits(seed, stream, position, purpose) >> 11) * 0x1p-53;
}

}  // namespace quire

// A 64-bit hash for telling whether ranks hold the same thing. No defence against people who make collisions.
#pragma once

#include <cstdint>
#include <string_view>

namespace quire {

// FNV-1a with a final mix, so that short strings differ in all bits. `seed` chains hashes.
inline uint64_t HashBytes(std::string_view bytes, uint64_t seed = 0xcbf29ce484222325ull) {
  uint64_t hash = seed;
  for (const char c : bytes) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
  hash ^= hash >> 33;
  hash *= 0xff51afd7ed558ccdull;
  return hash ^ (hash >> 33);
}

}  // namespace quire

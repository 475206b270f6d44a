// Plain types that both backends of simt.h share: vectors of words, the shape of a launch, lane masks. Host and device.
#pragma once

#include <cstddef>
#include <cstdint>

namespace quire::simt {

inline constexpr int kWarpSize = 32;
inline constexpr uint32_t kFullMask = 0xffffffffu;

// One 8- or 16-byte access.
struct alignas(8) U32x2 {
  uint32_t x, y;
};
struct alignas(16) U32x4 {
  uint32_t x, y, z, w;
};
struct alignas(8) F32x2 {
  float x, y;
};
struct alignas(16) F32x4 {
  float x, y, z, w;
};

// Blocks in three dimensions, threads of a block in one. A grid with a zero in it launches nothing.
struct LaunchShape {
  int64_t grid_x = 1;  // up to 2^31 − 1
  int grid_y = 1;      // up to 65535
  int grid_z = 1;      // up to 65535
  int threads = 32;    // per block: a multiple of 32, at most the kernel's kMaxThreads
  size_t shared_bytes = 0;
};

}  // namespace quire::simt

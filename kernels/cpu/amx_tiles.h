// Tile registers for bf16 products: the few AMX instructions that the kernels use, and a software twin with the same
// interface, so that the kernels' logic is tested on machines without AMX. A kernel is a template on one of the two.
//
// Tile t has rows(t) rows of colsb(t) bytes. Dot(c, a, b): C[m][n] += Σ_k A[m][2k]·B[k][2n] + A[m][2k+1]·B[k][2n+1], f32 sums,
// the definition of TDPBF16PS in Intel's Architecture Instruction Set Extensions reference (319433).
#pragma once

#include <array>
#include <cstdint>
#include <cstring>

#include "core/base/dtype.h"

namespace quire {

inline constexpr int kTiles = 8;
inline constexpr int kTileRows = 16;
inline constexpr int kTileBytes = 64;  // of a row

// The 64 bytes that LDTILECFG reads (palette 1).
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t colsb[16] = {};
  uint8_t rows[16] = {};

  void Set(int tile, int tile_rows, int bytes) {
    rows[tile] = static_cast<uint8_t>(tile_rows);
    colsb[tile] = static_cast<uint16_t>(bytes);
  }
};
static_assert(sizeof(TileConfig) == 64);

// The software twin: slow, obvious, and strict about shapes (a mismatch that traps on hardware sets `fault`).
class SoftTiles {
 public:
  void Configure(const TileConfig& config) { config_ = config; }
  void Release() { config_ = TileConfig{}; }

  template <int kTile>
  void Zero() { std::memset(data_[kTile].data(), 0, sizeof(data_[kTile])); }

  template <int kTile>
  void Load(const void* p, int64_t stride_bytes) {
    Zero<kTile>();
    for (int r = 0; r < config_.rows[kTile]; ++r) {
      std::memcpy(data_[kTile].data() + r * kTileBytes, static_cast<const uint8_t*>(p) + r * stride_bytes, config_.colsb[kTile]);
    }
  }

  template <int kTile>
  void Store(void* p, int64_t stride_bytes) const {
    for (int r = 0; r < config_.rows[kTile]; ++r) {
      std::memcpy(static_cast<uint8_t*>(p) + r * stride_bytes, data_[kTile].data() + r * kTileBytes, config_.colsb[kTile]);
    }
  }

  template <int kC, int kA, int kB>
  void Dot() {
    const int m = config_.rows[kC], n = config_.colsb[kC] / 4, k = config_.colsb[kA] / 4;
    if (config_.rows[kA] != m || config_.colsb[kB] / 4 != n || config_.rows[kB] != k || m == 0 || n == 0 || k == 0) {
      fault = true;
      return;
    }
    for (int i = 0; i < m; ++i) {
      for (int kk = 0; kk < k; ++kk) {
        for (int j = 0; j < n; ++j) {
          float c = At<float>(kC, i, j);
          c += ToFloat(At<BF16>(kA, i, 2 * kk)) * ToFloat(At<BF16>(kB, kk, 2 * j));
          c += ToFloat(At<BF16>(kA, i, 2 * kk + 1)) * ToFloat(At<BF16>(kB, kk, 2 * j + 1));
          std::memcpy(data_[kC].data() + i * kTileBytes + j * 4, &c, 4);
        }
      }
    }
  }

  bool fault = false;

 private:
  template <typename T>
  T At(int tile, int row, int column) const {
    T value;
    std::memcpy(&value, data_[tile].data() + row * kTileBytes + column * static_cast<int>(sizeof(T)), sizeof(T));
    return value;
  }
  TileConfig config_;
  std::array<std::array<uint8_t, kTileRows * kTileBytes>, kTiles> data_{};
};

}  // namespace quire

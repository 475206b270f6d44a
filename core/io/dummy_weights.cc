#include "core/io/dummy_weights.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "core/base/check.h"
#include "core/io/dequant.h"
#include "core/io/weight_source_mapped.h"

namespace quire {

namespace {

// The finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

uint64_t HashName(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
  for (const char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
  return hash;
}

constexpr uint64_t kGolden = 0x9e3779b97f4a7c15u;

// Elements [begin, begin + n) of the stream `key`: the sum of four uniforms of 16 bits has mean 2 * 65535 and variance
// 4 * (65536² - 1) / 12; `scale` already has the division by its root.
void Normals(uint64_t key, uint64_t begin, int64_t n, float scale, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    const uint64_t bits = Mix(key + (begin + static_cast<uint64_t>(i)) * kGolden);
    const uint64_t pairs = (bits & 0x0000ffff0000ffffu) + ((bits >> 16) & 0x0000ffff0000ffffu);
    const auto sum = static_cast<int32_t>((pairs & 0xffffffffu) + (pairs >> 32));
    out[i] = static_cast<float>(sum - 2 * 65535) * scale;
  }
}

DType AsDType(StorageType type) {
  return type == StorageType::kF32 ? DType::kF32 : type == StorageType::kF16 ? DType::kF16 : DType::kBF16;
}

class DummyWeights final : public WeightSource {
 public:
  DummyWeights(std::vector<TensorInfo> tensors, uint64_t seed) : infos_(std::move(tensors)), seed_(seed) {
    for (size_t i = 0; i < infos_.size(); ++i) {
      CHECK_EQ(BlockElements(infos_[i].type), 1);
      CHECK(index_.emplace(infos_[i].name, i).second);
    }
  }

  const std::vector<TensorInfo>& tensors() const override { return infos_; }

  const TensorInfo* Find(std::string_view name) const override {
    const auto it = index_.find(name);
    return it == index_.end() ? nullptr : &infos_[it->second];
  }

  Status Read(std::string_view name, const TensorSlice& slice, DType dtype, void* dst) const override {
    const TensorInfo* info = Find(name);
    RETURN_IF_ERROR(CheckSlice(name, info, slice, dtype));
    const int64_t rows = slice.row_end - slice.row_begin, cols = slice.col_end - slice.col_begin;
    std::byte* out = static_cast<std::byte*>(dst);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t first = (slice.row_begin + r) * info->cols + slice.col_begin;
      Fill(*info, first, cols, dtype, out + r * cols * ElementSize(dtype));
    }
    bytes_read_.fetch_add(rows * cols * BlockBytes(info->type), std::memory_order_relaxed);
    return OkStatus();
  }

  const void* Mapped(std::string_view, DType) const override { return nullptr; }
  int64_t bytes_read() const override { return bytes_read_.load(std::memory_order_relaxed); }
  void CountMapped(int64_t) const override {}

 private:
  void Fill(const TensorInfo& info, int64_t first, int64_t n, DType dtype, std::byte* dst) const {
    constexpr int64_t kChunk = 2048;
    alignas(64) float values[kChunk];
    alignas(64) uint32_t stored[kChunk];  // room for the stored type's elements
    const bool ones = info.rows == 1 && info.name.find("norm") != std::string::npos;
    const double deviation = info.rows == 1 ? 0.02 : 1.0 / std::sqrt(static_cast<double>(info.cols));
    const auto scale = static_cast<float>(deviation / std::sqrt((65536.0 * 65536.0 - 1.0) / 3.0));
    const uint64_t key = Mix(Mix(seed_ + kGolden) ^ HashName(info.name));
    for (int64_t i = 0; i < n; i += kChunk) {
      const int64_t count = std::min(kChunk, n - i);
      if (ones) {
        std::fill_n(values, count, 1.0f);
      } else {
        Normals(key, static_cast<uint64_t>(first + i), count, scale, values);
      }
      std::byte* out = dst + i * ElementSize(dtype);
      const DType own = AsDType(info.type);
      if (own == dtype || own == DType::kF32) {
        ConvertFromFloat(values, count, dtype, out);
        continue;
      }
      // Rounded to the tensor's own type first, so that every reader sees the same model.
      ConvertFromFloat(values, count, own, stored);
      ConvertToFloat(info.type, reinterpret_cast<const std::byte*>(stored), count, values);
      ConvertFromFloat(values, count, dtype, out);
    }
  }

  std::vector<TensorInfo> infos_;
  std::unordered_map<std::string_view, size_t> index_;  // views into infos_, which never changes
  uint64_t seed_;
  mutable std::atomic<int64_t> bytes_read_{0};
};

}  // namespace

std::unique_ptr<WeightSource> MakeDummyWeights(std::vector<TensorInfo> tensors, uint64_t seed) {
  return std::make_unique<DummyWeights>(std::move(tensors), seed);
}

}  // namespace quire

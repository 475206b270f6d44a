// PageStorage::FillRandom: a cache of any depth for benchmarks without a prefill.
//
// Normal values come from a table of 4096 quantiles, five 12-bit indices per 64-bit draw of SplitMix64 (Steele, Lea,
// Flood, OOPSLA 2014): about as fast as memory takes them, and exactly in the cache's dtype.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/base/check.h"
#include "core/base/dtype.h"
#include "kernels/metadata_codes.h"
#include "kvstore/page_storage.h"

namespace quire {
namespace {

constexpr int kTableBits = 12;
constexpr int kTableSize = 1 << kTableBits;

uint64_t Mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// Values at the middles of kTableSize equally likely slices of N(0, 1), by bisection of the distribution function.
std::vector<float> NormalQuantiles() {
  std::vector<float> table(kTableSize);
  for (int i = 0; i < kTableSize / 2; ++i) {
    const double p = (i + 0.5) / kTableSize;
    double low = -8, high = 0;
    for (int step = 0; step < 40; ++step) {
      const double middle = (low + high) / 2;
      (0.5 * std::erfc(-middle * M_SQRT1_2) < p ? low : high) = middle;
    }
    table[static_cast<size_t>(i)] = static_cast<float>(low);
    table[static_cast<size_t>(kTableSize - 1 - i)] = static_cast<float>(-low);
  }
  return table;
}

// A stream of table entries.
template <typename T>
class Draw {
 public:
  Draw(const T* table, uint64_t state) : table_(table), state_(state) {}
  T operator()() {
    if (left_ == 0) {
      state_ += 0x9e3779b97f4a7c15u;
      bits_ = Mix(state_);
      left_ = 64 / kTableBits;
    }
    const T value = table_[bits_ & (kTableSize - 1)];
    bits_ >>= kTableBits;
    --left_;
    return value;
  }

 private:
  const T* table_;
  uint64_t state_;
  uint64_t bits_ = 0;
  int left_ = 0;
};

template <typename T>
struct Fill {
  LayerPages pages;
  PageFormat format;
  const T* table;
  const int32_t* page_ids;  // [num_pages]
  int64_t num_pages;
  int64_t length;
  uint64_t seed;  // of this layer

  uint64_t StreamSeed(int64_t page, int head, int which) const {
    return Mix(Mix(seed + static_cast<uint64_t>(page)) + static_cast<uint64_t>(head) * 2 +
               static_cast<uint64_t>(which));
  }

  // K and V of one (page, head); channel-wise min and max of K into mins and maxs [k_dim].
  void OnePage(int64_t page, int head, int first_kv_head, float* mins, float* maxs) const {
    const int slots = static_cast<int>(std::min<int64_t>(format.page_size, length - page * format.page_size));
    T* k = static_cast<T*>(pages.k) + page_ids[page] * format.k_page_stride + head * format.k_head_stride;
    T* v = static_cast<T*>(pages.v) + page_ids[page] * format.v_page_stride + head * format.v_head_stride;
    std::fill(mins, mins + format.k_dim, std::numeric_limits<float>::infinity());
    std::fill(maxs, maxs + format.k_dim, -std::numeric_limits<float>::infinity());
    Draw<T> draw_k(table, StreamSeed(page, first_kv_head + head, 0));
    for (int c0 = 0; c0 < format.k_dim; c0 += format.word) {
      for (int slot = 0; slot < format.page_size; ++slot) {
        T* word = k + format.KOffset(slot, c0);
        for (int i = 0; i < format.word; ++i) {
          word[i] = slot < slots ? draw_k() : T{};
          if (slot >= slots) continue;
          const float value = ToFloat(word[i]);
          mins[c0 + i] = std::min(mins[c0 + i], value);
          maxs[c0 + i] = std::max(maxs[c0 + i], value);
        }
      }
    }
    Draw<T> draw_v(table, StreamSeed(page, first_kv_head + head, 1));
    const int words = static_cast<int>(format.v_head_stride / format.v_dim / format.word);
    for (int w = 0; w < words; ++w) {
      T* row = v + int64_t{w} * format.v_dim * format.word;
      for (int c = 0; c < format.v_dim; ++c) {
        for (int i = 0; i < format.word; ++i) {
          row[c * format.word + i] = w * format.word + i < slots ? draw_v() : T{};
        }
      }
    }
  }

  // The pages of one metadata group; group_id −1: no metadata.
  void OneGroup(int64_t group, int32_t group_id, int first_kv_head) const {
    const size_t k_dim = static_cast<size_t>(format.k_dim);
    std::vector<float> mins(k_dim), maxs(k_dim), over_min(k_dim), over_max(k_dim);
    const int64_t begin = group * kPagesPerGroup;
    const int64_t end = std::min<int64_t>(begin + kPagesPerGroup, num_pages);
    for (int head = 0; head < format.kv_heads; ++head) {
      std::fill(over_min.begin(), over_min.end(), std::numeric_limits<float>::infinity());
      std::fill(over_max.begin(), over_max.end(), -std::numeric_limits<float>::infinity());
      T* meta = nullptr;
      if (group_id >= 0) {
        meta = static_cast<T*>(pages.meta) + group_id * format.meta_group_stride + head * format.meta_head_stride;
      }
      for (int64_t page = begin; page < end; ++page) {
        if (page_ids[page] < 0) continue;
        OnePage(page, head, first_kv_head, mins.data(), maxs.data());
        if (meta == nullptr) continue;
        for (int c = 0; c < format.k_dim; ++c) {
          meta[format.MetaOffset(0, c, static_cast<int>(page - begin))] = FromFloat<T>(mins[c]);
          meta[format.MetaOffset(1, c, static_cast<int>(page - begin))] = FromFloat<T>(maxs[c]);
          over_min[c] = std::min(over_min[c], mins[c]);
          over_max[c] = std::max(over_max[c], maxs[c]);
        }
      }
      if (meta == nullptr) continue;
      T* over = static_cast<T*>(pages.over) + group_id * format.over_group_stride + head * format.over_head_stride;
      for (int c = 0; c < format.k_dim; ++c) {
        over[format.OverOffset(0, c)] = FromFloat<T>(over_min[c]);
        over[format.OverOffset(1, c)] = FromFloat<T>(over_max[c]);
      }
    }
    if (group_id >= 0 && pages.codes != nullptr && (group + 1) * kPagesPerGroup * format.page_size <= length) {
      EncodeMetadata(pages, format, group_id);
    }
  }
};

// The metadata of filled pages, as appends would have left it: a column of every group at a time.
void RecomputeAll(const Context& ctx, const LayersOfPages& layers, std::span<const int32_t> pages,
                  std::span<const int32_t> groups, int64_t length) {
  const int page_size = layers.format.page_size;
  std::vector<PageOp> ops;
  for (int column = 0; column < kPagesPerGroup; ++column) {
    for (size_t g = 0; g < groups.size(); ++g) {
      const int64_t first = static_cast<int64_t>(g) * kPagesPerGroup, page = first + column;
      if (groups[g] < 0 || page >= std::ssize(pages) || pages[static_cast<size_t>(page)] < 0) continue;
      PageOp op;
      op.kind = PageOp::Kind::kRecomputeMetadata;
      op.to = groups[g];
      op.columns = column + 1;
      op.slots = static_cast<int32_t>(std::min<int64_t>(page_size, length - page * page_size));
      op.pages_begin = static_cast<int32_t>(first);
      ops.push_back(op);
    }
  }
  RunPageOps(ctx, layers, ops, pages);
}

}  // namespace

Status PageStorage::FillRandom(const Context& ctx, int cache_group, std::span<const int32_t> pages,
                             std::span<const int32_t> metadata_groups, int64_t length, uint64_t seed,
                             int first_kv_head) {
  CHECK_GE(cache_group, 0);
  CHECK_LT(static_cast<size_t>(cache_group), groups_.size());
  const GroupMemory& memory = groups_[static_cast<size_t>(cache_group)];
  const std::vector<int>& layers = config_.groups[static_cast<size_t>(cache_group)].layers;
  const int64_t num_pages = (length + config_.page_size - 1) / config_.page_size;
  const int64_t num_groups = (num_pages + kPagesPerGroup - 1) / kPagesPerGroup;
  CHECK_EQ(std::ssize(pages), num_pages);
  CHECK_EQ(std::ssize(metadata_groups), config_.metadata ? num_groups : 0);
  for (int32_t id : pages) {
    CHECK_GE(id, -1);  // a window has freed it
    CHECK_LT(id, memory.capacity.pages);
  }
  for (int32_t id : metadata_groups) {
    CHECK_GE(id, -1);
    CHECK_LT(id, memory.capacity.metadata_groups);
  }
  if (memory.format.kv_heads == 0) return OkStatus();
  Status status;
  const std::vector<float> quantiles = NormalQuantiles();
  VisitFloatDType(memory.format.dtype, [&]<typename T>(T) {
    std::vector<T> table(quantiles.size());
    for (size_t i = 0; i < table.size(); ++i) table[i] = FromFloat<T>(quantiles[i]);
    const auto seed_of = [&](int index) {
      const uint64_t layer = static_cast<uint64_t>(layers[static_cast<size_t>(index)]);
      return Mix(seed + 0x9e3779b97f4a7c15u * (layer + 1));
    };
    if (memory.k.device().kind == DeviceKind::kCpu) {
      ctx.pool->ParallelFor(std::ssize(layers) * num_groups, [&](int64_t task, int) {
        const int index = static_cast<int>(task / num_groups);
        const int64_t group = task % num_groups;
        const Fill<T> fill{LayerOf(memory, index), memory.format, table.data(), pages.data(), num_pages, length,
                           seed_of(index)};
        fill.OneGroup(group, config_.metadata ? metadata_groups[static_cast<size_t>(group)] : -1, first_kv_head);
      });
      return;
    }
    std::vector<uint64_t> seeds;
    for (int index = 0; index < std::ssize(layers); ++index) seeds.push_back(seed_of(index));
    const LayersOfPages there = LayersOf(static_cast<size_t>(cache_group));
    status = FillPagesOnGpu(ctx, there, {seeds, table.data(), pages, length, first_kv_head});
    if (status.ok() && config_.metadata) RecomputeAll(ctx, there, pages, metadata_groups, length);
  });
  return status;
}

}  // namespace quire

#include "core/engine/slot_maps.h"

#include <algorithm>
#include <numeric>

#include "core/base/check.h"
#include "core/engine/philox.h"
#include "kernels/selection/evicting.h"

namespace quire {
namespace {

std::vector<int> LayerHeads(const CacheConfig& cache) {
  std::vector<int> heads;
  for (const CacheGroupConfig& group : cache.groups) {
    for (const int layer : group.layers) {
      if (static_cast<size_t>(layer) >= heads.size()) heads.resize(static_cast<size_t>(layer) + 1);
      heads[static_cast<size_t>(layer)] = group.kv_heads;
    }
  }
  return heads;
}

// Of one slot.
size_t SlotBytes(int64_t heads, int64_t capacity) { return static_cast<size_t>(heads * capacity * kSlotMapEntryBytes); }

}  // namespace

size_t SlotMaps::Bytes(const CacheConfig& cache, int64_t capacity, int slots) {
  const std::vector<int> heads = LayerHeads(cache);
  return static_cast<size_t>(slots) * SlotBytes(std::accumulate(heads.begin(), heads.end(), int64_t{0}), capacity);
}

Result<SlotMaps> SlotMaps::Create(const CacheConfig& cache, int64_t capacity, int slots) {
  SlotMaps maps;
  maps.capacity_ = capacity;
  maps.layer_heads_ = LayerHeads(cache);
  maps.heads_ = std::accumulate(maps.layer_heads_.begin(), maps.layer_heads_.end(), int64_t{0});
  maps.slots_.resize(static_cast<size_t>(slots));
  ASSIGN_OR_RETURN(maps.memory_, Buffer::Create(Bytes(cache, capacity, slots)));
  return maps;
}

void SlotMaps::Place(int slot, int64_t capacity) {
  std::vector<SlotMap>& layers = slots_[static_cast<size_t>(slot)];
  layers.assign(layer_heads_.size(), {});
  auto* positions =
      reinterpret_cast<int32_t*>(memory_.data() + static_cast<size_t>(slot) * SlotBytes(heads_, capacity_));
  auto* weights = reinterpret_cast<float*>(positions + heads_ * capacity_);
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    layers[layer] = {positions, weights, layer_heads_[layer], capacity};
    positions += layer_heads_[layer] * capacity_;
    weights += layer_heads_[layer] * capacity_;
  }
}

void SlotMaps::Start(int slot, const AttentionPolicy* policy) {
  slots_[static_cast<size_t>(slot)].clear();
  if (policy == nullptr || !policy->Declare().slot_map) return;
  // A policy that keeps more than any sequence has never gives up a slot.
  Place(slot, std::min(policy->capacity(), capacity_));
  for (SlotMap& map : slots_[static_cast<size_t>(slot)]) {
    for (int head = 0; head < map.kv_heads; ++head) {
      std::iota(map.Positions(head), map.Positions(head) + map.capacity, 0);
      std::fill_n(map.Weights(head), map.capacity, 0.0f);
    }
  }
}

SlotMap* SlotMaps::Of(int slot) {
  std::vector<SlotMap>& layers = slots_[static_cast<size_t>(slot)];
  return layers.empty() ? nullptr : layers.data();
}

void SlotMaps::Fork(int from, int to) {
  slots_[static_cast<size_t>(to)].clear();
  const std::vector<SlotMap>& parent = slots_[static_cast<size_t>(from)];
  if (parent.empty()) return;
  Place(to, parent[0].capacity);
  for (size_t layer = 0; layer < parent.size(); ++layer) {
    const SlotMap& a = parent[layer];
    SlotMap& b = slots_[static_cast<size_t>(to)][layer];
    std::copy_n(a.positions, a.kv_heads * a.capacity, b.positions);
    std::copy_n(a.weights, a.kv_heads * a.capacity, b.weights);
  }
}

void SlotMaps::FillRandom(int slot, int64_t length, uint64_t seed, int first_kv_head) {
  std::vector<SlotMap>& layers = slots_[static_cast<size_t>(slot)];
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    SlotMap& map = layers[layer];
    KeepFirstAndLatest(length, map);
    for (int head = 0; head < map.kv_heads; ++head) {
      const uint32_t stream = static_cast<uint32_t>(layer << 12) + static_cast<uint32_t>(first_kv_head + head);
      float* weights = map.Weights(head);
      for (int64_t i = 0; i < std::min(length, map.capacity); ++i) {
        const uint64_t bits = RandomBits(seed, stream, static_cast<uint64_t>(i), DrawPurpose::kRandomHistory);
        weights[i] = static_cast<float>((bits >> 40) + 1) * 0x1p-25f;
      }
    }
  }
}

}  // namespace quire

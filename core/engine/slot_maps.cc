#include "core/engine/slot_maps.h"

#include <algorithm>
#include <numeric>

#include "core/base/device_memory.h"
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

Result<SlotMaps> SlotMaps::Create(const Context& ctx, const CacheConfig& cache, int64_t capacity, int slots) {
  SlotMaps maps;
  maps.ctx_ = ctx;
  maps.capacity_ = capacity;
  maps.layer_heads_ = LayerHeads(cache);
  maps.heads_ = std::accumulate(maps.layer_heads_.begin(), maps.layer_heads_.end(), int64_t{0});
  maps.slots_.resize(static_cast<size_t>(slots));
  ASSIGN_OR_RETURN(maps.memory_, Buffer::Create(Bytes(cache, capacity, slots), ctx.device));
  return maps;
}

void SlotMaps::Place(int slot, int64_t capacity) {
  std::vector<SlotMap>& layers = slots_[static_cast<size_t>(slot)];
  layers.assign(layer_heads_.size(), {});
  auto* positions =
      reinterpret_cast<int32_t*>(memory_.data() + static_cast<size_t>(slot) * SlotBytes(heads_, capacity_));
  auto* weights = reinterpret_cast<float*>(positions + heads_ * capacity);
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    layers[layer] = {positions, weights, layer_heads_[layer], capacity};
    positions += layer_heads_[layer] * capacity;
    weights += layer_heads_[layer] * capacity;
  }
}

Status SlotMaps::Start(int slot, const AttentionPolicy* policy) {
  std::vector<SlotMap>& layers = slots_[static_cast<size_t>(slot)];
  layers.clear();
  if (policy == nullptr || !policy->Declare().slot_map) return OkStatus();
  // A policy that keeps more than any sequence has never gives up a slot.
  const int64_t capacity = std::min(policy->capacity(), capacity_);
  Place(slot, capacity);
  if (heads_ == 0) return OkStatus();
  std::vector<int32_t> positions(static_cast<size_t>(heads_ * capacity));
  for (int64_t head = 0; head < heads_; ++head) {
    std::iota(positions.begin() + head * capacity, positions.begin() + (head + 1) * capacity, 0);
  }
  RETURN_IF_ERROR(CopyToDevice(ctx_.device, layers[0].positions, positions.data(), positions.size() * sizeof(int32_t),
                               ctx_.stream));
  return ClearOnDevice(ctx_.device, layers[0].weights, positions.size() * sizeof(float), ctx_.stream);
}

SlotMap* SlotMaps::Of(int slot) {
  std::vector<SlotMap>& layers = slots_[static_cast<size_t>(slot)];
  return layers.empty() ? nullptr : layers.data();
}

Status SlotMaps::Fork(int from, int to) {
  std::vector<SlotMap>& child = slots_[static_cast<size_t>(to)];
  child.clear();
  const std::vector<SlotMap>& parent = slots_[static_cast<size_t>(from)];
  if (parent.empty()) return OkStatus();
  Place(to, parent[0].capacity);
  if (heads_ == 0) return OkStatus();
  return CopyOnDevice(ctx_.device, child[0].positions, parent[0].positions, SlotBytes(heads_, parent[0].capacity),
                      ctx_.stream);
}

Status SlotMaps::FillRandom(int slot, int64_t length, uint64_t seed, int first_kv_head) {
  std::vector<int32_t> positions;
  std::vector<float> weights;
  for (size_t layer = 0; layer < slots_[static_cast<size_t>(slot)].size(); ++layer) {
    const SlotMap& there = slots_[static_cast<size_t>(slot)][layer];
    positions.assign(static_cast<size_t>(there.kv_heads * there.capacity), 0);
    weights.assign(positions.size(), 0.0f);
    const SlotMap map{positions.data(), weights.data(), there.kv_heads, there.capacity};
    KeepFirstAndLatest(length, map);
    for (int head = 0; head < map.kv_heads; ++head) {
      const uint32_t stream = static_cast<uint32_t>(layer << 12) + static_cast<uint32_t>(first_kv_head + head);
      for (int64_t i = 0; i < std::min(length, map.capacity); ++i) {
        const uint64_t bits = RandomBits(seed, stream, static_cast<uint64_t>(i), DrawPurpose::kRandomHistory);
        map.Weights(head)[i] = static_cast<float>((bits >> 40) + 1) * 0x1p-25f;
      }
    }
    const size_t bytes = positions.size() * sizeof(int32_t);
    RETURN_IF_ERROR(CopyToDevice(ctx_.device, there.positions, positions.data(), bytes, ctx_.stream));
    RETURN_IF_ERROR(CopyToDevice(ctx_.device, there.weights, weights.data(), bytes, ctx_.stream));
  }
  return OkStatus();
}

}  // namespace quire

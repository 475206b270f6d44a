#include "core/engine/attention_history.h"

#include <algorithm>

#include "core/base/check.h"
#include "core/base/device_memory.h"
#include "core/engine/philox.h"

namespace quire {

AttentionHistory::Shape AttentionHistory::Shape::Create(const CacheConfig& cache, int width, int64_t max_length) {
  Shape shape;
  shape.head_floats = (max_length + cache.page_size - 1) / cache.page_size * width;
  for (const CacheGroupConfig& group : cache.groups) {
    for (const int layer : group.layers) {
      if (static_cast<size_t>(layer) >= shape.layers.size()) shape.layers.resize(static_cast<size_t>(layer) + 1);
      shape.layers[static_cast<size_t>(layer)].kv_heads = group.window == 0 && width > 0 ? group.kv_heads : 0;
    }
  }
  for (Layer& layer : shape.layers) {
    layer.offset = shape.slot_floats;
    shape.slot_floats += layer.kv_heads * shape.head_floats;
  }
  return shape;
}

size_t AttentionHistory::Bytes(const CacheConfig& cache, int width, int slots, int64_t max_length) {
  return static_cast<size_t>(slots * Shape::Create(cache, width, max_length).slot_floats) * sizeof(float);
}

Result<AttentionHistory> AttentionHistory::Create(const Context& ctx, const CacheConfig& cache, int width, int slots,
                                                  int64_t max_length) {
  AttentionHistory history;
  history.ctx_ = ctx;
  history.shape_ = Shape::Create(cache, width, max_length);
  ASSIGN_OR_RETURN(history.memory_, Buffer::Create(Bytes(cache, width, slots, max_length), ctx.device));
  history.page_size_ = cache.page_size;
  history.slots_.resize(static_cast<size_t>(slots));
  return history;
}

// A GPU clears all of the slot at once, where the CPU clears what new pages take: no step has more to launch for them.
Status AttentionHistory::Start(int slot) {
  slots_[static_cast<size_t>(slot)].policy = nullptr;
  return on_gpu() ? ClearOnDevice(ctx_.device, SlotValues(slot), slot_bytes(), ctx_.stream) : OkStatus();
}

PageHistory* AttentionHistory::Begin(Slot& slot, int index, const AttentionPolicy* policy) {
  slot.policy = policy;
  slot.layers.assign(shape_.layers.size(), {});
  for (size_t i = 0; i < slot.layers.size(); ++i) {
    PageHistory& history = slot.layers[i];
    history.width = policy->Declare().history;
    history.kv_heads = shape_.layers[i].kv_heads;
    history.head_stride = shape_.head_floats;
    if (history.kv_heads > 0) history.values = SlotValues(index) + shape_.layers[i].offset;
  }
  return slot.layers.data();
}

PageHistory* AttentionHistory::Of(int slot, const AttentionPolicy* policy, int64_t length) {
  if (policy == nullptr || policy->Declare().history == 0) return nullptr;
  Slot& s = slots_[static_cast<size_t>(slot)];
  if (s.policy == nullptr) Begin(s, slot, policy);
  CHECK(s.policy == policy);
  const int64_t pages = (length + page_size_ - 1) / page_size_;
  for (PageHistory& history : s.layers) {
    if (history.values == nullptr || pages <= history.pages) continue;
    CHECK_LE(pages * history.width, history.head_stride);
    const int heads = on_gpu() ? 0 : history.kv_heads;  // a GPU's are 0 from the start
    for (int head = 0; head < heads; ++head) {
      std::fill(history.Head(head) + history.pages * history.width, history.Head(head) + pages * history.width, 0.0f);
    }
    history.pages = pages;
  }
  return s.layers.data();
}

Status AttentionHistory::Fork(int from, int to, const AttentionPolicy* policy) {
  Slot& parent = slots_[static_cast<size_t>(from)];
  Slot& child = slots_[static_cast<size_t>(to)];
  CHECK(child.policy == nullptr);
  if (parent.policy == nullptr) return OkStatus();
  Begin(child, to, policy);
  if (on_gpu()) {
    for (size_t i = 0; i < parent.layers.size(); ++i) child.layers[i].pages = parent.layers[i].pages;
    return CopyOnDevice(ctx_.device, SlotValues(to), SlotValues(from), slot_bytes(), ctx_.stream);
  }
  for (size_t i = 0; i < parent.layers.size(); ++i) {
    if (parent.layers[i].values != nullptr) parent.policy->Fork(parent.layers[i], &child.layers[i]);
  }
  return OkStatus();
}

Status AttentionHistory::Truncate(int slot, int64_t length) {
  Slot& s = slots_[static_cast<size_t>(slot)];
  if (s.policy == nullptr) return OkStatus();
  const int64_t pages = (length + page_size_ - 1) / page_size_;
  for (PageHistory& history : s.layers) {
    if (history.values == nullptr) continue;
    if (!on_gpu()) {
      s.policy->Truncate(length, page_size_, &history);
      continue;
    }
    if (pages >= history.pages) continue;
    const size_t bytes = sizeof(float) * static_cast<size_t>((history.pages - pages) * history.width);
    for (int head = 0; head < history.kv_heads; ++head) {
      RETURN_IF_ERROR(ClearOnDevice(ctx_.device, history.Head(head) + pages * history.width, bytes, ctx_.stream));
    }
    history.pages = pages;
  }
  return OkStatus();
}

Status AttentionHistory::FillRandom(int slot, const AttentionPolicy* policy, int64_t length, uint64_t seed,
                                    int first_kv_head) {
  PageHistory* layers = Of(slot, policy, length);
  if (layers == nullptr) return OkStatus();
  std::vector<float> values;  // of a KV head
  for (size_t layer = 0; layer < shape_.layers.size(); ++layer) {
    PageHistory& history = layers[layer];
    values.resize(static_cast<size_t>(history.pages * history.width));
    for (int head = 0; history.values != nullptr && head < history.kv_heads; ++head) {
      for (size_t i = 0; i < values.size(); ++i) {
        const uint32_t stream = static_cast<uint32_t>(layer << 12) + static_cast<uint32_t>(first_kv_head + head);
        const uint64_t bits = RandomBits(seed, stream, i, DrawPurpose::kRandomHistory);
        values[i] = static_cast<float>((bits >> 40) + 1) * 0x1p-25f;
      }
      RETURN_IF_ERROR(CopyToDevice(ctx_.device, history.Head(head), values.data(), values.size() * sizeof(float),
                                   ctx_.stream));
    }
  }
  return OkStatus();
}

}  // namespace quire

#include "kernels/selection/evicting.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "core/base/check.h"

namespace quire {

Status EvictOptions::ReadEvict(std::string_view policy, OptionReader* reader, bool* evict) {
  int choice = *evict ? 1 : 0;
  RETURN_IF_ERROR(reader->Choice("evict", {"false", "true"}, &choice));
  *evict = choice == 1;
  if (!*evict) return OkStatus();
  int64_t dense_layers = 0;
  double budget_share = 0;
  RETURN_IF_ERROR(reader->Integer("dense_layers", 0, int64_t{1} << 30, &dense_layers));
  RETURN_IF_ERROR(reader->Number("budget_share", 0, 1, &budget_share));
  if (dense_layers != 0 || budget_share != 0) {
    return InvalidArgument(
        "attention policy '" + std::string(policy) + "' evicts (evict=true) in all layers alike, for a page spans " +
        "them, and keeps the same number of tokens at any length; leave out " +
        (dense_layers != 0 ? "dense_layers=" + std::to_string(dense_layers) : "budget_share") + ", or evict");
  }
  return OkStatus();
}

Result<EvictOptions> EvictOptions::Read(std::string_view policy, OptionReader* reader, bool half_recent) {
  constexpr int64_t kMost = int64_t{1} << 30;
  EvictOptions o;
  RETURN_IF_ERROR(reader->Integer("token_budget", 1, kMost, &o.token_budget));
  if (half_recent) o.recent_tokens = o.token_budget / 2;
  RETURN_IF_ERROR(reader->Integer("sink_tokens", 0, kMost, &o.sink_tokens));
  RETURN_IF_ERROR(reader->Integer("recent_tokens", 0, kMost, &o.recent_tokens));
  const int64_t least = o.sink_tokens + o.recent_tokens + 1;
  if (o.token_budget < least) {
    return InvalidArgument(
        "attention policy '" + std::string(policy) + "': token_budget " + std::to_string(o.token_budget) +
        " has no room for " + std::to_string(o.sink_tokens) + " sink tokens, " + std::to_string(o.recent_tokens) +
        " recent ones and another to give up; give at least " + std::to_string(least) + " or fewer of them");
  }
  return o;
}

void KeepFirstAndLatest(int64_t length, const SlotMap& map) {
  const int64_t first = map.capacity - map.capacity / 2, left_out = std::max<int64_t>(0, length - map.capacity);
  for (int head = 0; head < map.kv_heads; ++head) {
    int32_t* positions = map.Positions(head);
    for (int64_t slot = 0; slot < map.capacity; ++slot) {
      positions[slot] = static_cast<int32_t>(slot < first ? slot : slot + left_out);
    }
  }
}

int WeighingPolicy::MaxPages(int64_t length, int page_size) const {
  return static_cast<int>((std::min(length, options_.token_budget) + page_size - 1) / page_size);
}

void WeighingPolicy::Select(const Context&, const SelectParams&, SelectionView, void*) const {
  CHECK(false);  // an evicting sequence attends to all that it has
}

int32_t WeighingPolicy::Evict(int64_t position, int head, SlotMap* map) const {
  CHECK(map != nullptr && position >= map->capacity);
  int32_t* positions = map->Positions(head);
  float* weights = map->Weights(head);
  int64_t best = -1;
  float lightest = 0;
  for (int64_t slot = 0; slot < map->capacity; ++slot) {
    const int32_t p = positions[slot];
    if (p < options_.sink_tokens || p >= position - options_.recent_tokens) continue;
    const float weight = std::isnan(weights[slot]) ? INFINITY : weights[slot];  // a NaN leaves last
    if (best >= 0 && (weight > lightest || (weight == lightest && p > positions[best]))) continue;
    best = slot;
    lightest = weight;
  }
  CHECK_GE(best, 0);  // Read has seen to that
  positions[best] = static_cast<int32_t>(position);
  weights[best] = 0;
  return static_cast<int32_t>(best);
}

Status WeighingPolicy::EvictOnGpu(Stream stream, const EvictParams& p) const {
  return cuda::EvictSlots(stream, options_.sink_tokens, options_.recent_tokens, p);
}

Status WeighingPolicy::RememberSlotsOnGpu(Stream stream, const RememberSlotsParams& p) const {
  return cuda::RememberSlots(stream, rule(), p);
}

}  // namespace quire

// What evicting modes share (evict=true of streaming, h2o and tova): their options, and for those that weigh slots the
// choice of the one that is given up. A sequence keeps token_budget tokens in each layer and KV head, whatever its
// length; a page spans layers and heads, so no page becomes free, but a slot of each head is written over. What a
// weight is, is each policy's own.
//
// With the token at position p a slot is taken whose token is none of the first sink_tokens nor of the last
// recent_tokens before p, and whose weight is the smallest; of equal ones the earlier token leaves. The token then
// attends to all slots, its own included. So a token leaves whenever one comes, as if the papers' caches of
// token_budget were cut at the beginning of a step and not at the end of the one before. Keys keep the positions that
// they came with.
#pragma once

#include <cstdint>
#include <string_view>

#include "kernels/cuda/slot_map.h"
#include "kernels/selection/options.h"
#include "kernels/selection/policy.h"

namespace quire {

struct EvictOptions {
  int64_t token_budget = 2048;
  int64_t sink_tokens = 4;
  int64_t recent_tokens = 0;

  // Sets *evict if the option is there. When it is true, dense_layers and budget_share may be given as 0 only:
  // INVALID_ARGUMENT.
  static Status ReadEvict(std::string_view policy, OptionReader* reader, bool* evict);
  // Behind ReadEvict. half_recent: recent_tokens is half of the budget when nobody gives it, else 0. INVALID_ARGUMENT
  // unless sinks, recent tokens and another one have room. Finish is left to the caller.
  static Result<EvictOptions> Read(std::string_view policy, OptionReader* reader, bool half_recent);
};

// How PolicyInfo::options names the switch.
inline constexpr std::string_view kEvictOption =
    ", evict (true or false; default false: with true sink_tokens is 4 by default, all by tokens, in all layers)";

// Of a slot and KV head in a SlotMap.
inline constexpr int64_t kSlotMapEntryBytes = sizeof(int32_t) + sizeof(float);
// For benchmarks: the map's positions become those of a sequence of `length` tokens that has kept its first ones and,
// with as many slots, its latest.
void KeepFirstAndLatest(int64_t length, const SlotMap& map);

class WeighingPolicy : public AttentionPolicy {
 public:
  explicit WeighingPolicy(const EvictOptions& options) : options_(options) {}

  int64_t token_budget() const override { return options_.token_budget; }
  int64_t capacity() const override { return options_.token_budget; }
  bool RunsOnGpu() const override { return true; }
  PageDataNeeds Declare() const override { return {.queries = false, .slot_map = true}; }
  bool IsDense(int64_t length, int, int) const override { return length <= options_.token_budget; }
  int MaxPages(int64_t length, int page_size) const override;
  size_t SelectWorkspace(const SelectParams&) const override { return 0; }
  int64_t SelectBytes(const SelectParams&) const override { return 0; }
  void Select(const Context&, const SelectParams&, SelectionView, void*) const override;
  int32_t Evict(int64_t position, int head, SlotMap* map) const override;
  Status EvictOnGpu(Stream stream, const EvictParams& params) const override;
  Status RememberSlotsOnGpu(Stream stream, const RememberSlotsParams& params) const override;

 protected:
  // How a GPU does what RememberSlots does.
  virtual cuda::SlotRule rule() const = 0;

 private:
  EvictOptions options_;
};

}  // namespace quire

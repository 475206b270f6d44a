// DecoderInputs: the small arrays of a step where kernels read them. On the CPU these are the host's own; on a GPU one copy
// brings all of them at the step's beginning.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/base/context.h"
#include "core/base/device_memory.h"
#include "core/base/status.h"
#include "core/model/decoder.h"
#include "core/model/decoder_rows.h"
#include "core/model/decoder_scratch.h"

namespace quire {

class DecoderInputs {
 public:
  // Points at rows' and caches' arrays, which must stay as they are until the step's work is done, or at copies of them.
  // The copies of a filled up step lie where those of all such steps do that have as many rows and are about as long,
  // unless memory had to grow in between.
  Status Bring(const Context& ctx, const DecoderRows& rows, std::span<const CacheView> caches);

  // As in DecoderRows.
  const int32_t* tokens = nullptr;        // [rows]
  const int32_t* seq = nullptr;           // [rows]
  const int32_t* pos = nullptr;           // [rows]
  const int32_t* len = nullptr;           // [rows]
  const int32_t* slot = nullptr;          // [rows]; null where no row overwrites
  const int32_t* turns = nullptr;         // [decode_rows], of none where no row is turned
  const int32_t* logit_places = nullptr;  // [logit rows]
  const PrefillChunk* prefill = nullptr;
  const PrefillChunk* prefill_with_logits = nullptr;
  std::vector<PageTableView> tables;  // [cache kind]; of a filled up step with empty sequences, as many as rows in all
  // What is remembered in a layer, of decode rows and then of prefill chunks; null where no sequence has a history.
  const PageHistory* History(int layer) const { return history == nullptr ? nullptr : history + layer * histories_; }
  const PageHistory* history = nullptr;
  // The maps of slots of a layer, likewise.
  const SlotMap* Slots(int layer) const { return slots == nullptr ? nullptr : slots + layer * histories_; }
  const SlotMap* slots = nullptr;

  size_t bytes() const { return memory_.size(); }

 private:
  // all: of what rows and prompts have of this kind, those of each layer side by side; none if nobody has any.
  template <typename T>
  void Collect(const std::vector<T*>& of_rows, T* ForwardChunk::*of_chunk, const DecoderRows& rows, int layers,
               std::vector<T>* all);
  // An array to bring, and the pointer to it that is to be set.
  struct Item {
    const void* data;
    size_t bytes;
    const void** pointer;
    size_t room = 0;  // bytes from its beginning to the next one's; at least `bytes`
    int repeated = 0;  // so often its last 32-bit number stands once more behind it, within the room
  };

  int64_t histories_ = 0;  // of a layer, as maps
  std::vector<PageHistory> all_histories_;
  std::vector<SlotMap> all_slots_;
  std::vector<Item> items_;
  HostBuffer staging_;
  GrowBuffer memory_;
};

}  // namespace quire

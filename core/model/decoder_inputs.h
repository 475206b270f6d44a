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
  Status Bring(const Context& ctx, const DecoderRows& rows, std::span<const CacheView> caches);

  // As in DecoderRows.
  const int32_t* tokens = nullptr;        // [rows]
  const int32_t* seq = nullptr;           // [rows]
  const int32_t* pos = nullptr;           // [rows]
  const int32_t* len = nullptr;           // [rows]
  const int32_t* logit_places = nullptr;  // [logit rows]
  const PrefillChunk* prefill = nullptr;
  const PrefillChunk* prefill_with_logits = nullptr;
  std::vector<PageTableView> tables;  // [cache kind]

  size_t bytes() const { return memory_.size(); }

 private:
  // An array to bring, and the pointer to it that is to be set.
  struct Item {
    const void* data;
    size_t bytes;
    const void** pointer;
  };

  std::vector<Item> items_;
  HostBuffer staging_;
  GrowBuffer memory_;
};

}  // namespace quire

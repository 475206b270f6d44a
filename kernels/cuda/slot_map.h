// Maps of slots on the GPU, for the policies that weigh the slots of an evicting sequence: which slot a row takes, and the
// attention that rows have paid. Pointers are device memory. What leaves and what is remembered is as
// kernels/selection/{evicting,h2o,tova}.cc say it: the same map and mass give the same slots and the same bits.
#pragma once

#include <cstdint>

#include "core/base/device.h"
#include "core/base/status.h"
#include "kernels/slot_map.h"

namespace quire::cuda {

// The lightest slot of each (row, KV head) whose position is none of the first `sinks` nor of the last `recent` before the
// row's; of equal ones the earlier position, and a NaN last. One of these there must be. It gets the row's position and no
// weight.
// Bytes: the rows' maps, read.
Status EvictSlots(Stream stream, int64_t sinks, int64_t recent, const EvictParams& params);

enum class SlotRule {
  kSum,   // h2o: of all masses since the token came
  kLast,  // tova: the last one
};
// Bytes: the mass, read, and the weights of the slots that the rows attended to.
Status RememberSlots(Stream stream, SlotRule rule, const RememberSlotsParams& params);

}  // namespace quire::cuda

// The attention mass that rows of a prompt give to pages or tokens, and decode rows to slots, on the GPU: the contract of
// kernels/attention_mass.h with its parameter structs, whose pointers are device memory here. f32 throughout, whatever attention
// rounded.
//
// FLOPs: 2 · k_dim for each (row, query head, key), on the plain units. Bytes: K once per eight rows of a prompt, or four query
// heads of a decode row, mostly from caches.
#pragma once

#include "core/base/device.h"
#include "core/base/status.h"
#include "kernels/attention_mass.h"

namespace quire::cuda {

// Compiled for PlainMod and SoftCapMod.
template <class Mod>
Status PrefillMass(Stream stream, const PrefillMassParams& params, const Mod& mod);
template <class Mod>
Status SlotMass(Stream stream, const SlotMassParams& params, const Mod& mod);

}  // namespace quire::cuda

// The attention mass that rows of a prompt give to pages, on the GPU: the contract of kernels/attention_mass.h with its parameter
// struct, whose pointers are device memory here. By pages alone. f32 throughout, whatever prefill attention rounded.
//
// FLOPs: 2 · k_dim for each (row, query head, key), on the plain units. Bytes: K once per eight rows, mostly from caches.
#pragma once

#include "core/base/device.h"
#include "core/base/status.h"
#include "kernels/attention_mass.h"

namespace quire::cuda {

// Compiled for PlainMod and SoftCapMod.
template <class Mod>
Status PrefillMass(Stream stream, const PrefillMassParams& params, const Mod& mod);

}  // namespace quire::cuda

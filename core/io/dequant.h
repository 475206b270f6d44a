// Element conversions at load: ggml's block formats to float, and runs of floats, halves and bfloat16s into one
// another. Block layouts are facts of ggml's public format (ggml-common.h, ggml-quants.c); the expected values of the
// tests come from the independent Python package `gguf`. Single threaded: callers split big tensors by slices.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/base/dtype.h"
#include "core/io/weight_source.h"

namespace quire {

// Expands `blocks` whole blocks of a quantised type to blocks * BlockElements(type) floats.
// src: blocks * BlockBytes(type) bytes of any alignment. CHECK-fails for a float type.
void DequantizeBlocks(StorageType type, const std::byte* src, int64_t blocks, float* dst);

// dst[i] = src[i] rounded to nearest even, i < n. dtype is F32, BF16 or F16.
void ConvertFromFloat(const float* src, int64_t n, DType dtype, void* dst);

// dst[i] = src[i] for a float storage type (F32, F16, BF16) of any alignment.
void ConvertToFloat(StorageType type, const std::byte* src, int64_t n, float* dst);

}  // namespace quire

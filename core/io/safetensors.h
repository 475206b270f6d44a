// safetensors files (https://github.com/huggingface/safetensors#format), one or sharded with an index, as a
// WeightSource over mapped bytes. The header is untrusted: every name, type, shape and offset is checked before use.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/base/status.h"
#include "core/io/weight_source.h"
#include "core/io/weight_source_mapped.h"

namespace quire {

// The tensors of one file, pointing into `bytes`; `name` is used in messages. INVALID_ARGUMENT for anything wrong:
// truncated, overlapping, with gaps or bytes left over, offsets that don't match type and shape, a dtype other than
// F32, F16 and BF16, more than two dimensions (in longer shapes those of size 1 are dropped first).
Result<std::vector<MappedTensor>> ParseSafetensors(std::span<const std::byte> bytes, const std::string& name);

// A .safetensors file, or a folder with model.safetensors or model.safetensors.index.json and its shards.
// NOT_FOUND names the file that is missing.
Result<std::unique_ptr<WeightSource>> OpenSafetensors(const std::string& path);

}  // namespace quire

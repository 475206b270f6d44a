// EngineOptions as bytes: rank 0's options go to every rank, so that all make the same engine. What belongs to one rank
// (communicator, progress mark, callbacks) stays behind.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/base/status.h"
#include "core/engine/engine.h"

namespace quire {

void SerializeOptions(const EngineOptions& options, std::vector<uint8_t>* out);
// INVALID_ARGUMENT for bytes that are none; the values are checked by CheckEngineOptions.
Result<EngineOptions> ParseOptions(std::span<const uint8_t> bytes);

}  // namespace quire

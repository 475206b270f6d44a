// Shared by the tests of engines on a GPU: options of small models.
#pragma once

#include "tests/core/engine/engine_fixture.h"

namespace quire {

inline EngineOptions OnGpu(EngineOptions options) {
  options.device = "cuda";
  return options;
}

// On the CPU, as the fixture says.
inline EngineOptions Small(const char* model) {
  EngineOptions options = ModelOptions(model);
  options.kv_cache_bytes = 2 << 20;
  options.max_num_batched_tokens = 64;
  return options;
}

}  // namespace quire

// Strict JSON for files that decide how a model runs: valid UTF-8, no key twice in an object, bounded depth.
// For .cc files only: the library behind it must not reach public headers.
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

#include "core/base/status.h"

namespace quire {

// INVALID_ARGUMENT with `what` (a file's path), the place and the reason.
Result<nlohmann::json> ParseJson(std::string_view text, std::string_view what);

}  // namespace quire

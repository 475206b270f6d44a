// What the subcommands do with an engine: open it with progress shown, run requests to their end with Ctrl-C and closed
// pipes looked at between steps, and read the files that requests are made of.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/base/status.h"
#include "core/engine/engine.h"
#include "core/model/model_config.h"
#include "kernels/selection/policy.h"
#include "launch/group.h"
#include "launch/output.h"

namespace quire::launch {

// Engine::Create on the seat's group, with loading shown on stderr when it takes long. NOT_FOUND and the rest as Create
// gives them.
Result<std::unique_ptr<Engine>> OpenEngine(const Seat& seat, EngineOptions options);
// The same for commands that need no text: a model without tokenizer files is opened without one.
Result<std::unique_ptr<Engine>> OpenEngineForTokenIds(const Seat& seat, EngineOptions options);

// What the engine makes its policies for. local_ranks: of a host, where the options leave the choice of a device open.
Result<PolicyShape> ShapeOf(const EngineOptions& options, const ModelConfig& config, int local_ranks = 1);

// Steps until nothing is left, calling after_step (may be empty) after each. On Ctrl-C or a broken stdout it cancels
// `ids`, steps until they have ended, and returns CANCELLED.
Status RunToEnd(Engine& engine, const std::vector<std::string>& ids, const std::function<void()>& after_step = {});

// A text file, whole ("-": stdin). INVALID_ARGUMENT when it is empty or no UTF-8 (with the byte's offset).
Result<std::string> ReadText(const std::string& path);
// A JSON array of integers. INVALID_ARGUMENT says what it is instead.
Result<std::vector<int32_t>> ReadTokenIds(const std::string& path);
Result<std::vector<int32_t>> TokenIdsOf(const Json& json, const std::string& name);  // name: for what it says

// Offset of the first byte that is no UTF-8, or npos.
size_t FindInvalidUtf8(const std::string& text);

}  // namespace quire::launch

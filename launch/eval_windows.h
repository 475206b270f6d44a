// The text of `quire eval perplexity`, `recall` and `agreement`, cut into windows: the first half of each is prefilled densely, every
// token of the second half is a decode step of its own, for dense as for the others (a prompt scored by prefill would
// measure nothing). Also runs them.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "core/base/status.h"
#include "core/engine/engine.h"
#include "launch/progress.h"

namespace quire::launch {

struct Window {
  std::vector<int32_t> prompt;  // prefilled
  // The first forced token only enters the cache: its own logits come from the prefill. The rest are scored.
  std::vector<int32_t> forced;
};

struct WindowFlags {
  std::string text_file;
  int64_t context = 2048, max_tokens = 0;  // of a window; of the text, 0: all
  int64_t scored = 0;                      // at most so many tokens of a window, 0: its second half
};

// --text-file, --context and --max-tokens.
void AddWindowFlags(CLI::App& app, WindowFlags* flags);
// --tokens: how many of each window are scored.
void AddScoredFlag(CLI::App& app, WindowFlags* flags);
// What can be told before an engine is opened.
Status CheckWindowFlags(const WindowFlags& flags);
// The text's ids in windows, each opened by the ids that the tokenizer puts before any text (BOS; often none).
// INVALID_ARGUMENT when the text doesn't reach the second half of the first.
Result<std::vector<Window>> ReadWindows(const Engine& engine, const WindowFlags& flags, const std::string& text);

struct WindowSums {
  double nll = 0;
  int64_t tokens = 0;
  AttentionReads reads;
  double seconds = 0;  // of all policies that shared the windows' prompts
};
// Runs all windows under each policy.
Result<std::vector<WindowSums>> RunWindows(Engine& engine, const std::vector<AttentionSpec>& specs,
                                           const std::vector<Window>& windows, Progress& progress);

// Whether some layer selects from a window's first scored token on.
Result<bool> Selects(const Engine& engine, const AttentionSpec& spec, int64_t context);

}  // namespace quire::launch

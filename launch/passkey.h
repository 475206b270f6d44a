// The pass key task: a five-digit key hidden at some depth of a long filler, with the question at the end. Prompts are
// cut so that they have the wanted number of tokens, or as few less as whole characters allow.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/base/status.h"
#include "core/io/tokenizer.h"

namespace quire::launch {

enum class PasskeyForm {
  kText,  // the bare text, ending in "The pass key is ": for models that only go on writing
  kChat,  // the text as a user's message, the assistant's answer begun with "The pass key is"
};

class PasskeyTask {
 public:
  // tokenizer must outlive the task. filler: text that is repeated; empty takes the usual sentences about grass and
  // sky.
  PasskeyTask(const Tokenizer* tokenizer, PasskeyForm form, std::string filler);

  // A prompt of at most `tokens` ids with `key` at `depth` (0: at the beginning, 1: right before the question).
  // INVALID_ARGUMENT when not even the task without filler fits.
  Result<std::vector<int32_t>> MakePrompt(int64_t tokens, double depth, const std::string& key) const;

 private:
  Result<std::vector<int32_t>> Encode(size_t filler_bytes, double depth, const std::string& key) const;

  const Tokenizer* tokenizer_;
  PasskeyForm form_;
  std::string filler_;
};

// A key of five digits that depends on its arguments alone.
std::string PasskeyFor(uint64_t seed, int64_t length, int depth_index, int trial);

// Whether the first run of digits in `answer` is the key.
bool AnswersPasskey(const std::string& answer, const std::string& key);

}  // namespace quire::launch

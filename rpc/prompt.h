// A Prompt → token ids, by the service's tokenizer and chat template. Internal to rpc/.
#pragma once

#include <cstdint>
#include <vector>

#include "core/base/status.h"
#include "core/io/tokenizer.h"
#include "quire/v1/common.pb.h"

namespace quire::rpc {

struct PromptLimits {
  int64_t max_model_len = 0;
  int64_t max_token_bytes = 0;  // of the tokenizer's longest entry: MaxTokenBytes
};

// Bytes of the longest text that one token stands for. Looks at the whole vocabulary: once, at the start.
int64_t MaxTokenBytes(const Tokenizer& tokenizer);

// tokenizer may be null. INVALID_ARGUMENT: no prompt, an empty one, text without a tokenizer, text or messages that
// can't fit the context whatever their tokens (told without encoding them), more tokens than the context, roles that
// aren't known or that the template doesn't take. UNIMPLEMENTED: a template that isn't known.
Result<std::vector<int32_t>> EncodePrompt(const v1::Prompt& prompt, const Tokenizer* tokenizer,
                                          const PromptLimits& limits);

}  // namespace quire::rpc

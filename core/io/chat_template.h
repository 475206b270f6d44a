// Chat templates of the models we name (ChatML, Llama-3, Llama-2, Mistral, Gemma), recognised by the text of the
// model's own Jinja template; any other is refused with a sentence rather than imitated wrongly.
#pragma once

#include <span>
#include <string>

#include "core/base/status.h"
#include "core/io/tokenizer.h"

namespace quire {

struct ChatMessage {
  std::string role;     // "system", "user" or "assistant"
  std::string content;  // UTF-8
};

// The prompt for `messages` with the opening of the assistant's turn at its end, to be encoded with
// add_special_tokens = false (the text has its own BOS where the template has one) and parse_special_tokens =
// true. UNIMPLEMENTED for a template that is not known; INVALID_ARGUMENT for roles it does not take.
Result<std::string> ApplyChatTemplate(const Tokenizer& tokenizer, std::span<const ChatMessage> messages);

}  // namespace quire

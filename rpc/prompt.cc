// See prompt.h.
#include "rpc/prompt.h"

#include <algorithm>
#include <string>

#include "core/io/chat_template.h"

namespace quire::rpc {
namespace {

// A normalizer may drop characters before tokens are made of them; this much is allowed for.
constexpr int64_t kNormalizerSlack = 4;
constexpr int64_t kAlwaysEncoded = 1 << 20;  // bytes that are never refused unseen

Status CheckBytes(size_t bytes, const PromptLimits& limits) {
  const int64_t longest = limits.max_model_len * std::max<int64_t>(1, limits.max_token_bytes);
  const int64_t allowed = std::max(kAlwaysEncoded, kNormalizerSlack * longest);
  if (static_cast<int64_t>(bytes) <= allowed) return OkStatus();
  return InvalidArgument("the prompt has " + std::to_string(bytes) + " bytes of text, which the context of " +
                         std::to_string(limits.max_model_len) + " tokens can't hold; shorten it");
}

Status CheckTokens(size_t tokens, const PromptLimits& limits) {
  if (static_cast<int64_t>(tokens) <= limits.max_model_len) return OkStatus();
  return InvalidArgument("the prompt has " + std::to_string(tokens) + " tokens; the context takes " +
                         std::to_string(limits.max_model_len) + " (--max-model-len)");
}

}  // namespace

int64_t MaxTokenBytes(const Tokenizer& tokenizer) {
  size_t longest = 1;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    longest = std::max(longest, tokenizer.TokenBytes(id, /*skip_special=*/false).size());
  }
  return static_cast<int64_t>(longest);
}

Result<std::vector<int32_t>> EncodePrompt(const v1::Prompt& prompt, const Tokenizer* tokenizer,
                                          const PromptLimits& limits) {
  if (prompt.prompt_case() == v1::Prompt::kTokenIds) {
    if (prompt.token_ids().ids().empty()) return InvalidArgument("the prompt has no token ids; give at least one");
    RETURN_IF_ERROR(CheckTokens(static_cast<size_t>(prompt.token_ids().ids_size()), limits));
    return std::vector<int32_t>(prompt.token_ids().ids().begin(), prompt.token_ids().ids().end());
  }
  if (prompt.prompt_case() == v1::Prompt::PROMPT_NOT_SET) {
    return InvalidArgument("a prompt is not set; give text, token_ids or messages");
  }
  if (tokenizer == nullptr) {
    return InvalidArgument("this model has no tokenizer, so it takes no text; give token_ids");
  }
  EncodeOptions options;
  std::vector<int32_t> ids;
  if (prompt.prompt_case() == v1::Prompt::kText) {
    if (prompt.text().empty()) {
      return InvalidArgument("the prompt's text is empty; to let the model write from nothing, give its BOS as token_ids");
    }
    RETURN_IF_ERROR(CheckBytes(prompt.text().size(), limits));
    if (prompt.has_add_special_tokens()) options.add_special_tokens = prompt.add_special_tokens();
    if (prompt.has_parse_special_tokens()) options.parse_special_tokens = prompt.parse_special_tokens();
    ASSIGN_OR_RETURN(ids, tokenizer->Encode(prompt.text(), options));
  } else {
    const int count = prompt.messages().messages_size();
    if (count == 0) return InvalidArgument("the prompt has no messages; give at least one of role 'user'");
    if (count > limits.max_model_len) {
      return InvalidArgument("the prompt has " + std::to_string(count) + " messages, which the context of " +
                             std::to_string(limits.max_model_len) + " tokens can't hold; leave some out");
    }
    size_t bytes = 0;
    for (const v1::Message& message : prompt.messages().messages()) {
      bytes += message.role().size() + message.content().size();
    }
    RETURN_IF_ERROR(CheckBytes(bytes, limits));
    std::vector<ChatMessage> messages;
    for (const v1::Message& message : prompt.messages().messages()) {
      messages.push_back({message.role(), message.content()});
    }
    ASSIGN_OR_RETURN(const std::string text, ApplyChatTemplate(*tokenizer, messages));
    options.add_special_tokens = false;
    ASSIGN_OR_RETURN(ids, tokenizer->Encode(text, options));
  }
  if (ids.empty()) return InvalidArgument("the prompt's text has no tokens; give more of it");
  RETURN_IF_ERROR(CheckTokens(ids.size(), limits));
  return ids;
}

}  // namespace quire::rpc

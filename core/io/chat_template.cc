// See chat_template.h. A template is known by expressions that only its family has, compared in canonical form
// (chat_template_text.h); what a family's templates vary (default system prompt, spaces, thinking) is read out of
// the template, and a template that does anything else is refused.
#include "core/io/chat_template.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "core/io/chat_template_text.h"
#include "core/io/unicode.h"

namespace quire {
namespace {

constexpr std::string_view kThinkEnd = "</think>";

Status Unknown(const std::string& why) {
  return Unimplemented(
      "the model's chat template is not one of those that are known (ChatML, Llama-3, Llama-2, Mistral, Gemma): " + why +
      "; give the prompt with --prompt instead");
}

// Python's str.strip(), which Jinja's trim is.
std::string Trim(std::string_view text) {
  const auto is_space = [](char32_t c) { return IsWhitespace(c) || (c >= 0x1C && c <= 0x1F); };
  size_t begin = text.size(), end = 0;
  for (size_t pos = 0; pos < text.size();) {
    const size_t at = pos;
    if (is_space(NextCodePoint(text, &pos))) continue;
    begin = std::min(begin, at);
    end = pos;
  }
  return begin < end ? std::string(text.substr(begin, end - begin)) : "";
}

std::string StripNewlines(std::string_view text, bool left, bool right) {
  while (left && text.starts_with('\n')) text.remove_prefix(1);
  while (right && text.ends_with('\n')) text.remove_suffix(1);
  return std::string(text);
}

// All "<|…|>" of the template are among `known`.
Status CheckMarkers(const CanonicalTemplate& jinja, std::initializer_list<std::string_view> known) {
  for (size_t at = 0; (at = jinja.text.find("<|", at)) != std::string::npos;) {
    const size_t end = jinja.text.find("|>", at);
    if (end == std::string::npos) break;
    const std::string_view marker = std::string_view(jinja.text).substr(at, end + 2 - at);
    if (std::find(known.begin(), known.end(), marker) == known.end()) {
      return Unknown("it uses " + std::string(marker));
    }
    at = end + 2;
  }
  return OkStatus();
}

// Messages after an optional first system message take turns: user, assistant, user, …
Status CheckTurns(std::span<const ChatMessage> messages) {
  for (size_t i = 0; i < messages.size(); ++i) {
    const char* wanted = i % 2 == 0 ? "user" : "assistant";
    if (messages[i].role != wanted) {
      return InvalidArgument("this model's chat template wants turns of user and assistant after an optional system " +
                             std::string("message; here a message of \"") + messages[i].role + "\" stands where \"" +
                             wanted + "\" is wanted");
    }
  }
  return OkStatus();
}

struct Special {
  std::string bos, eos;
};

// ---- ChatML ----

// The default system prompt: the text of a literal '<|im_start|>system\n…<|im_end|>\n'.
Result<std::optional<std::string>> DefaultSystem(const CanonicalTemplate& jinja) {
  constexpr std::string_view kOpen = "'<|im_start|>system\n";
  constexpr std::string_view kClose = "<|im_end|>\n'";
  std::optional<std::string> found;
  for (const std::string& block : jinja.blocks) {
    const size_t at = block.find(kOpen);
    if (at == std::string::npos || block.substr(at + kOpen.size(), 1) == "'") continue;
    const size_t begin = at + kOpen.size();
    const size_t end = block.find(kClose, begin);
    if (end == std::string::npos) return Unknown("it composes its system message");
    const std::string text = block.substr(begin, end - begin);
    if (found.has_value() && *found != text) return Unknown("it has two default system messages");
    found = text;
  }
  return found;
}

// Qwen3's assistant turn: thoughts of earlier answers are left out, those since the last question kept.
std::string ThinkingTurn(const ChatMessage& message, bool since_question, bool last) {
  std::string content = message.content;
  std::string thoughts;
  const size_t first_end = message.content.find(kThinkEnd);
  if (first_end != std::string::npos) {
    content = StripNewlines(message.content.substr(message.content.rfind(kThinkEnd) + kThinkEnd.size()), true, false);
    thoughts = StripNewlines(message.content.substr(0, first_end), false, true);
    const size_t begin = thoughts.rfind("<think>");
    if (begin != std::string::npos) thoughts.erase(0, begin + 7);
    thoughts = StripNewlines(thoughts, true, false);
  }
  if (!since_question || !(last || !thoughts.empty())) return content;
  return "<think>\n" + StripNewlines(thoughts, true, true) + "\n</think>\n\n" + StripNewlines(content, true, false);
}

bool IsQuestion(const ChatMessage& message) {
  return message.role == "user" &&
         !(message.content.starts_with("<tool_response>") && message.content.ends_with("</tool_response>"));
}

Result<std::string> RenderChatMl(const CanonicalTemplate& jinja, const Special& special,
                                 std::span<const ChatMessage> messages) {
  constexpr std::string_view kTurn = "'<|im_start|>'+message.role+'\n'+message.content+'<|im_end|>\n'";
  constexpr std::string_view kTurnOfVariable = "'<|im_start|>'+message.role+'\n'+content+'<|im_end|>\n'";
  if (!jinja.Has(kTurn) && !jinja.Has(kTurnOfVariable)) return Unknown("its turns are not ChatML's");
  RETURN_IF_ERROR(CheckMarkers(jinja, {"<|im_start|>", "<|im_end|>", "<|endoftext|>"}));
  for (const char* part : {"|trim", "strftime_now", "reasoning_mode", "custom_instructions"}) {
    if (jinja.Has(part)) return Unknown(std::string("it uses ") + part);
  }
  const bool thinking = jinja.Has(kThinkEnd);
  if (thinking && !jinja.Has("ns.last_query_index")) return Unknown("it treats thoughts in its own way");
  const bool opens_thoughts = jinja.Has("'<|im_start|>assistant\n<think>\n'");
  if (!jinja.Has("'<|im_start|>assistant\n'") && !opens_thoughts) return Unknown("it opens the answer in its own way");

  std::string out;
  if (jinja.Has("bos_token")) {
    if (jinja.blocks.empty() || jinja.blocks[0] != "{{bos_token}}") return Unknown("it uses bos_token in its own way");
    out += special.bos;
  }
  ASSIGN_OR_RETURN(const std::optional<std::string> system, DefaultSystem(jinja));
  if (system.has_value() && messages[0].role != "system") out += "<|im_start|>system\n" + *system + "<|im_end|>\n";
  size_t last_question = messages.size() - 1;
  for (size_t i = messages.size(); i-- > 0;) {
    if (IsQuestion(messages[i])) {
      last_question = i;
      break;
    }
  }
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    const bool answer = message.role == "assistant";
    out += "<|im_start|>" + message.role + "\n";
    out += thinking && answer ? ThinkingTurn(message, i > last_question, i + 1 == messages.size()) : message.content;
    out += "<|im_end|>\n";
  }
  out += opens_thoughts ? "<|im_start|>assistant\n<think>\n" : "<|im_start|>assistant\n";
  return out;
}

// ---- Llama 3 ----

Result<std::string> RenderLlama3(const CanonicalTemplate& jinja, const Special& special,
                                 std::span<const ChatMessage> messages) {
  if (!jinja.Has("'<|start_header_id|>'+message.role+'<|end_header_id|>\n\n'+message.content|trim+'<|eot_id|>'")) {
    return Unknown("its turns are not Llama-3's");
  }
  RETURN_IF_ERROR(CheckMarkers(jinja, {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>",
                                       "<|eom_id|>", "<|begin_of_text|>"}));
  if (!jinja.Has("bos_token")) return Unknown("it has no bos_token");
  const auto turn = [](const std::string& role, const std::string& content) {
    return "<|start_header_id|>" + role + "<|end_header_id|>\n\n" + content + "<|eot_id|>";
  };
  std::string out = special.bos;
  constexpr std::string_view kCutting = "'Cutting Knowledge Date: December 2023\n'";
  if (jinja.Has(kCutting)) {
    // Llama 3.1 and later always have a system message with two dates. Today's is the template's own fallback,
    // so that a prompt does not change from day to day.
    constexpr std::string_view kDate = "date_string='";
    const size_t at = jinja.text.find(kDate);
    if (at == std::string::npos) return Unknown("it has no date of its own");
    const size_t begin = at + kDate.size();
    const std::string date = jinja.text.substr(begin, jinja.text.find('\'', begin) - begin);
    std::string system;
    if (messages[0].role == "system") {
      system = Trim(messages[0].content);
      messages = messages.subspan(1);
    }
    out += turn("system", "Cutting Knowledge Date: December 2023\nToday Date: " + date + "\n\n" + system);
  } else if (jinja.Has("<|start_header_id|>system")) {
    return Unknown("it has a system message of its own");
  }
  for (const ChatMessage& message : messages) out += turn(message.role, Trim(message.content));
  return out + "<|start_header_id|>assistant<|end_header_id|>\n\n";
}

// ---- Llama 2 ----

Result<std::string> RenderLlama2(const CanonicalTemplate& jinja, const Special& special,
                                 std::span<const ChatMessage> messages) {
  if (!jinja.Has("bos_token+'[INST] '+content.strip()+' [/INST]'") || !jinja.Has("' '+content.strip()+' '+eos_token") ||
      !jinja.Has("'<<SYS>>\n'+system_message+'\n<</SYS>>\n\n'+message.content")) {
    return Unknown("its turns are not Llama-2's");
  }
  if (jinja.Has("eliftrue==true") || jinja.Has("eliftrueandnot")) return Unknown("it has a default system message");
  std::string system;
  if (messages[0].role == "system") {
    system = "<<SYS>>\n" + messages[0].content + "\n<</SYS>>\n\n";
    messages = messages.subspan(1);
  }
  RETURN_IF_ERROR(CheckTurns(messages));
  std::string out;
  for (size_t i = 0; i < messages.size(); ++i) {
    if (i % 2 == 0) {
      out += special.bos + "[INST] " + Trim((i == 0 ? system : "") + messages[i].content) + " [/INST]";
    } else {
      out += ' ';
      out += Trim(messages[i].content) + " " + special.eos;
    }
  }
  return out;
}

// ---- Mistral ----

// An expression block as its terms, if it is a sum of literals and of the names in `names`; empty otherwise.
std::vector<std::string> SumOf(const std::string& block, std::initializer_list<std::string_view> names) {
  if (!block.starts_with("{{")) return {};
  std::vector<std::string> terms = TermsOf(std::string_view(block).substr(2, block.size() - 4));
  for (const std::string& term : terms) {
    const bool literal = term.size() >= 2 && term.front() == '\'' && term.back() == '\'';
    if (!literal && std::find(names.begin(), names.end(), term) == names.end()) return {};
  }
  return terms;
}

bool Contains(const std::vector<std::string>& terms, std::string_view name) {
  return std::find(terms.begin(), terms.end(), name) != terms.end();
}

std::string Fill(const std::vector<std::string>& terms, const std::string& content, const std::string& system,
                 const Special& special) {
  std::string out;
  for (const std::string& term : terms) {
    if (term == "message.content") {
      out += content;
    } else if (term == "message.content|trim") {
      out += Trim(content);
    } else if (term == "system_message") {
      out += system;
    } else if (term == "eos_token") {
      out += special.eos;
    } else {
      out.append(term, 1, term.size() - 2);
    }
  }
  return out;
}

Result<std::string> RenderMistral(const CanonicalTemplate& jinja, const Special& special,
                                  std::span<const ChatMessage> messages) {
  if (jinja.Has("[SYSTEM_PROMPT]")) return Unknown("it uses [SYSTEM_PROMPT]");
  std::vector<std::string> user, user_with_system, assistant;
  bool bos = false;
  const auto keep = [](std::vector<std::string> terms, std::vector<std::string>* kept) {
    if (!kept->empty() && *kept != terms) return Unknown("it has turns of two forms");
    *kept = std::move(terms);
    return OkStatus();
  };
  for (const std::string& block : jinja.blocks) {
    if (block == "{{bos_token}}") {
      if (bos) return Unknown("it uses bos_token twice");
      bos = true;
    }
    const std::vector<std::string> terms =
        SumOf(block, {"message.content", "message.content|trim", "system_message", "eos_token"});
    const bool content = Contains(terms, "message.content") || Contains(terms, "message.content|trim");
    if (!content) continue;
    if (Contains(terms, "eos_token")) {
      RETURN_IF_ERROR(keep(terms, &assistant));
    } else if (block.find("[INST]") != std::string::npos && block.find("[/INST]'") != std::string::npos) {
      RETURN_IF_ERROR(keep(terms, Contains(terms, "system_message") ? &user_with_system : &user));
    } else {
      return Unknown("it has turns that are not Mistral's");
    }
  }
  if (user.empty() || assistant.empty()) return Unknown("its turns are not Mistral's");
  const bool system_first = jinja.Has("{%ifloop.firstandsystem_messageisdefined%}");
  const bool system_last = jinja.Has("{%ifloop.lastandsystem_messageisdefined%}");
  if (!user_with_system.empty() && system_first == system_last)
    return Unknown("it places the system message in its own way");

  std::optional<std::string> system;
  if (messages[0].role == "system") {
    if (user_with_system.empty()) return InvalidArgument("this model's chat template takes no system message");
    system = messages[0].content;
    messages = messages.subspan(1);
  }
  RETURN_IF_ERROR(CheckTurns(messages));
  std::string out = bos ? special.bos : "";
  for (size_t i = 0; i < messages.size(); ++i) {
    const bool with_system = system.has_value() && (system_first ? i == 0 : i + 1 == messages.size());
    const auto& terms = i % 2 == 1 ? assistant : with_system ? user_with_system : user;
    out += Fill(terms, messages[i].content, system.value_or(""), special);
  }
  return out;
}

// ---- Gemma ----

Result<std::string> RenderGemma(const CanonicalTemplate& jinja, const Special& special,
                                std::span<const ChatMessage> messages) {
  // Gemma-3's system message goes before the first question; Gemma-2 has none.
  const bool takes_system = jinja.Has("{{'<start_of_turn>'+role+'\n'+(first_user_prefixifloop.firstelse'')}}") &&
                            jinja.Has("first_user_prefix=messages[0]['content']+'\n\n'%}") &&
                            jinja.Has("{{message.content|trim}}") && jinja.Has("{{'<end_of_turn>\n'}}");
  if (!takes_system && !jinja.Has("{{'<start_of_turn>'+role+'\n'+message.content|trim+'<end_of_turn>\n'}}")) {
    return Unknown("its turns are not Gemma's");
  }
  if (!jinja.Has("setrole='model'") || !jinja.Has("{{'<start_of_turn>model\n'}}")) {
    return Unknown("it names the model's turns in its own way");
  }
  if (jinja.blocks[0] != "{{bos_token}}") return Unknown("it uses bos_token in its own way");
  std::string prefix;
  if (messages[0].role == "system") {
    if (!takes_system) return InvalidArgument("this model's chat template takes no system message");
    prefix = messages[0].content + "\n\n";
    messages = messages.subspan(1);
  }
  RETURN_IF_ERROR(CheckTurns(messages));
  std::string out = special.bos;
  for (size_t i = 0; i < messages.size(); ++i) {
    out += i % 2 == 0 ? "<start_of_turn>user\n" : "<start_of_turn>model\n";
    out += (i == 0 ? prefix : "") + Trim(messages[i].content) + "<end_of_turn>\n";
  }
  return out + "<start_of_turn>model\n";
}

}  // namespace

Result<std::string> ApplyChatTemplate(const Tokenizer& tokenizer, std::span<const ChatMessage> messages) {
  if (messages.empty()) return InvalidArgument("a chat needs at least one message");
  for (const ChatMessage& message : messages) {
    if (message.role != "system" && message.role != "user" && message.role != "assistant") {
      return InvalidArgument("the role \"" + message.role + "\" is not known; system, user and assistant are");
    }
    if (FindInvalidUtf8(message.content) != std::string_view::npos) {
      return InvalidArgument("the content of a chat message is not valid UTF-8");
    }
  }
  if (tokenizer.chat_template().empty()) {
    return Unimplemented("the model has no chat template; give the prompt with --prompt instead");
  }
  ASSIGN_OR_RETURN(const CanonicalTemplate jinja, CanonicalizeTemplate(tokenizer.chat_template()));
  Special special;
  if (tokenizer.bos_id().has_value()) special.bos = tokenizer.IdToToken(*tokenizer.bos_id());
  const std::vector<int32_t> eos = tokenizer.eos_ids();
  if (!eos.empty()) special.eos = tokenizer.IdToToken(eos[0]);
  if (jinja.Has("<|im_start|>")) return RenderChatMl(jinja, special, messages);
  if (jinja.Has("<|start_header_id|>")) return RenderLlama3(jinja, special, messages);
  if (jinja.Has("[INST]")) {
    return jinja.Has("<<SYS>>") ? RenderLlama2(jinja, special, messages) : RenderMistral(jinja, special, messages);
  }
  if (jinja.Has("<start_of_turn>")) return RenderGemma(jinja, special, messages);
  return Unknown("it has none of their markers");
}

}  // namespace quire

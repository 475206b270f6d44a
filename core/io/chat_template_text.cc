// See chat_template_text.h.
#include "core/io/chat_template_text.h"

#include <utility>

namespace quire {
namespace {

bool IsSpace(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

void ReplaceAll(std::string_view from, std::string_view to, std::string* text) {
  for (size_t at = 0; (at = text->find(from, at)) != std::string::npos; at += to.size())
    text->replace(at, from.size(), to);
}

// What a block tag leaves of the text before it: "{%-" takes all white space, "{%" that of its line.
void TrimBefore(bool dash, bool is_statement, std::string* raw) {
  if (dash) {
    while (!raw->empty() && IsSpace(raw->back())) raw->pop_back();
  } else if (is_statement) {
    size_t end = raw->size();
    while (end > 0 && ((*raw)[end - 1] == ' ' || (*raw)[end - 1] == '\t')) --end;
    if (end == 0 || (*raw)[end - 1] == '\n') raw->resize(end);
  }
}

// The content of one block, from behind its opening to before its closing; *pos moves behind the closing.
Result<std::string> ReadBlock(std::string_view jinja, std::string_view close, size_t* pos, bool* dash) {
  std::string out;
  size_t i = *pos;
  while (i < jinja.size()) {
    const char c = jinja[i];
    if (c == '\'' || c == '"') {
      out += '\'';
      for (++i; i < jinja.size() && jinja[i] != c; ++i) {
        if (jinja[i] == '\\' && i + 1 < jinja.size()) {
          const char e = jinja[++i];
          out += e == 'n' ? '\n' : e == 't' ? '\t' : e == 'r' ? '\r' : e;
        } else {
          out += jinja[i];
        }
      }
      out += '\'';
      ++i;
    } else if (jinja.substr(i, close.size()) == close) {
      *dash = !out.empty() && out.back() == '-';
      if (*dash) out.pop_back();
      *pos = i + close.size();
      return out;
    } else {
      if (!IsSpace(c)) out += c;
      ++i;
    }
  }
  return InvalidArgument("the chat template has a block that does not end");
}

}  // namespace

Result<CanonicalTemplate> CanonicalizeTemplate(std::string_view jinja) {
  // Jinja drops one newline at the very end.
  if (jinja.ends_with('\n')) jinja.remove_suffix(1);
  CanonicalTemplate result;
  std::string raw;             // text since the last block
  bool strip_after = false;    // the last block ended with "-%}"
  bool newline_after = false;  // the last block was a statement or a comment: one newline goes with it
  size_t pos = 0;
  const auto take_raw = [&](size_t end) {
    raw = std::string(jinja.substr(pos, end - pos));
    if (strip_after) {
      size_t begin = 0;
      while (begin < raw.size() && IsSpace(raw[begin])) ++begin;
      raw.erase(0, begin);
    } else if (newline_after && raw.starts_with('\n')) {
      raw.erase(0, 1);
    }
  };
  const auto check_raw = [&] {
    if (raw.empty()) return OkStatus();
    return Unimplemented(
        "the model's chat template is not one of those that are known (ChatML, Llama-3, Llama-2, Mistral, Gemma): " +
        std::string("it writes text outside of its expressions; give the prompt with --prompt instead"));
  };
  while (pos < jinja.size()) {
    size_t open = jinja.find('{', pos);
    while (open != std::string_view::npos && open + 1 < jinja.size() && jinja[open + 1] != '{' &&
           jinja[open + 1] != '%' && jinja[open + 1] != '#') {
      open = jinja.find('{', open + 1);
    }
    if (open == std::string_view::npos || open + 1 >= jinja.size()) break;
    take_raw(open);
    const char kind = jinja[open + 1];
    size_t inside = open + 2;
    const bool dash_before = inside < jinja.size() && jinja[inside] == '-';
    if (dash_before) ++inside;
    TrimBefore(dash_before, kind != '{', &raw);
    RETURN_IF_ERROR(check_raw());
    bool dash_after = false;
    if (kind == '#') {
      const size_t end = jinja.find("#}", inside);
      if (end == std::string_view::npos) return InvalidArgument("the chat template has a comment that does not end");
      dash_after = end > inside && jinja[end - 1] == '-';
      inside = end + 2;
    } else {
      ASSIGN_OR_RETURN(std::string content, ReadBlock(jinja, kind == '{' ? "}}" : "%}", &inside, &dash_after));
      ReplaceAll("'+'", "", &content);
      ReplaceAll("message['role']", "message.role", &content);
      ReplaceAll("message['content']", "message.content", &content);
      result.blocks.push_back(kind == '{' ? "{{" + content + "}}" : "{%" + content + "%}");
      result.text += result.blocks.back();
    }
    strip_after = dash_after;
    newline_after = kind != '{';
    pos = inside;
  }
  take_raw(jinja.size());
  RETURN_IF_ERROR(check_raw());
  return result;
}

std::vector<std::string> TermsOf(std::string_view expression) {
  std::vector<std::string> terms(1);
  bool in_literal = false;
  for (char c : expression) {
    if (c == '\'') in_literal = !in_literal;
    if (c == '+' && !in_literal) {
      terms.emplace_back();
    } else {
      terms.back() += c;
    }
  }
  return terms;
}

}  // namespace quire

// The canonical text of a Jinja chat template, so that templates which differ only in layout, quotes or escapes
// compare equal. Knows Jinja's lexical rules (and the trim_blocks and lstrip_blocks that transformers sets),
// not its meaning; recognising a template is chat_template.cc's.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/base/status.h"

namespace quire {

struct CanonicalTemplate {
  // The blocks in order, "{{…}}" and "{%…%}": without white space outside of string literals, literals
  // unescaped between ' and ', neighbours joined ('a'+'b' is 'ab'), message['role'] as message.role.
  // Comments are left out.
  std::vector<std::string> blocks;
  std::string text;  // all blocks, one after another

  bool Has(std::string_view part) const { return text.find(part) != std::string::npos; }
};

// INVALID_ARGUMENT for a block that does not end, UNIMPLEMENTED when text stands outside of the blocks (no
// template that we know has any).
Result<CanonicalTemplate> CanonicalizeTemplate(std::string_view jinja);

// The terms of "a+b+c" (an expression block without its braces), cut at each + outside of literals.
std::vector<std::string> TermsOf(std::string_view expression);

}  // namespace quire

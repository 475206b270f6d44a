// Added tokens: "<|im_end|>" and the like, found in the raw text before anything else is done to it. Finds the
// leftmost, and of those the longest; what the found token is to become is the caller's.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/io/tokenizer_regex.h"

namespace quire {

struct AddedToken {
  int32_t id = 0;
  std::string content;  // not empty, valid UTF-8
  bool special = false;
  bool single_word = false;  // not inside of a word
  bool lstrip = false;       // takes the whitespace on its left with it
  bool rstrip = false;
  bool normalized = false;  // looked for in the normalized text
};

class AddedTokenMatcher {
 public:
  // `tokens` with the text to look for (the content, or its normalized form). The first of equals counts.
  void Add(const AddedToken& token, std::string_view text);
  bool empty() const { return nodes_.size() <= 1; }

  // A part of a text: an added token (id ≥ 0) or plain text (id -1).
  struct Part {
    ByteRange range;
    int32_t id;
  };
  // Appends the parts of `text`, in order; empty plain parts are left out. Special tokens stay plain text when
  // !match_special.
  void Split(std::string_view text, bool match_special, std::vector<Part>* parts) const;

 private:
  struct Node {
    std::vector<std::pair<unsigned char, int32_t>> children;
    int32_t token = -1;  // index into tokens_
  };
  int32_t Child(int32_t node, unsigned char byte) const;

  std::vector<Node> nodes_ = std::vector<Node>(1);  // a trie over bytes; nodes_[0] is its root
  std::vector<AddedToken> tokens_;
};

}  // namespace quire

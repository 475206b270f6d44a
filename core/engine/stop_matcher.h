// StopMatcher: finds stop strings in a growing text and holds back what may still become one. A stop string counts at
// the moment its last byte arrives: the match that ends first wins (of those that end together, the longest), so the
// result does not depend on how the text was cut into pieces.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace quire {

class StopMatcher {
 public:
  StopMatcher() = default;
  // stops: none empty.
  StopMatcher(std::vector<std::string> stops, bool include_stop)
      : stops_(std::move(stops)), include_stop_(include_stop) {}

  struct Piece {
    std::string text;      // certain now
    bool stopped = false;  // nothing comes after this piece
    std::string matched;   // the stop string
  };
  // armed false: text passes by (held back as usual), but no match ends it (min_tokens is not reached). Text pushed
  // unarmed never becomes the end of a match later; it may be its beginning.
  Piece Push(std::string_view text, bool armed = true);
  // The text held back, at the end of the sequence.
  std::string Finish();

 private:
  std::vector<std::string> stops_;
  bool include_stop_ = false;
  std::string held_;  // not given out yet: a beginning of some stop string
};

}  // namespace quire

#include "core/engine/stop_matcher.h"

#include <algorithm>
#include <utility>

namespace quire {

StopMatcher::Piece StopMatcher::Push(std::string_view text, bool armed) {
  Piece piece;
  if (stops_.empty()) {
    piece.text = text;
    return piece;
  }
  const size_t before = held_.size();
  held_ += text;
  if (armed && !text.empty()) {
    size_t best_end = std::string::npos;
    size_t best_begin = 0;
    const std::string* best = nullptr;
    for (const std::string& stop : stops_) {
      // A match must end in the new text.
      const size_t from = before >= stop.size() ? before - stop.size() + 1 : 0;
      const size_t begin = held_.find(stop, from);
      if (begin == std::string::npos) continue;
      const size_t end = begin + stop.size();
      if (best == nullptr || end < best_end || (end == best_end && begin < best_begin)) {
        best_end = end;
        best_begin = begin;
        best = &stop;
      }
    }
    if (best != nullptr) {
      piece.stopped = true;
      piece.matched = *best;
      piece.text = held_.substr(0, include_stop_ ? best_end : best_begin);
      held_.clear();
      return piece;
    }
  }
  // Hold back the longest end of the text that begins a stop string.
  size_t hold = 0;
  for (const std::string& stop : stops_) {
    for (size_t n = std::min(stop.size() - 1, held_.size()); n > hold; --n) {
      if (std::string_view(held_).substr(held_.size() - n) == std::string_view(stop).substr(0, n)) {
        hold = n;
        break;
      }
    }
  }
  piece.text = held_.substr(0, held_.size() - hold);
  held_.erase(0, held_.size() - hold);
  return piece;
}

std::string StopMatcher::Finish() { return std::exchange(held_, {}); }

}  // namespace quire

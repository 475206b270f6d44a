// SequenceOutput: what one sequence has put out, as arrays rather than as pieces, so that a reader at any place gets all
// that is new in one message. That is how a slow reader's deltas are gathered, and how a stream is taken up again. Not
// thread safe. Internal to rpc/.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/engine/request.h"

namespace quire::rpc {

class SequenceOutput {
 public:
  // first: output tokens that an earlier attempt has made; indices count from there.
  explicit SequenceOutput(int64_t first = 0) : begin_(first) {}

  // The engine's next event. False, and nothing taken, when it doesn't follow the last one.
  bool Append(const TokenEvent& event);
  // Ends it at `index` (≤ end): what lies behind is dropped. `event` gives usage and timings.
  void Abort(int64_t index, const TokenEvent& event);

  int64_t begin() const { return begin_; }                                    // first token still held
  int64_t end() const { return begin_ + static_cast<int64_t>(ids_.size()); }  // past the last one
  bool finished() const { return last_.finished; }
  size_t BytesFrom(int64_t index) const;  // about what Write would write

  // Everything from token `index` (begin ≤ index ≤ end) on: token_ids, text, logprobs, and how it ended. Message is
  // GenerateChunk, Output or TokenEvent; indices are the caller's.
  template <typename Message>
  void Write(int64_t index, Message* message) const;
  const std::vector<std::optional<TokenLogprobs>>& prompt_logprobs() const { return prompt_logprobs_; }

  // Lets go of tokens before `index`; a reader can't go back behind it any more.
  void Forget(int64_t index);

 private:
  size_t TextBegin(size_t token) const { return token == 0 ? 0 : text_ends_[token - 1]; }

  int64_t begin_;
  std::vector<int32_t> ids_;
  std::vector<size_t> text_ends_;  // [ids] where the text that came with each ends in text_
  std::string text_;               // of ids_, then what came with the end alone
  std::vector<TokenLogprobs> logprobs_;  // [ids] or empty
  std::vector<std::optional<TokenLogprobs>> prompt_logprobs_;
  TokenEvent last_;  // how it ended; its tokens and text are not kept here
};

}  // namespace quire::rpc

// See sequence_output.h.
#include "rpc/sequence_output.h"

#include <type_traits>
#include <utility>

#include "core/base/check.h"
#include "quire/v1/generation.pb.h"
#include "quire/v1/worker.pb.h"
#include "rpc/convert.h"

namespace quire::rpc {
namespace {

size_t Bytes(const TokenLogprobs& logprobs) { return 16 + 8 * logprobs.top.size(); }

}  // namespace

bool SequenceOutput::Append(const TokenEvent& event) {
  if (finished() || event.index != end()) return false;
  if (!event.logprobs.empty() && event.logprobs.size() != event.token_ids.size()) return false;
  for (size_t i = 0; i < event.token_ids.size(); ++i) {
    ids_.push_back(event.token_ids[i]);
    if (i + 1 == event.token_ids.size()) text_ += event.text;
    text_ends_.push_back(text_.size());
  }
  if (event.token_ids.empty()) text_ += event.text;
  logprobs_.insert(logprobs_.end(), event.logprobs.begin(), event.logprobs.end());
  if (!event.prompt_logprobs.empty()) prompt_logprobs_ = event.prompt_logprobs;
  if (event.finished) {
    last_ = event;
    last_.token_ids.clear();
    last_.text.clear();
    last_.logprobs.clear();
    last_.prompt_logprobs.clear();
  }
  return true;
}

void SequenceOutput::Abort(int64_t index, const TokenEvent& event) {
  CHECK(!finished());
  CHECK(index >= begin_ && index <= end());
  const size_t kept = static_cast<size_t>(index - begin_);
  text_.resize(TextBegin(kept));
  ids_.resize(kept);
  text_ends_.resize(kept);
  if (!logprobs_.empty()) logprobs_.resize(kept);
  last_ = event;
  last_.finished = true;
  last_.reason = FinishReason::kAborted;
  last_.matched_stop.clear();
  last_.matched_stop_id.reset();
  last_.completion_tokens = static_cast<int>(index);
  last_.token_ids.clear();
  last_.text.clear();
  last_.logprobs.clear();
  last_.prompt_logprobs.clear();
}

size_t SequenceOutput::BytesFrom(int64_t index) const {
  const size_t from = static_cast<size_t>(index - begin_);
  size_t bytes = (ids_.size() - from) * 5 + text_.size() - TextBegin(from);
  // Each has as many best ones as the others.
  if (from < logprobs_.size()) bytes += (logprobs_.size() - from) * Bytes(logprobs_[from]);
  if (index == 0 && prompt_logprobs_.size() > 1 && prompt_logprobs_[1].has_value()) {
    bytes += prompt_logprobs_.size() * Bytes(*prompt_logprobs_[1]);
  }
  return bytes;
}

template <typename Message>
void SequenceOutput::Write(int64_t index, Message* message) const {
  CHECK(index >= begin_ && index <= end());
  const size_t from = static_cast<size_t>(index - begin_);
  message->mutable_token_ids()->Add(ids_.begin() + static_cast<std::ptrdiff_t>(from), ids_.end());
  message->set_text(text_.substr(TextBegin(from)));
  if constexpr (std::is_same_v<Message, v1::TokenEvent>) {
    for (size_t i = from; ids_.size() - from > 1 && i < ids_.size(); ++i) {
      message->add_text_sizes(static_cast<int32_t>(text_ends_[i] - TextBegin(i)));
    }
  }
  for (size_t i = from; i < logprobs_.size(); ++i) WriteLogprobs(logprobs_[i], message->add_logprobs());
  if (!finished()) return;
  message->set_finish_reason(WriteReason(last_.reason));
  if (last_.matched_stop_id.has_value()) {
    message->set_stop_token_id(*last_.matched_stop_id);
  } else if (!last_.matched_stop.empty()) {
    message->set_stop(last_.matched_stop);
  }
  WriteUsage(last_, message->mutable_usage());
  WriteTimings(last_.timings, message->mutable_timings());
}

template void SequenceOutput::Write(int64_t, v1::GenerateChunk*) const;
template void SequenceOutput::Write(int64_t, v1::Output*) const;
template void SequenceOutput::Write(int64_t, v1::TokenEvent*) const;

void SequenceOutput::Forget(int64_t index) {
  const size_t count = static_cast<size_t>(index - begin_);
  // In halves, so that each token is moved at most once on average.
  if (count == 0 || (count < 64 && logprobs_.empty()) || 2 * count < ids_.size()) return;
  const auto n = static_cast<std::ptrdiff_t>(count);
  const size_t text = text_ends_[count - 1];
  text_.erase(0, text);
  ids_.erase(ids_.begin(), ids_.begin() + n);
  text_ends_.erase(text_ends_.begin(), text_ends_.begin() + n);
  for (size_t& end : text_ends_) end -= text;
  if (!logprobs_.empty()) logprobs_.erase(logprobs_.begin(), logprobs_.begin() + n);
  prompt_logprobs_.clear();
  begin_ = index;
}

}  // namespace quire::rpc

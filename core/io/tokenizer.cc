// StreamDecoder (tokenizer.h). LoadTokenizer is in tokenizer_load.cc.
#include "core/io/tokenizer.h"

#include "core/io/unicode.h"

namespace quire {

std::string StreamDecoder::Push(int32_t id) {
  std::string bytes = tokenizer_->TokenBytes(id, skip_special_);
  if (bytes.empty()) return "";
  if (at_start_) {
    at_start_ = false;
    // A decoder's clean-up at the begin of a text leaves out one space; whether this tokenizer has one shows
    // in how it decodes the id alone.
    if (bytes.front() == ' ' && tokenizer_->Decode(std::span(&id, 1), skip_special_).size() < LossyUtf8(bytes).size()) {
      bytes.erase(0, 1);
    }
  }
  pending_ += bytes;
  const size_t held_back = IncompleteUtf8Suffix(pending_);
  const std::string text = LossyUtf8(std::string_view(pending_).substr(0, pending_.size() - held_back));
  pending_.erase(0, pending_.size() - held_back);
  return text;
}

std::string StreamDecoder::Finish() {
  std::string text = LossyUtf8(pending_);
  pending_.clear();
  at_start_ = true;
  return text;
}

}  // namespace quire

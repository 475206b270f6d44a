// See passkey.h.
#include "launch/passkey.h"

#include <cstdio>
#include <utility>

#include "core/io/chat_template.h"

namespace quire::launch {
namespace {

constexpr const char* kIntroduction =
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. I will quiz you about "
    "the important information there.\n";
constexpr const char* kFiller =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. ";

// The last place at or before `offset` where a character begins.
size_t CharacterBorder(const std::string& text, size_t offset) {
  while (offset > 0 && offset < text.size() && (static_cast<unsigned char>(text[offset]) & 0xc0) == 0x80) --offset;
  return offset;
}

}  // namespace

PasskeyTask::PasskeyTask(const Tokenizer* tokenizer, PasskeyForm form, std::string filler)
    : tokenizer_(tokenizer), form_(form), filler_(filler.empty() ? kFiller : std::move(filler)) {}

Result<std::vector<int32_t>> PasskeyTask::Encode(size_t filler_bytes, double depth, const std::string& key) const {
  std::string filler;
  while (filler.size() < filler_bytes) filler.append(filler_, 0, filler_bytes - filler.size());
  filler.resize(CharacterBorder(filler, filler_bytes == filler.size() ? filler.size() : filler_bytes));
  // A cut inside a character leaves its first bytes at the very end.
  while (!filler.empty() && (static_cast<unsigned char>(filler.back()) & 0x80) != 0) filler.pop_back();
  // The key goes between two words.
  size_t at = depth >= 1.0 ? filler.size() : static_cast<size_t>(depth * static_cast<double>(filler.size()));
  if (at > 0 && at < filler.size()) {
    const size_t space = filler.rfind(' ', at);
    at = space == std::string::npos ? 0 : space + 1;
  }
  std::string text = kIntroduction;
  text += filler.substr(0, at);
  text += "\nThe pass key is " + key + ". Remember it. " + key + " is the pass key.\n";
  text += filler.substr(at);
  text += "\nWhat is the pass key?";
  EncodeOptions options;
  if (form_ == PasskeyForm::kText) return tokenizer_->Encode(text + " The pass key is ", options);
  const ChatMessage message = {"user", text};
  ASSIGN_OR_RETURN(std::string prompt, ApplyChatTemplate(*tokenizer_, {&message, 1}));
  options.add_special_tokens = false;
  return tokenizer_->Encode(prompt + "The pass key is", options);
}

Result<std::vector<int32_t>> PasskeyTask::MakePrompt(int64_t tokens, double depth, const std::string& key) const {
  ASSIGN_OR_RETURN(std::vector<int32_t> best, Encode(0, depth, key));
  if (static_cast<int64_t>(best.size()) > tokens) {
    return InvalidArgument("a pass key prompt has at least " + std::to_string(best.size()) +
                           " tokens with this tokenizer; " + std::to_string(tokens) + " are too few");
  }
  // The most filler that fits. A token is a byte or more most of the time; where a tokenizer makes more tokens than
  // bytes, the upper end is never reached, which does no harm.
  size_t low = 0, high = static_cast<size_t>(tokens) * 16;
  while (low < high) {
    const size_t middle = low + (high - low + 1) / 2;
    ASSIGN_OR_RETURN(std::vector<int32_t> ids, Encode(middle, depth, key));
    if (static_cast<int64_t>(ids.size()) <= tokens) {
      best = std::move(ids);
      low = middle;
    } else {
      high = middle - 1;
    }
    if (static_cast<int64_t>(best.size()) == tokens) break;
  }
  return best;
}

std::string PasskeyFor(uint64_t seed, int64_t length, int depth_index, int trial) {
  // splitmix64 (Steele, Lea and Flood, 2014) over the four numbers.
  uint64_t state = seed;
  for (uint64_t part :
       {static_cast<uint64_t>(length), static_cast<uint64_t>(depth_index), static_cast<uint64_t>(trial)}) {
    state += part + 0x9e3779b97f4a7c15u;
    state = (state ^ (state >> 30)) * 0xbf58476d1ce4e5b9u;
    state = (state ^ (state >> 27)) * 0x94d049bb133111ebu;
    state ^= state >> 31;
  }
  char digits[8];
  std::snprintf(digits, sizeof digits, "%05d", static_cast<int>(state % 100000));
  return digits;
}

bool AnswersPasskey(const std::string& answer, const std::string& key) {
  const size_t begin = answer.find_first_of("0123456789");
  if (begin == std::string::npos) return false;
  size_t end = answer.find_first_not_of("0123456789", begin);
  if (end == std::string::npos) end = answer.size();
  // Five digits are generated after the key's own when a model goes on counting, so only the first five must agree.
  return answer.compare(begin, key.size(), key) == 0 && end - begin >= key.size();
}

}  // namespace quire::launch

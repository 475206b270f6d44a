// See gguf_vocab.h.
#include "core/io/gguf_vocab.h"

#include <limits>

namespace quire {
namespace {

constexpr char kPrefix[] = "tokenizer.ggml.";

Status WrongType(const std::string& key, const GgufValue& value, const char* wanted) {
  return InvalidArgument(key + " is " + std::string(value.KindName()) + ", not " + wanted);
}

Status ReadString(const GgufFile& file, const std::string& key, std::string* out) {
  const GgufValue* value = file.Find(key);
  if (value == nullptr) return OkStatus();
  const std::string* text = value->AsString();
  if (text == nullptr) return WrongType(key, *value, "a string");
  *out = *text;
  return OkStatus();
}

Status ReadStrings(const GgufFile& file, const std::string& key, std::vector<std::string>* out) {
  const GgufValue* value = file.Find(key);
  if (value == nullptr) return OkStatus();
  const auto* list = value->AsStrings();
  if (list == nullptr) return WrongType(key, *value, "an array of strings");
  *out = *list;
  return OkStatus();
}

Status ReadId(const GgufFile& file, const std::string& key, std::optional<int64_t>* out) {
  const GgufValue* value = file.Find(key);
  if (value == nullptr) return OkStatus();
  *out = value->AsInt();
  return out->has_value() ? OkStatus() : WrongType(key, *value, "an integer");
}

Status ReadFlag(const GgufFile& file, const std::string& key, std::optional<bool>* out) {
  const GgufValue* value = file.Find(key);
  if (value == nullptr) return OkStatus();
  *out = value->AsBool();
  return out->has_value() ? OkStatus() : WrongType(key, *value, "true or false");
}

}  // namespace

Result<GgufVocab> ReadGgufVocab(const GgufFile& file) {
  const std::string prefix = kPrefix;
  GgufVocab vocab;
  RETURN_IF_ERROR(ReadString(file, prefix + "model", &vocab.model));
  if (vocab.model.empty()) return NotFound("the file has no vocabulary (tokenizer.ggml.model)");
  RETURN_IF_ERROR(ReadString(file, prefix + "pre", &vocab.pre));
  RETURN_IF_ERROR(ReadStrings(file, prefix + "tokens", &vocab.tokens));
  RETURN_IF_ERROR(ReadStrings(file, prefix + "merges", &vocab.merges));
  if (const GgufValue* value = file.Find(prefix + "scores")) {
    const auto* scores = value->AsDoubles();
    if (scores == nullptr) return WrongType(prefix + "scores", *value, "an array of floats");
    vocab.scores.assign(scores->begin(), scores->end());
  }
  if (const GgufValue* value = file.Find(prefix + "token_type")) {
    const auto* types = value->AsInts();
    if (types == nullptr) return WrongType(prefix + "token_type", *value, "an array of integers");
    for (int64_t type : *types) {
      if (type < 0 || type > 6)
        return InvalidArgument(prefix + "token_type has the unknown type " + std::to_string(type));
      vocab.types.push_back(static_cast<int32_t>(type));
    }
  }
  RETURN_IF_ERROR(ReadId(file, prefix + "bos_token_id", &vocab.bos_id));
  RETURN_IF_ERROR(ReadId(file, prefix + "eos_token_id", &vocab.eos_id));
  RETURN_IF_ERROR(ReadId(file, prefix + "unknown_token_id", &vocab.unk_id));
  RETURN_IF_ERROR(ReadId(file, prefix + "eot_token_id", &vocab.eot_id));
  RETURN_IF_ERROR(ReadId(file, prefix + "eom_token_id", &vocab.eom_id));
  RETURN_IF_ERROR(ReadFlag(file, prefix + "add_bos_token", &vocab.add_bos));
  RETURN_IF_ERROR(ReadFlag(file, prefix + "add_eos_token", &vocab.add_eos));
  RETURN_IF_ERROR(ReadFlag(file, prefix + "add_space_prefix", &vocab.add_space_prefix));
  RETURN_IF_ERROR(ReadString(file, "tokenizer.chat_template", &vocab.chat_template));
  return vocab;
}

}  // namespace quire

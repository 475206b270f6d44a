// See tokenizer_json_steps.h. Field names and defaults are those of Hugging Face's tokenizers library.
#include "core/io/tokenizer_json_steps.h"

#include <limits>
#include <utility>

namespace quire {
namespace {

constexpr int kMaxDepth = 16;
constexpr size_t kMaxSteps = 256;  // of one kind; files have a handful

Result<std::string> TypeOf(const Json& json, const char* what, int depth) {
  if (depth > kMaxDepth) return InvalidArgument(std::string(what) + " sequences are nested too deeply");
  if (!json.is_object()) return InvalidArgument(std::string("a ") + what + " is not an object");
  Fields fields(json, what);
  std::string type = fields.String("type", "");
  RETURN_IF_ERROR(fields.status());
  if (type.empty()) return InvalidArgument(std::string("a ") + what + " has no type");
  return type;
}

Status Unsupported(const char* what, const std::string& type) {
  return InvalidArgument(std::string("the ") + what + " " + type + " is not supported");
}

// The elements of a Sequence's list.
Result<const Json*> SequenceOf(const Json& json, const char* key) {
  const auto it = json.find(key);
  if (it == json.end() || !it->is_array())
    return InvalidArgument(std::string("a Sequence has no list \"") + key + "\"");
  return &*it;
}

// {"String": "…"} or {"Regex": "…"} (or, in old files, just the string).
struct Pattern {
  std::string text;
  bool is_regex = false;
};
Result<Pattern> ParsePattern(const Json& json) {
  const auto it = json.find("pattern");
  if (it != json.end() && it->is_string()) return Pattern{it->get<std::string>(), false};
  if (it != json.end() && it->is_object() && it->size() == 1) {
    for (const char* key : {"String", "Regex"}) {
      const auto value = it->find(key);
      if (value != it->end() && value->is_string()) return Pattern{value->get<std::string>(), key[0] == 'R'};
    }
  }
  return InvalidArgument("a pattern is neither {\"String\": …} nor {\"Regex\": …}");
}

Result<SplitBehavior> ParseBehavior(const std::string& name) {
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  return InvalidArgument("the split behavior \"" + name + "\" is not known");
}

Result<MetaspaceWords> ParseMetaspace(const Json& json) {
  Fields fields(json, "Metaspace");
  MetaspaceWords step;
  step.replacement = fields.String("replacement", "\xE2\x96\x81");
  step.split = fields.Bool("split", true);
  const bool legacy = fields.Bool("add_prefix_space", true);
  const std::string scheme = fields.String("prepend_scheme", legacy ? "always" : "never");
  RETURN_IF_ERROR(fields.status());
  if (step.replacement.empty()) return InvalidArgument("a Metaspace has an empty replacement");
  if (scheme == "always") {
    step.prepend = PrependScheme::kAlways;
  } else if (scheme == "first") {
    step.prepend = PrependScheme::kFirst;
  } else if (scheme == "never") {
    step.prepend = PrependScheme::kNever;
  } else {
    return InvalidArgument("the prepend_scheme \"" + scheme + "\" is not known");
  }
  return step;
}

Result<NormalizerStep> ParseReplace(const Json& json) {
  ASSIGN_OR_RETURN(Pattern pattern, ParsePattern(json));
  Fields fields(json, "Replace");
  NormalizeReplace step;
  step.content = fields.String("content", "");
  RETURN_IF_ERROR(fields.status());
  if (pattern.is_regex) {
    ASSIGN_OR_RETURN(step.regex, TokenizerRegex::Compile(pattern.text));
  } else {
    step.literal = std::move(pattern.text);
  }
  return NormalizerStep(std::move(step));
}

// The id of {"SpecialToken": {"id": name}} by the template's own table.
Status AppendTemplateIds(const Json& processor, const std::string& name, std::vector<int32_t>* ids) {
  const auto table = processor.find("special_tokens");
  if (table == processor.end() || !table->is_object()) {
    return InvalidArgument("a TemplateProcessing has no special_tokens");
  }
  const auto token = table->find(name);
  if (token == table->end() || !token->is_object() || !token->contains("ids") || !(*token)["ids"].is_array()) {
    return InvalidArgument("a TemplateProcessing has no ids for its token \"" + name + "\"");
  }
  for (const Json& id : (*token)["ids"]) {
    if (!id.is_number_integer() || id < 0 || id > std::numeric_limits<int32_t>::max() / 2) {
      return InvalidArgument("the token \"" + name + "\" of a TemplateProcessing has an id that is no token id");
    }
    ids->push_back(id.get<int32_t>());
  }
  return OkStatus();
}

Status ParseTemplate(const Json& json, PipelineSpec* spec) {
  const auto single = json.find("single");
  if (single == json.end() || !single->is_array())
    return InvalidArgument("a TemplateProcessing has no list \"single\"");
  std::vector<int32_t> before, after;
  bool seen_text = false;
  for (const Json& piece : *single) {
    if (!piece.is_object()) return InvalidArgument("a piece of a TemplateProcessing is not an object");
    if (piece.contains("Sequence")) {
      if (seen_text) return InvalidArgument("a TemplateProcessing for one text uses it twice");
      seen_text = true;
    } else if (const auto token = piece.find("SpecialToken"); token != piece.end() && token->is_object()) {
      Fields fields(*token, "SpecialToken");
      const std::string name = fields.String("id", "");
      RETURN_IF_ERROR(fields.status());
      RETURN_IF_ERROR(AppendTemplateIds(json, name, seen_text ? &after : &before));
    } else {
      return InvalidArgument("a piece of a TemplateProcessing is neither Sequence nor SpecialToken");
    }
  }
  if (!seen_text) return InvalidArgument("a TemplateProcessing for one text does not use it");
  // Of several processors, the later ones are around the earlier.
  spec->prefix_ids.insert(spec->prefix_ids.begin(), before.begin(), before.end());
  spec->suffix_ids.insert(spec->suffix_ids.end(), after.begin(), after.end());
  return OkStatus();
}

// ["[CLS]", 101]
Result<int32_t> TokenAndId(const Json& json, const char* key) {
  const auto it = json.find(key);
  if (it == json.end() || !it->is_array() || it->size() != 2 || !(*it)[1].is_number_integer() || (*it)[1] < 0 ||
      (*it)[1] > std::numeric_limits<int32_t>::max() / 2) {
    return InvalidArgument(std::string("a post-processor's \"") + key + "\" is not [token, id]");
  }
  return (*it)[1].get<int32_t>();
}

}  // namespace

const Json* Fields::Find(const char* key) const {
  const auto it = object_.find(key);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

void Fields::Fail(const char* key, const char* wanted) {
  if (status_.ok()) status_ = InvalidArgument(std::string(key) + " of " + where_ + " is not " + wanted);
}

std::string Fields::String(const char* key, std::string absent) {
  const Json* value = Find(key);
  if (value == nullptr) return absent;
  if (value->is_string()) return value->get<std::string>();
  Fail(key, "a string");
  return absent;
}

bool Fields::Bool(const char* key, bool absent) {
  const Json* value = Find(key);
  if (value == nullptr) return absent;
  if (value->is_boolean()) return value->get<bool>();
  Fail(key, "true or false");
  return absent;
}

int64_t Fields::Integer(const char* key, int64_t absent) {
  const Json* value = Find(key);
  if (value == nullptr) return absent;
  if (value->is_number_integer()) return value->get<int64_t>();
  Fail(key, "an integer");
  return absent;
}

Status ParseNormalizer(const Json& json, int depth, std::vector<NormalizerStep>* steps) {
  if (json.is_null()) return OkStatus();
  ASSIGN_OR_RETURN(const std::string type, TypeOf(json, "normalizer", depth));
  if (steps->size() >= kMaxSteps) return InvalidArgument("there are too many normalizers");
  Fields fields(json, type);
  if (type == "Sequence") {
    ASSIGN_OR_RETURN(const Json* list, SequenceOf(json, "normalizers"));
    for (const Json& step : *list) RETURN_IF_ERROR(ParseNormalizer(step, depth + 1, steps));
  } else if (type == "NFC") {
    steps->push_back(NormalizeUnicode{NormalForm::kNfc});
  } else if (type == "NFD") {
    steps->push_back(NormalizeUnicode{NormalForm::kNfd});
  } else if (type == "NFKC") {
    steps->push_back(NormalizeUnicode{NormalForm::kNfkc});
  } else if (type == "NFKD") {
    steps->push_back(NormalizeUnicode{NormalForm::kNfkd});
  } else if (type == "Lowercase") {
    steps->push_back(NormalizeLowercase{});
  } else if (type == "StripAccents") {
    steps->push_back(NormalizeStripAccents{});
  } else if (type == "Strip") {
    const bool left = fields.Bool("strip_left", true);
    steps->push_back(NormalizeStrip{left, fields.Bool("strip_right", true)});
  } else if (type == "Prepend") {
    steps->push_back(NormalizePrepend{fields.String("prepend", "")});
  } else if (type == "ByteLevel") {
    steps->push_back(NormalizeByteLevel{});
  } else if (type == "Replace") {
    ASSIGN_OR_RETURN(NormalizerStep step, ParseReplace(json));
    steps->push_back(std::move(step));
  } else {
    return Unsupported("normalizer", type);
  }
  return fields.status();
}

Status ParsePreTokenizer(const Json& json, int depth, std::vector<PreTokenizerStep>* steps) {
  if (json.is_null()) return OkStatus();
  ASSIGN_OR_RETURN(const std::string type, TypeOf(json, "pre-tokenizer", depth));
  if (steps->size() >= kMaxSteps) return InvalidArgument("there are too many pre-tokenizers");
  Fields fields(json, type);
  if (type == "Sequence") {
    ASSIGN_OR_RETURN(const Json* list, SequenceOf(json, "pretokenizers"));
    for (const Json& step : *list) RETURN_IF_ERROR(ParsePreTokenizer(step, depth + 1, steps));
  } else if (type == "ByteLevel") {
    const bool add_prefix_space = fields.Bool("add_prefix_space", true);
    steps->push_back(MakeByteLevelWords(add_prefix_space, fields.Bool("use_regex", true)));
  } else if (type == "Split") {
    ASSIGN_OR_RETURN(Pattern pattern, ParsePattern(json));
    ASSIGN_OR_RETURN(const SplitBehavior behavior, ParseBehavior(fields.String("behavior", "")));
    const bool invert = fields.Bool("invert", false);
    if (pattern.is_regex) {
      ASSIGN_OR_RETURN(TokenizerRegex regex, TokenizerRegex::Compile(pattern.text));
      steps->push_back(SplitOnRegex{std::move(regex), behavior, invert});
    } else {
      steps->push_back(SplitOnText{std::move(pattern.text), behavior, invert});
    }
  } else if (type == "Digits") {
    const bool individual = fields.Bool("individual_digits", false);
    steps->push_back(
        SplitOnCharacters{CharacterClass::kDigit, individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous});
  } else if (type == "Whitespace") {
    ASSIGN_OR_RETURN(TokenizerRegex regex, TokenizerRegex::Compile(R"(\w+|[^\w\s]+)"));
    steps->push_back(SplitOnRegex{std::move(regex), SplitBehavior::kRemoved, true});
  } else if (type == "WhitespaceSplit") {
    steps->push_back(SplitOnCharacters{CharacterClass::kWhitespace, SplitBehavior::kRemoved});
  } else if (type == "Punctuation") {
    ASSIGN_OR_RETURN(const SplitBehavior behavior, ParseBehavior(fields.String("behavior", "Isolated")));
    steps->push_back(SplitOnCharacters{CharacterClass::kPunctuation, behavior});
  } else if (type == "CharDelimiterSplit") {
    steps->push_back(SplitOnText{fields.String("delimiter", ""), SplitBehavior::kRemoved, false});
  } else if (type == "Metaspace") {
    ASSIGN_OR_RETURN(MetaspaceWords step, ParseMetaspace(json));
    steps->push_back(std::move(step));
  } else {
    return Unsupported("pre-tokenizer", type);
  }
  return fields.status();
}

Status ParsePostProcessor(const Json& json, int depth, PipelineSpec* spec) {
  if (json.is_null()) return OkStatus();
  ASSIGN_OR_RETURN(const std::string type, TypeOf(json, "post-processor", depth));
  if (type == "Sequence") {
    ASSIGN_OR_RETURN(const Json* list, SequenceOf(json, "processors"));
    if (list->size() > kMaxSteps) return InvalidArgument("there are too many post-processors");
    for (const Json& step : *list) RETURN_IF_ERROR(ParsePostProcessor(step, depth + 1, spec));
    return OkStatus();
  }
  if (type == "ByteLevel") return OkStatus();  // trims offsets, which nothing here has
  if (type == "TemplateProcessing") return ParseTemplate(json, spec);
  if (type == "BertProcessing" || type == "RobertaProcessing") {
    ASSIGN_OR_RETURN(const int32_t cls, TokenAndId(json, "cls"));
    ASSIGN_OR_RETURN(const int32_t sep, TokenAndId(json, "sep"));
    spec->prefix_ids.insert(spec->prefix_ids.begin(), cls);
    spec->suffix_ids.push_back(sep);
    return OkStatus();
  }
  return Unsupported("post-processor", type);
}

Status ParseDecoder(const Json& json, int depth, PipelineSpec* spec) {
  if (json.is_null()) return InvalidArgument("it has no decoder; set one (ByteLevel, for a byte-level vocabulary)");
  ASSIGN_OR_RETURN(const std::string type, TypeOf(json, "decoder", depth));
  if (spec->decoder.size() >= kMaxSteps) return InvalidArgument("there are too many decoders");
  Fields fields(json, type);
  if (!spec->decoder.empty() && spec->decoder.back().kind == DecoderStep::Kind::kByteLevel) {
    return InvalidArgument("the decoder " + type + " behind a ByteLevel is not supported");
  }
  if (type == "Sequence") {
    ASSIGN_OR_RETURN(const Json* list, SequenceOf(json, "decoders"));
    for (const Json& step : *list) RETURN_IF_ERROR(ParseDecoder(step, depth + 1, spec));
  } else if (type == "ByteLevel") {
    spec->decoder.push_back({DecoderStep::Kind::kByteLevel});
  } else if (type == "ByteFallback") {
    spec->decoder.push_back({DecoderStep::Kind::kByteFallback});
  } else if (type == "Fuse") {
    return OkStatus();
  } else if (type == "Replace") {
    ASSIGN_OR_RETURN(const Pattern pattern, ParsePattern(json));
    if (pattern.is_regex) return InvalidArgument("a Replace decoder with a regular expression is not supported");
    if (!pattern.text.empty())
      spec->decoder.push_back({DecoderStep::Kind::kReplace, pattern.text, fields.String("content", "")});
  } else if (type == "Strip") {
    const std::string content = fields.String("content", " ");
    const int64_t start = fields.Integer("start", 0), stop = fields.Integer("stop", 0);
    if (content != " " || start < 0 || start > 1 || stop != 0) {
      return InvalidArgument("a Strip decoder other than of one space at the begin is not supported");
    }
    spec->strip_leading_space = spec->strip_leading_space || start == 1;
  } else if (type == "Metaspace") {
    ASSIGN_OR_RETURN(const MetaspaceWords step, ParseMetaspace(json));
    spec->decoder.push_back({DecoderStep::Kind::kReplace, step.replacement, " "});
    if (step.prepend != PrependScheme::kNever) spec->strip_leading_space = true;
  } else {
    return Unsupported("decoder", type);
  }
  return fields.status();
}

}  // namespace quire

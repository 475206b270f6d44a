// See tokenizer_json.h. The parts that write lists of steps are in tokenizer_json_steps.cc.
#include "core/io/tokenizer_json.h"

#include <limits>
#include <utility>

#include "core/io/gguf_vocab_tokenizer.h"
#include "core/io/tokenizer_json_steps.h"

namespace quire {
namespace {

Result<VocabMap> ParseVocab(const Json& json) {
  if (!json.is_object()) return InvalidArgument("the model's vocab is not an object of token → id");
  VocabMap vocab;
  vocab.reserve(json.size());
  for (const auto& [token, id] : json.items()) {
    if (!id.is_number_integer() || id < 0 || id > std::numeric_limits<int32_t>::max() / 2) {
      return InvalidArgument("the id of the token \"" + token + "\" is not a number of the vocabulary");
    }
    vocab.emplace(token, id.get<int32_t>());
  }
  return vocab;
}

Result<std::pair<std::string, std::string>> ParseMerge(const Json& json, size_t index) {
  if (json.is_array() && json.size() == 2 && json[0].is_string() && json[1].is_string()) {
    return std::make_pair(json[0].get<std::string>(), json[1].get<std::string>());
  }
  if (json.is_string()) {
    const auto& text = json.get_ref<const std::string&>();
    const size_t space = text.find(' ');
    if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos) {
      return std::make_pair(text.substr(0, space), text.substr(space + 1));
    }
  }
  return InvalidArgument("merge " + std::to_string(index) + " is neither \"a b\" nor [\"a\", \"b\"]");
}

// The affixes and the dropout of a BPE model change its result and are not supported.
Status CheckUnusedOptions(const Json& model) {
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const auto it = model.find(key);
    if (it != model.end() && !it->is_null() && !(it->is_string() && it->get_ref<const std::string&>().empty())) {
      return InvalidArgument(std::string("the BPE model has a ") + key + ", which is not supported");
    }
  }
  const auto dropout = model.find("dropout");
  if (dropout != model.end() && !dropout->is_null() && !(dropout->is_number() && dropout->get<double>() == 0)) {
    return InvalidArgument("the BPE model has dropout, which is for training only; set it to null");
  }
  return OkStatus();
}

Result<BpeModel> ParseModel(const Json& json, const std::vector<AddedToken>& added) {
  if (!json.is_object()) return InvalidArgument("there is no model in it");
  Fields fields(json, "model");
  const std::string type = fields.String("type", "BPE");
  if (type != "BPE") return InvalidArgument("the model type " + type + " is not supported (BPE is)");
  RETURN_IF_ERROR(CheckUnusedOptions(json));
  BpeOptions options;
  options.fuse_unk = fields.Bool("fuse_unk", false);
  options.byte_fallback = fields.Bool("byte_fallback", false);
  options.ignore_merges = fields.Bool("ignore_merges", false);
  const std::string unk = fields.String("unk_token", "");
  RETURN_IF_ERROR(fields.status());
  ASSIGN_OR_RETURN(VocabMap vocab, ParseVocab(json.contains("vocab") ? json["vocab"] : Json()));
  if (!unk.empty()) {
    if (const auto it = vocab.find(unk); it != vocab.end()) options.unk_id = it->second;
    for (const AddedToken& token : added) {
      if (options.unk_id < 0 && token.content == unk) options.unk_id = token.id;
    }
    if (options.unk_id < 0) return InvalidArgument("the unk_token \"" + unk + "\" is not in the vocabulary");
  }
  std::vector<std::pair<std::string, std::string>> merges;
  if (const auto it = json.find("merges"); it != json.end()) {
    if (!it->is_array()) return InvalidArgument("the model's merges are not a list");
    merges.reserve(it->size());
    for (size_t i = 0; i < it->size(); ++i) {
      ASSIGN_OR_RETURN(auto merge, ParseMerge((*it)[i], i));
      merges.push_back(std::move(merge));
    }
  }
  return BpeModel::FromMerges(std::move(vocab), merges, options);
}

Result<std::vector<AddedToken>> ParseAddedTokens(const Json& json) {
  std::vector<AddedToken> tokens;
  if (json.is_null()) return tokens;
  if (!json.is_array()) return InvalidArgument("added_tokens is not a list");
  for (const Json& entry : json) {
    if (!entry.is_object()) return InvalidArgument("an entry of added_tokens is not an object");
    Fields fields(entry, "added_tokens");
    AddedToken token;
    token.content = fields.String("content", "");
    token.special = fields.Bool("special", false);
    token.single_word = fields.Bool("single_word", false);
    token.lstrip = fields.Bool("lstrip", false);
    token.rstrip = fields.Bool("rstrip", false);
    token.normalized = fields.Bool("normalized", !token.special);
    RETURN_IF_ERROR(fields.status());
    const auto id = entry.find("id");
    if (id == entry.end() || !id->is_number_integer() || *id < 0 || *id > std::numeric_limits<int32_t>::max() / 2) {
      return InvalidArgument("the added token \"" + token.content + "\" has no valid id");
    }
    token.id = id->get<int32_t>();
    if (token.content.empty()) continue;
    tokens.push_back(std::move(token));
  }
  return tokens;
}

}  // namespace

Result<std::unique_ptr<PipelineTokenizer>> MakeJsonTokenizer(std::string_view text) {
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) return InvalidArgument("it is not valid JSON");
  if (!json.is_object()) return InvalidArgument("it is JSON, but not an object");
  const auto member = [&](const char* key) -> const Json& {
    static const Json null;
    const auto it = json.find(key);
    return it == json.end() ? null : *it;
  };
  PipelineSpec spec;
  ASSIGN_OR_RETURN(spec.added, ParseAddedTokens(member("added_tokens")));
  ASSIGN_OR_RETURN(spec.model, ParseModel(member("model"), spec.added));
  RETURN_IF_ERROR(ParseNormalizer(member("normalizer"), 0, &spec.normalizer));
  RETURN_IF_ERROR(ParsePreTokenizer(member("pre_tokenizer"), 0, &spec.pre_tokenizer));
  RETURN_IF_ERROR(ParsePostProcessor(member("post_processor"), 0, &spec));
  RETURN_IF_ERROR(ParseDecoder(member("decoder"), 0, &spec));
  return PipelineTokenizer::Create(std::move(spec));
}

Result<std::unique_ptr<Tokenizer>> LoadTokenizerFromJson(std::string_view json) {
  ASSIGN_OR_RETURN(auto tokenizer, MakeJsonTokenizer(json));
  return std::unique_ptr<Tokenizer>(std::move(tokenizer));
}

Result<std::unique_ptr<PipelineTokenizer>> MakeVocabMergesTokenizer(std::string_view vocab_json,
                                                                    std::string_view merges_text,
                                                                    std::string_view pre) {
  const Json json = Json::parse(vocab_json, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) return InvalidArgument("vocab.json is not valid JSON");
  ASSIGN_OR_RETURN(VocabMap vocab, ParseVocab(json));
  PipelineSpec spec;
  for (const auto& [token, id] : vocab) {
    if (token.size() > 4 && token.starts_with("<|") && token.ends_with("|>")) {
      AddedToken added;
      added.id = id;
      added.content = token;
      added.special = true;
      spec.added.push_back(std::move(added));
    }
  }
  std::vector<std::pair<std::string, std::string>> merges;
  for (size_t begin = 0; begin < merges_text.size();) {
    const size_t end = std::min(merges_text.find('\n', begin), merges_text.size());
    std::string_view line = merges_text.substr(begin, end - begin);
    const bool header = begin == 0 && line.starts_with("#version");
    begin = end + 1;
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    if (line.empty() || header) continue;
    const size_t space = line.find(' ');
    if (space == std::string_view::npos) {
      return InvalidArgument("line \"" + std::string(line) + "\" of merges.txt has no space");
    }
    merges.emplace_back(line.substr(0, space), line.substr(space + 1));
  }
  ASSIGN_OR_RETURN(spec.model, BpeModel::FromMerges(std::move(vocab), merges, BpeOptions{}));
  ASSIGN_OR_RETURN([[maybe_unused]] const PreTraits traits, MakePreTokenizer(pre, &spec));
  spec.decoder.push_back({DecoderStep::Kind::kByteLevel});
  return PipelineTokenizer::Create(std::move(spec));
}

}  // namespace quire

// See gguf_vocab_tokenizer.h. Which expression a pre name stands for is a fact of the models' own
// tokenizer.json files; the names are llama.cpp's.
#include "core/io/gguf_vocab_tokenizer.h"

#include <array>
#include <limits>
#include <utility>

#include "core/io/unicode.h"

namespace quire {
namespace {

struct PreRow {
  const char* name;
  std::array<const char*, 4> patterns;  // each isolates its matches; nullptr: no more
  bool nfc = false;
  PreTraits traits = {};
};

// Llama 3 (after OpenAI's cl100k), and Qwen2's variant with single digits.
constexpr char kLlama3[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kQwen2[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
// Mistral's tekken cuts at changes of case; OpenAI's o200k too, with English endings and up to three digits.
constexpr char kTekken[] =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
    R"(|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kO200k[] =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kThreeDigits[] = "[0-9][0-9][0-9]";

constexpr PreRow kPreRows[] = {
    {"default", {R"([\p{P}\$\+<=>\^~\|]+)", kGpt2Pattern, R"(\p{N}+)", kThreeDigits}},
    {"gpt-2", {kGpt2Pattern}},
    {"gpt2", {kGpt2Pattern}},
    {"phi-2", {kGpt2Pattern}},
    {"mpt", {kGpt2Pattern}},
    {"olmo", {kGpt2Pattern}},
    {"falcon", {R"([\p{P}\$\+<=>\^~\|`]+)", kGpt2Pattern, kThreeDigits}},
    {"smollm", {R"(\p{N})", kGpt2Pattern}},
    {"starcoder", {R"(\p{N})", kGpt2Pattern}},
    {"refact", {R"(\p{N})", kGpt2Pattern}},
    {"command-r", {R"(\p{N})", kGpt2Pattern}},
    {"codeshell", {R"(\p{N})", kGpt2Pattern}},
    {"llama3", {kLlama3}, false, {true, true}},
    {"llama-v3", {kLlama3}, false, {true, true}},
    {"llama-bpe", {kLlama3}, false, {true, true}},
    {"dbrx", {kLlama3}},
    {"smaug-bpe", {kLlama3}},
    {"qwen2", {kQwen2}, true},
    {"deepseek-r1-qwen", {kQwen2}, true},
    {"stablelm2", {kQwen2}},
    {"tekken", {kTekken}, false, {true, true}},
    {"gpt-4o", {kO200k}},
    {"llama4", {kO200k}},
    {"deepseek-v3",
     {R"(\p{N}{1,3})", R"([一-龥぀-ゟ゠-ヿ]+)",
      R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+)"
      R"(|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"}},
};

constexpr int64_t kMaxVocabulary = 8 << 20;

Status CheckTables(const GgufVocab& vocab) {
  if (vocab.tokens.empty()) return InvalidArgument("the vocabulary (tokenizer.ggml.tokens) is empty");
  if (static_cast<int64_t>(vocab.tokens.size()) > kMaxVocabulary) {
    return InvalidArgument("the vocabulary has " + std::to_string(vocab.tokens.size()) + " tokens, more than " +
                           std::to_string(kMaxVocabulary));
  }
  const auto same_size = [&](size_t size, const char* key) {
    if (size == 0 || size == vocab.tokens.size()) return OkStatus();
    return InvalidArgument(std::string("tokenizer.ggml.") + key + " has " + std::to_string(size) + " entries for " +
                           std::to_string(vocab.tokens.size()) + " tokens");
  };
  RETURN_IF_ERROR(same_size(vocab.scores.size(), "scores"));
  RETURN_IF_ERROR(same_size(vocab.types.size(), "token_type"));
  for (size_t i = 0; i < vocab.tokens.size(); ++i) {
    if (FindInvalidUtf8(vocab.tokens[i]) != std::string_view::npos) {
      return InvalidArgument("token " + std::to_string(i) + " of tokenizer.ggml.tokens is not valid UTF-8");
    }
  }
  const std::pair<const std::optional<int64_t>*, const char*> ids[] = {{&vocab.bos_id, "bos_token_id"},
                                                                       {&vocab.eos_id, "eos_token_id"},
                                                                       {&vocab.unk_id, "unknown_token_id"},
                                                                       {&vocab.eot_id, "eot_token_id"},
                                                                       {&vocab.eom_id, "eom_token_id"}};
  for (const auto& [id, key] : ids) {
    if (id->has_value() && (**id < 0 || **id >= static_cast<int64_t>(vocab.tokens.size()))) {
      return InvalidArgument(std::string("tokenizer.ggml.") + key + " is " + std::to_string(**id) +
                             ", outside of the " + std::to_string(vocab.tokens.size()) + " tokens");
    }
  }
  return OkStatus();
}

GgufTokenType TypeOf(const GgufVocab& vocab, size_t id) {
  return vocab.types.empty() ? GgufTokenType::kNormal : static_cast<GgufTokenType>(vocab.types[id]);
}

bool IsAdded(GgufTokenType type) {
  return type == GgufTokenType::kControl || type == GgufTokenType::kUserDefined || type == GgufTokenType::kUnknown;
}

void CollectAdded(const GgufVocab& vocab, PipelineSpec* spec) {
  for (size_t id = 0; id < vocab.tokens.size(); ++id) {
    const GgufTokenType type = TypeOf(vocab, id);
    if (!IsAdded(type) || vocab.tokens[id].empty()) continue;
    AddedToken token;
    token.id = static_cast<int32_t>(id);
    token.content = vocab.tokens[id];
    token.special = type != GgufTokenType::kUserDefined;
    spec->added.push_back(std::move(token));
  }
}

VocabMap AllTokens(const GgufVocab& vocab) {
  VocabMap map;
  map.reserve(vocab.tokens.size());
  for (size_t id = 0; id < vocab.tokens.size(); ++id) map.emplace(vocab.tokens[id], static_cast<int32_t>(id));
  return map;
}

Result<PreTraits> MakeByteLevelSpec(const GgufVocab& vocab, PipelineSpec* spec) {
  ASSIGN_OR_RETURN(const PreTraits traits, MakePreTokenizer(vocab.pre.empty() ? "default" : vocab.pre, spec));
  std::vector<std::pair<std::string, std::string>> merges;
  merges.reserve(vocab.merges.size());
  for (size_t i = 0; i < vocab.merges.size(); ++i) {
    const std::string& merge = vocab.merges[i];
    const size_t space = merge.find(' ', 1);
    if (space == std::string::npos) {
      return InvalidArgument("merge " + std::to_string(i) + " of tokenizer.ggml.merges (\"" + merge +
                             "\") has no space");
    }
    merges.emplace_back(merge.substr(0, space), merge.substr(space + 1));
  }
  BpeOptions options;
  options.ignore_merges = traits.ignore_merges;
  ASSIGN_OR_RETURN(spec->model, BpeModel::FromMerges(AllTokens(vocab), merges, options));
  spec->decoder.push_back({DecoderStep::Kind::kByteLevel});
  return traits;
}

Result<PreTraits> MakeScoredSpec(const GgufVocab& vocab, PipelineSpec* spec) {
  if (vocab.scores.empty()) return InvalidArgument("a \"llama\" vocabulary needs tokenizer.ggml.scores");
  std::vector<std::pair<std::string, float>> mergeable;
  for (size_t id = 0; id < vocab.tokens.size(); ++id) {
    const GgufTokenType type = TypeOf(vocab, id);
    if (IsAdded(type) || type == GgufTokenType::kByte || vocab.tokens[id].empty()) continue;
    mergeable.emplace_back(vocab.tokens[id], vocab.scores[id]);
  }
  BpeOptions options;
  options.byte_fallback = true;
  options.fuse_unk = true;
  options.unk_id = vocab.unk_id.has_value() ? static_cast<int32_t>(*vocab.unk_id) : -1;
  ASSIGN_OR_RETURN(spec->model, BpeModel::FromScores(AllTokens(vocab), mergeable, options));
  const bool prefix = vocab.add_space_prefix.value_or(true);
  constexpr char kSpace[] = "\xE2\x96\x81";
  if (prefix) spec->normalizer.push_back(NormalizePrepend{kSpace});
  spec->normalizer.push_back(NormalizeReplace{" ", std::nullopt, kSpace});
  spec->decoder.push_back({DecoderStep::Kind::kReplace, kSpace, " "});
  spec->decoder.push_back({DecoderStep::Kind::kByteFallback});
  spec->strip_leading_space = prefix;
  return PreTraits{false, true};
}

// The ends of generation: what the file names, and the ends of a turn that its chat template writes.
std::vector<int32_t> EndIds(const GgufVocab& vocab) {
  std::vector<int32_t> ids;
  const auto add = [&](int64_t id) {
    for (int32_t have : ids) {
      if (have == id) return;
    }
    ids.push_back(static_cast<int32_t>(id));
  };
  for (const auto* id : {&vocab.eos_id, &vocab.eot_id, &vocab.eom_id}) {
    if (id->has_value()) add(**id);
  }
  for (const char* end : {"<|im_end|>", "<|eot_id|>"}) {
    if (vocab.chat_template.find(end) == std::string::npos) continue;
    for (size_t id = 0; id < vocab.tokens.size(); ++id) {
      if (vocab.tokens[id] == end && IsAdded(TypeOf(vocab, id))) add(static_cast<int64_t>(id));
    }
  }
  return ids;
}

}  // namespace

Result<PreTraits> MakePreTokenizer(std::string_view pre, PipelineSpec* spec) {
  for (const PreRow& row : kPreRows) {
    if (row.name != pre) continue;
    if (row.nfc) spec->normalizer.push_back(NormalizeUnicode{NormalForm::kNfc});
    for (const char* pattern : row.patterns) {
      if (pattern == nullptr) break;
      ASSIGN_OR_RETURN(TokenizerRegex regex, TokenizerRegex::Compile(pattern));
      spec->pre_tokenizer.push_back(SplitOnRegex{std::move(regex), SplitBehavior::kIsolated, false});
    }
    spec->pre_tokenizer.push_back(MakeByteLevelWords(/*add_prefix_space=*/false, /*use_regex=*/false));
    return row.traits;
  }
  return InvalidArgument("the pre-tokenizer \"" + std::string(pre) +
                         "\" (tokenizer.ggml.pre) is not known; use the model's Hugging Face folder with its "
                         "tokenizer.json instead");
}

Result<std::unique_ptr<Tokenizer>> MakeGgufTokenizer(GgufVocab vocab) {
  RETURN_IF_ERROR(CheckTables(vocab));
  PipelineSpec spec;
  CollectAdded(vocab, &spec);
  PreTraits traits;
  if (vocab.model == "gpt2") {
    ASSIGN_OR_RETURN(traits, MakeByteLevelSpec(vocab, &spec));
  } else if (vocab.model == "llama") {
    ASSIGN_OR_RETURN(traits, MakeScoredSpec(vocab, &spec));
  } else {
    return InvalidArgument("the vocabulary kind \"" + vocab.model +
                           "\" (tokenizer.ggml.model) is not supported; gpt2 and llama are");
  }
  if (vocab.add_bos.value_or(traits.add_bos)) {
    if (!vocab.bos_id.has_value()) {
      if (vocab.add_bos.has_value()) return InvalidArgument("add_bos_token is set, but there is no bos_token_id");
    } else {
      spec.prefix_ids.push_back(static_cast<int32_t>(*vocab.bos_id));
    }
  }
  if (vocab.add_eos.value_or(false)) {
    if (!vocab.eos_id.has_value()) return InvalidArgument("add_eos_token is set, but there is no eos_token_id");
    spec.suffix_ids.push_back(static_cast<int32_t>(*vocab.eos_id));
  }
  TokenizerSettings settings;
  if (vocab.bos_id.has_value()) settings.bos_id = static_cast<int32_t>(*vocab.bos_id);
  settings.eos_ids = EndIds(vocab);
  settings.chat_template = std::move(vocab.chat_template);
  ASSIGN_OR_RETURN(auto tokenizer, PipelineTokenizer::Create(std::move(spec)));
  tokenizer->settings() = std::move(settings);
  return std::unique_ptr<Tokenizer>(std::move(tokenizer));
}

}  // namespace quire

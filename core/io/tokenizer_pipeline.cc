// See tokenizer_pipeline.h.
#include "core/io/tokenizer_pipeline.h"

#include <algorithm>
#include <utility>

#include "core/io/tokenizer_byte_level.h"

namespace quire {
namespace {

constexpr size_t kMaxTokenBytes = 64 << 10;
constexpr int64_t kMaxGap = 100'000;  // ids that a vocabulary may leave unused, beyond its size

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

std::string ReplaceAll(std::string_view token, const DecoderStep& step) {
  std::string out;
  size_t last = 0;
  for (size_t at = 0; (at = token.find(step.from, at)) != std::string_view::npos; at = last) {
    out.append(token, last, at - last);
    out.append(step.to);
    last = at + step.from.size();
  }
  out.append(token, last);
  return out;
}

Result<std::string> DecodeToken(const std::vector<DecoderStep>& steps, std::string token) {
  for (const DecoderStep& step : steps) {
    if (step.kind == DecoderStep::Kind::kByteLevel) {
      if (auto bytes = ByteLevelDecode(token)) token = std::move(*bytes);
      break;  // what follows works on text, and these are bytes (the loader takes nothing behind ByteLevel)
    }
    if (step.kind == DecoderStep::Kind::kByteFallback) {
      if (token.size() == 6 && token.starts_with("<0x") && token[5] == '>') {
        const int high = HexDigit(token[3]), low = HexDigit(token[4]);
        if (high >= 0 && low >= 0)
          return std::string(1, static_cast<char>(static_cast<unsigned char>(high * 16 + low)));
      }
      continue;
    }
    token = ReplaceAll(token, step);
    if (token.size() > kMaxTokenBytes) {
      return InvalidArgument("the tokenizer's decoder makes a token longer than " + std::to_string(kMaxTokenBytes) +
                             " bytes");
    }
  }
  return token;
}

}  // namespace

Result<std::unique_ptr<PipelineTokenizer>> PipelineTokenizer::Create(PipelineSpec spec) {
  const VocabMap& vocab = spec.model.vocab();
  const int64_t limit = static_cast<int64_t>(vocab.size() + spec.added.size()) + kMaxGap;
  int32_t max_id = -1;
  const auto check = [&](int32_t id, const std::string& text) {
    max_id = std::max(max_id, id);
    if (id >= 0 && id < limit) return OkStatus();
    return InvalidArgument("the token \"" + text + "\" has the id " + std::to_string(id) + ", outside of [0, " +
                           std::to_string(limit) + ")");
  };
  for (const auto& [text, id] : vocab) RETURN_IF_ERROR(check(id, text));
  for (const AddedToken& token : spec.added) RETURN_IF_ERROR(check(token.id, token.content));
  for (const auto* ids : {&spec.prefix_ids, &spec.suffix_ids}) {
    for (int32_t id : *ids) RETURN_IF_ERROR(check(id, "of the post-processor"));
  }

  std::vector<TokenEntry> entries(static_cast<size_t>(max_id) + 1);
  for (const auto& [text, id] : vocab) entries[id].text = text;
  for (const AddedToken& token : spec.added) {
    entries[token.id].text = token.content;
    entries[token.id].special = entries[token.id].special || token.special;
  }
  for (TokenEntry& entry : entries) {
    if (entry.text.size() > kMaxTokenBytes) {
      return InvalidArgument("a token of " + std::to_string(entry.text.size()) + " bytes, more than the " +
                             std::to_string(kMaxTokenBytes) + " that are taken");
    }
    ASSIGN_OR_RETURN(entry.bytes, DecodeToken(spec.decoder, entry.text));
  }
  std::unique_ptr<PipelineTokenizer> tokenizer(new PipelineTokenizer(std::move(spec), std::move(entries)));
  for (const AddedToken& token : tokenizer->spec_.added) {
    if (token.normalized) {
      ASSIGN_OR_RETURN(const std::string text, ApplyNormalizer(tokenizer->spec_.normalizer, token.content));
      tokenizer->normalized_matcher_.Add(token, text);
    } else {
      tokenizer->raw_matcher_.Add(token, token.content);
    }
  }
  return tokenizer;
}

PipelineTokenizer::PipelineTokenizer(PipelineSpec spec, std::vector<TokenEntry> entries)
    : TokenTable(std::move(entries), spec.strip_leading_space), spec_(std::move(spec)) {}

Status PipelineTokenizer::EncodePlain(std::string text, bool at_text_start, BpeModel::Scratch* scratch,
                                      std::vector<int32_t>* ids) const {
  ASSIGN_OR_RETURN(const Words words, ApplyPreTokenizer(spec_.pre_tokenizer, std::move(text), at_text_start));
  const std::string_view all = words.text;
  for (const ByteRange& range : words.ranges) {
    spec_.model.EncodeWord(all.substr(range.begin, range.end - range.begin), scratch, ids);
  }
  return OkStatus();
}

Result<std::vector<int32_t>> PipelineTokenizer::Encode(std::string_view text, const EncodeOptions& options) const {
  RETURN_IF_ERROR(CheckEncodable(text));
  std::vector<int32_t> ids;
  if (options.add_special_tokens) ids = spec_.prefix_ids;
  BpeModel::Scratch scratch;
  std::vector<AddedTokenMatcher::Part> parts, inner;
  raw_matcher_.Split(text, options.parse_special_tokens, &parts);
  for (const auto& part : parts) {
    if (part.id >= 0) {
      ids.push_back(part.id);
      continue;
    }
    std::string plain(text.substr(part.range.begin, part.range.end - part.range.begin));
    ASSIGN_OR_RETURN(plain, ApplyNormalizer(spec_.normalizer, std::move(plain)));
    inner.clear();
    normalized_matcher_.Split(plain, options.parse_special_tokens, &inner);
    for (const auto& piece : inner) {
      if (piece.id >= 0) {
        ids.push_back(piece.id);
        continue;
      }
      RETURN_IF_ERROR(EncodePlain(plain.substr(piece.range.begin, piece.range.end - piece.range.begin),
                                  part.range.begin == 0 && piece.range.begin == 0, &scratch, &ids));
    }
  }
  if (options.add_special_tokens) ids.insert(ids.end(), spec_.suffix_ids.begin(), spec_.suffix_ids.end());
  return ids;
}

}  // namespace quire

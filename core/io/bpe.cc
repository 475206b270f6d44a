// See bpe.h. The merge loop keeps the word as a linked list of symbols and the possible merges in a heap; a
// candidate whose symbols have changed since it was pushed is dropped when it comes up.
#include "core/io/bpe.h"

#include <algorithm>
#include <cstdio>
#include <limits>

#include "core/base/check.h"
#include "core/io/unicode.h"

namespace quire {
namespace {

constexpr char32_t kMetaspace = 0x2581;
constexpr size_t kCachedWordBytes = 64;  // longer words rarely come twice
constexpr size_t kCachedWords = 1 << 16;
constexpr size_t kMetaspaceSplitBytes = 64;  // words longer than this are cut at "▁" where that is exact

uint64_t PairKey(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

size_t HashKey(uint64_t key) {
  key *= 0x9E3779B97F4A7C15ull;
  return static_cast<size_t>(key ^ key >> 32);
}

// A heap's "less": the candidate that comes later.
bool Later(const BpeModel::Scratch::Candidate& a, const BpeModel::Scratch::Candidate& b) {
  return a.rank != b.rank ? a.rank > b.rank : a.left > b.left;
}

// True when `token` has a "▁" directly behind another character.
bool HasInnerMetaspace(std::string_view token) {
  char32_t before = kMetaspace;
  for (size_t pos = 0; pos < token.size();) {
    const char32_t c = NextCodePoint(token, &pos);
    if (c == kMetaspace && before != kMetaspace) return true;
    before = c;
  }
  return false;
}

}  // namespace

void BpeModel::IndexCharacters(const VocabMap& usable) {
  character_ids_.assign(0x10000, -1);
  int32_t max_id = -1;
  for (const auto& [token, id] : vocab_) max_id = std::max(max_id, id);
  for (const auto& [token, id] : usable) {
    if (token.empty() || token.size() > 4) continue;
    size_t pos = 0;
    const char32_t c = NextCodePoint(token, &pos);
    if (pos != token.size()) continue;
    if (c < 0x10000) {
      character_ids_[c] = id;
    } else {
      high_character_ids_[c] = id;
    }
  }
  first_pseudo_id_ = max_id + 1;
  if (options_.byte_fallback) {
    byte_ids_.assign(256, -1);
    for (int b = 0; b < 256; ++b) {
      char name[8];
      std::snprintf(name, sizeof(name), "<0x%02X>", b);
      if (const auto it = vocab_.find(std::string_view(name)); it != vocab_.end()) byte_ids_[b] = it->second;
    }
  }
}

void BpeModel::BuildMergeTable(std::vector<Merge> merges) {
  size_t capacity = 16;
  while (capacity < merges.size() * 2) capacity *= 2;
  table_.assign(capacity, Merge{0, -1, -1});
  for (const Merge& merge : merges) {
    size_t slot = HashKey(merge.key) & (capacity - 1);
    while (table_[slot].rank >= 0 && table_[slot].key != merge.key) slot = (slot + 1) & (capacity - 1);
    table_[slot] = merge;  // a pair that is listed twice has its last rank, as a map filled in order would
  }
}

const BpeModel::Merge* BpeModel::FindMerge(int32_t left, int32_t right) const {
  const uint64_t key = PairKey(left, right);
  const size_t mask = table_.size() - 1;
  for (size_t slot = HashKey(key) & mask;; slot = (slot + 1) & mask) {
    const Merge& merge = table_[slot];
    if (merge.rank < 0) return nullptr;
    if (merge.key == key) return &merge;
  }
}

Result<BpeModel> BpeModel::FromMerges(VocabMap vocab, const std::vector<std::pair<std::string, std::string>>& merges,
                                      const BpeOptions& options) {
  BpeModel model;
  model.vocab_ = std::move(vocab);
  model.options_ = options;
  model.IndexCharacters(model.vocab_);
  std::vector<Merge> table;
  table.reserve(merges.size());
  model.splits_at_metaspace_ = model.CharacterId(kMetaspace) >= 0 && !options.ignore_merges;
  for (size_t i = 0; i < merges.size(); ++i) {
    const auto& [left, right] = merges[i];
    const std::string joined = left + right;
    for (const std::string* token : {&left, &right, &joined}) {
      if (!model.vocab_.contains(*token)) {
        return InvalidArgument("merge " + std::to_string(i) + " (\"" + left + "\" \"" + right +
                               "\") needs the token \"" + *token + "\", which is not in the vocabulary");
      }
    }
    if (HasInnerMetaspace(joined)) model.splits_at_metaspace_ = false;
    table.push_back({PairKey(model.vocab_.find(left)->second, model.vocab_.find(right)->second),
                     static_cast<int32_t>(i), model.vocab_.find(joined)->second});
  }
  model.BuildMergeTable(std::move(table));
  return model;
}

Result<BpeModel> BpeModel::FromScores(VocabMap vocab, const std::vector<std::pair<std::string, float>>& mergeable,
                                      const BpeOptions& options) {
  BpeModel model;
  model.vocab_ = std::move(vocab);
  model.options_ = options;
  // Only a mergeable token may stand for a character: "<0x41>" and control tokens never come from text.
  std::vector<float> scores;
  VocabMap usable;
  for (const auto& [token, score] : mergeable) {
    const auto it = model.vocab_.find(token);
    if (it == model.vocab_.end()) return InvalidArgument("the scored token \"" + token + "\" is not in the vocabulary");
    if (score != score) return InvalidArgument("the score of the token \"" + token + "\" is not a number");
    usable.emplace(token, it->second);
    scores.push_back(score);
  }
  model.IndexCharacters(usable);
  std::sort(scores.begin(), scores.end(), std::greater<>());
  scores.erase(std::unique(scores.begin(), scores.end()), scores.end());

  // Characters that have no id of their own but are part of a token get a pseudo id, so that they can merge.
  int32_t next_pseudo = model.first_pseudo_id_;
  std::vector<Merge> table;
  model.splits_at_metaspace_ = usable.contains("\xE2\x96\x81") && !options.ignore_merges;
  for (const auto& [token, score] : mergeable) {
    if (HasInnerMetaspace(token)) model.splits_at_metaspace_ = false;
    const int32_t rank =
        static_cast<int32_t>(std::lower_bound(scores.begin(), scores.end(), score, std::greater<>()) - scores.begin());
    const int32_t merged = usable.find(token)->second;
    const auto symbol_of = [&](std::string_view part) -> int32_t {
      if (const auto it = usable.find(part); it != usable.end()) return it->second;
      size_t pos = 0;
      const char32_t c = NextCodePoint(part, &pos);
      if (pos != part.size()) return -1;
      int32_t& id = c < 0x10000 ? model.character_ids_[c] : model.high_character_ids_.try_emplace(c, -1).first->second;
      if (id < 0) id = next_pseudo++;
      return id;
    };
    for (size_t cut = 0; cut < token.size();) {
      NextCodePoint(token, &cut);
      if (cut == token.size()) break;
      const int32_t left = symbol_of(std::string_view(token).substr(0, cut));
      if (left < 0) continue;
      const int32_t right = symbol_of(std::string_view(token).substr(cut));
      if (right >= 0) table.push_back({PairKey(left, right), rank, merged});
    }
  }
  model.BuildMergeTable(std::move(table));
  return model;
}

int32_t BpeModel::CharacterId(char32_t code_point) const {
  if (code_point < 0x10000) return character_ids_[code_point];
  const auto it = high_character_ids_.find(code_point);
  return it == high_character_ids_.end() ? -1 : it->second;
}

bool BpeModel::ByteIds(std::string_view character, std::vector<int32_t>* ids) const {
  if (byte_ids_.empty()) return false;
  for (char b : character) {
    if (byte_ids_[static_cast<unsigned char>(b)] < 0) return false;
  }
  for (char b : character) ids->push_back(byte_ids_[static_cast<unsigned char>(b)]);
  return true;
}

void BpeModel::EncodeWord(std::string_view word, Scratch* scratch, std::vector<int32_t>* ids) const {
  if (splits_at_metaspace_ && word.size() > kMetaspaceSplitBytes) {
    constexpr std::string_view kText = "\xE2\x96\x81";
    size_t begin = 0;
    while (begin < word.size()) {
      size_t end = begin;
      while (word.substr(end, kText.size()) == kText) end += kText.size();  // the "▁"s that open the part
      end = std::min(word.find(kText, end), word.size());
      EncodePart(word.substr(begin, end - begin), scratch, ids);
      begin = end;
    }
    return;
  }
  EncodePart(word, scratch, ids);
}

void BpeModel::EncodePart(std::string_view word, Scratch* scratch, std::vector<int32_t>* ids) const {
  if (word.empty()) return;
  if (options_.ignore_merges) {
    if (const auto it = vocab_.find(word); it != vocab_.end()) {
      ids->push_back(it->second);
      return;
    }
  }
  const bool cacheable = word.size() <= kCachedWordBytes;
  if (cacheable) {
    if (const auto it = scratch->cache.find(word); it != scratch->cache.end()) {
      ids->insert(ids->end(), scratch->cached_ids.begin() + it->second.first,
                  scratch->cached_ids.begin() + it->second.second);
      return;
    }
  }
  const size_t first = ids->size();
  MergeWord(word, scratch, ids);
  if (cacheable && scratch->cache.size() < kCachedWords) {
    const auto begin = static_cast<uint32_t>(scratch->cached_ids.size());
    scratch->cached_ids.insert(scratch->cached_ids.end(), ids->begin() + static_cast<std::ptrdiff_t>(first),
                               ids->end());
    scratch->cache.emplace(word, std::make_pair(begin, static_cast<uint32_t>(scratch->cached_ids.size())));
  }
}

void BpeModel::MergeWord(std::string_view word, Scratch* scratch, std::vector<int32_t>* ids) const {
  CHECK_LT(word.size(), static_cast<size_t>(std::numeric_limits<int32_t>::max()));
  auto& symbols = scratch->symbols;
  auto& heap = scratch->heap;
  symbols.clear();
  heap.clear();
  const auto push_symbol = [&](int32_t id, size_t begin, size_t end) {
    const auto at = static_cast<int32_t>(symbols.size());
    if (at > 0) symbols.back().next = at;
    symbols.push_back({id, at - 1, -1, static_cast<uint32_t>(begin), static_cast<uint32_t>(end)});
  };
  bool after_unknown = false;
  std::vector<int32_t> bytes;
  for (size_t pos = 0; pos < word.size();) {
    const size_t begin = pos;
    const int32_t id = CharacterId(NextCodePoint(word, &pos));
    bool unknown = false;
    bytes.clear();
    if (id >= 0) {
      push_symbol(id, begin, pos);
    } else if (ByteIds(word.substr(begin, pos - begin), &bytes)) {
      for (size_t i = 0; i < bytes.size(); ++i) push_symbol(bytes[i], begin + i, begin + i + 1);
    } else if (options_.unk_id >= 0) {
      unknown = true;
      if (!(options_.fuse_unk && after_unknown)) push_symbol(options_.unk_id, begin, pos);
    }
    after_unknown = unknown;
  }

  const auto consider = [&](int32_t left) {
    if (left < 0 || symbols[left].next < 0) return false;
    const int32_t id_left = symbols[left].id;
    const int32_t id_right = symbols[symbols[left].next].id;
    const Merge* merge = FindMerge(id_left, id_right);
    if (merge == nullptr) return false;
    heap.push_back({merge->rank, left, id_left, id_right, merge->merged});
    return true;
  };
  for (int32_t i = 0; i + 1 < static_cast<int32_t>(symbols.size()); ++i) consider(i);
  std::make_heap(heap.begin(), heap.end(), Later);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), Later);
    const Scratch::Candidate top = heap.back();
    heap.pop_back();
    Scratch::Symbol& left = symbols[top.left];
    if (left.id != top.id_left || left.next < 0 || symbols[left.next].id != top.id_right) continue;
    Scratch::Symbol& right = symbols[left.next];
    left.id = top.merged;
    left.end = right.end;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbols[left.next].prev = top.left;
    if (consider(left.prev)) std::push_heap(heap.begin(), heap.end(), Later);
    if (consider(top.left)) std::push_heap(heap.begin(), heap.end(), Later);
  }

  after_unknown = false;
  for (int32_t i = symbols.empty() ? -1 : 0; i >= 0; i = symbols[i].next) {
    const Scratch::Symbol& symbol = symbols[i];
    bool unknown = false;
    if (symbol.id < first_pseudo_id_) {
      ids->push_back(symbol.id);
    } else if (!ByteIds(word.substr(symbol.begin, symbol.end - symbol.begin), ids) && options_.unk_id >= 0) {
      unknown = true;
      if (!(options_.fuse_unk && after_unknown)) ids->push_back(options_.unk_id);
    }
    after_unknown = unknown;
  }
}

}  // namespace quire

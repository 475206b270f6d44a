// Byte-pair encoding of one word: characters become symbols, the pair of lowest rank merges first (the
// leftmost of equal ranks) until none is left. One engine for merge lists (tokenizer.json, GGUF gpt2) and for
// merges by score (GGUF llama, as SentencePiece does them). Cutting text into words is the caller's.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/base/status.h"

namespace quire {

struct TransparentHash {
  using is_transparent = void;
  size_t operator()(std::string_view s) const { return std::hash<std::string_view>{}(s); }
};
using VocabMap = std::unordered_map<std::string, int32_t, TransparentHash, std::equal_to<>>;

struct BpeOptions {
  int32_t unk_id = -1;         // for characters that are not in the vocabulary; -1: they are left out
  bool fuse_unk = false;       // neighbouring unknown characters give one unk
  bool byte_fallback = false;  // unknown characters become "<0x0A>" ids, if all of their bytes have one
  bool ignore_merges = false;  // a word that is in the vocabulary is its id, whatever the merges say
};

class BpeModel {
 public:
  // `merges` in order of rank, each the two tokens that merge. INVALID_ARGUMENT for a merge of or into a token
  // that is not in the vocabulary. Keys of `vocab` are valid UTF-8.
  static Result<BpeModel> FromMerges(VocabMap vocab, const std::vector<std::pair<std::string, std::string>>& merges,
                                     const BpeOptions& options);
  // Any two neighbours whose concatenation is in `mergeable` (text → score) merge, the highest score first
  // (Kudo & Richardson 2018, SentencePiece's bpe model). `vocab` holds `mergeable` and the byte tokens.
  static Result<BpeModel> FromScores(VocabMap vocab, const std::vector<std::pair<std::string, float>>& mergeable,
                                     const BpeOptions& options);

  // What one encoding of a text keeps between its words; not shared between threads.
  struct Scratch {
    struct Symbol {
      int32_t id;           // ≥ vocabulary size: a character that has no id of its own; -1: merged away
      int32_t prev, next;   // -1: none
      uint32_t begin, end;  // bytes of the word
    };
    struct Candidate {
      int32_t rank, left, id_left, id_right, merged;
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
    // word → [begin, end) of cached_ids
    std::unordered_map<std::string, std::pair<uint32_t, uint32_t>, TransparentHash, std::equal_to<>> cache;
    std::vector<int32_t> cached_ids;
  };

  // Appends the ids of `word` (valid UTF-8). O(n log n) in its length.
  void EncodeWord(std::string_view word, Scratch* scratch, std::vector<int32_t>* ids) const;

  const VocabMap& vocab() const { return vocab_; }
  // True when no merge joins a character that is not "▁" with a following "▁": then cutting before such a "▁"
  // changes nothing.
  bool splits_at_metaspace() const { return splits_at_metaspace_; }

 private:
  struct Merge {
    uint64_t key;  // left << 32 | right
    int32_t rank;
    int32_t merged;
  };

  void IndexCharacters(const VocabMap& usable);
  void BuildMergeTable(std::vector<Merge> merges);
  const Merge* FindMerge(int32_t left, int32_t right) const;
  int32_t CharacterId(char32_t code_point) const;
  void EncodePart(std::string_view word, Scratch* scratch, std::vector<int32_t>* ids) const;  // through the cache
  void MergeWord(std::string_view word, Scratch* scratch, std::vector<int32_t>* ids) const;
  // The byte tokens of a character, if byte fallback is on and all of them are there.
  bool ByteIds(std::string_view character, std::vector<int32_t>* ids) const;

  VocabMap vocab_;
  BpeOptions options_;
  std::vector<int32_t> character_ids_;                        // code point < 0x10000 → id, -1: none
  std::unordered_map<char32_t, int32_t> high_character_ids_;  // the others
  std::vector<int32_t> byte_ids_;                             // 256, or empty without byte fallback; -1: none
  std::vector<Merge> table_;                                  // open addressing, a power of two; rank -1: free
  int32_t first_pseudo_id_ = 0;
  bool splits_at_metaspace_ = false;
};

}  // namespace quire

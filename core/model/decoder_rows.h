// The rows of one step in the order in which the decoder runs them: decode rows first, sorted so that rows that
// one kernel call can serve stand together (same policy, then by length, for the dense-or-sparse switch depends on it);
// then those of evicting sequences' prompts past their capacity, which the decode kernel serves too; then the prefill
// chunks as given. Only the order of rows depends on the batch, never a row's arithmetic.
#pragma once

#include <cstdint>
#include <vector>

#include "core/model/decoder.h"
#include "kernels/attention_prefill.h"

namespace quire {

struct DecoderRows {
  int rows = 0;
  int counted_rows = 0;           // the first of the rows: decode chunks'
  int decode_rows = 0;            // these, and the rows of chunks past a capacity
  bool overwrites = false;        // any row does
  std::vector<int32_t> place;     // [rows] where the caller's row stands
  std::vector<int32_t> source;    // [rows] the caller's row that stands at a place
  std::vector<int32_t> tokens;    // [rows] by place, as all that follow
  std::vector<int32_t> seq;       // index into the tables
  std::vector<int32_t> pos;       // position of the token
  std::vector<int32_t> len;       // tokens in the cache that the row sees: pos + 1, or the capacity where that is less
  std::vector<int32_t> rope_len;  // length that dynamic rope scaling counts with
  std::vector<const AttentionPolicy*> policy;  // [decode_rows], null: dense
  std::vector<PageHistory*> history;           // [decode_rows], null: none
  std::vector<SlotMap*> slots;                 // [decode_rows], null: none
  std::vector<PrefillChunk> prefill;
  std::vector<const ForwardChunk*> prefill_source;  // [prefill] the batch's
  // The chunks from their first row with logits on: all that the last layer needs to attend with.
  std::vector<PrefillChunk> prefill_with_logits;
  std::vector<int32_t> logit_places;  // places of the batch's logit rows, in its order

  // Whether the row takes the slot of another token.
  bool Overwrites(int row) const { return pos[row] >= len[row]; }

  // Memory grows to the largest step seen and stays. CHECKs what ForwardBatch promises.
  void Build(const ForwardBatch& batch);
  // The chunks from their first row with logits on, but those for which `whole(index)` holds stay as they are.
  template <typename Whole>
  void PrefillWithLogits(Whole&& whole, std::vector<PrefillChunk>* out) const {
    out->clear();
    for (size_t i = 0; i < prefill.size(); ++i) {
      const PrefillChunk& chunk = prefill[i];
      const int first = whole(i) ? 0 : FirstRowWithLogits(chunk);
      if (first == chunk.rows) continue;
      out->push_back({chunk.seq, chunk.first_row + first, chunk.rows - first, chunk.start_pos + first});
    }
  }

 private:
  int FirstRowWithLogits(const PrefillChunk& chunk) const;

  std::vector<const ForwardChunk*> order_;
};

}  // namespace quire

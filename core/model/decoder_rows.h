// The rows of one step in the order in which the decoder runs them: decode rows first, sorted so that rows that
// one kernel call can serve stand together (same policy, then by length, for the dense-or-sparse switch depends on it);
// then those of evicting sequences' prompts past their capacity, which the decode kernel serves too; then the prefill
// chunks as given. Only the order of rows depends on the batch, never a row's arithmetic.
//
// A step of decode rows alone may be filled up with empty rows: then few shapes of steps serve all batches, as CUDA graphs
// want it, and products of few sizes. Kernels take a row of sequence −1 as empty; nobody reads what comes of it.
#pragma once

#include <cstdint>
#include <vector>

#include "core/model/decoder.h"
#include "kernels/attention_prefill.h"

namespace quire {

// How a step of decode rows is filled up. Rows that one call serves in the last layer, which is sparse if any is, stand
// together, and so many of them become RowBucket, where there is room.
struct RowPadding {
  int max_rows = 0;
  int max_logit_rows = 0;
  int last_layer = 0;
  int page_size = 1;
  int64_t max_length = 0;  // no sequence is longer; 0: unknown
  // The most rows of a step of `rows` that attend in `kinds` ways.
  static int MostRows(int rows, int kinds) { return RowBucket(rows) + 8 * (kinds - 1); }
  static int RowBucket(int rows);               // 1, 2, 4, 8 and the multiples of 8; not below `rows`
  static int32_t LengthBucket(int32_t length);  // 128 and from there four to a doubling; not below `length`
};

struct DecoderRows {
  int rows = 0;
  int given_rows = 0;             // without those that fill up
  bool padded = false;            // Build was told to fill up, whether it had to or not
  int counted_rows = 0;           // the first of the rows: decode chunks', and those that fill up
  int decode_rows = 0;            // these, and the rows of chunks past a capacity
  bool overwrites = false;        // any row does
  std::vector<int32_t> place;     // [given_rows] where the caller's row stands
  std::vector<int32_t> source;    // [rows] the caller's row that stands at a place; −1: it fills up
  std::vector<int32_t> tokens;    // [rows] by place, as all that follow
  std::vector<int32_t> seq;       // index into the tables
  std::vector<int32_t> pos;       // position of the token
  std::vector<int32_t> len;       // tokens in the cache that the row sees: pos + 1, or the capacity where that is less
  std::vector<int32_t> slot;      // where the token lies: pos, or what it takes where that is the same in all heads
  std::vector<int32_t> rope_len;  // length that dynamic rope scaling counts with
  // [decode_rows] positions by which queries are turned on for their sinks; empty: no row has any. PlanTurns sets it.
  std::vector<int32_t> turns;
  std::vector<const AttentionPolicy*> policy;  // [decode_rows], null: dense
  std::vector<PageHistory*> history;           // [decode_rows], null: none
  std::vector<SlotMap*> slots;                 // [decode_rows], null: none
  std::vector<PrefillChunk> prefill;
  std::vector<const ForwardChunk*> prefill_source;  // [prefill] the batch's
  // The chunks from their first row with logits on: all that the last layer needs to attend with.
  std::vector<PrefillChunk> prefill_with_logits;
  std::vector<int32_t> logit_places;  // places of the batch's logit rows, in its order, then −1 for what fills up

  bool Fills(int row) const { return seq[row] < 0; }
  // The longest of rows [begin, end), or in a filled up step a length not below it that many steps share.
  int32_t Longest(int begin, int end) const;
  // Whether the row takes the slot of another token.
  bool Overwrites(int row) const { return pos[row] >= len[row]; }

  // Memory grows to the largest step seen and stays. CHECKs what ForwardBatch promises. padding: null, or for a step of
  // decode chunks alone, none of an evicting policy.
  void Build(const ForwardBatch& batch, const RowPadding* padding = nullptr);
  // After Build. last_layer: the model's last, which is sparse if any is.
  void PlanTurns(int last_layer, int page_size);

 private:
  int FirstRowWithLogits(const PrefillChunk& chunk) const;
  // Sets fill_, and returns its sum, at most `most`.
  int PlanFill(const RowPadding& padding, int most);

  std::vector<const ForwardChunk*> order_;
  std::vector<int> fill_;  // [order_] empty rows behind each
  int64_t max_length_ = 0;
};

}  // namespace quire

#include "core/model/decoder_rows.h"

#include <algorithm>

#include "core/base/check.h"

namespace quire {
namespace {

bool PastCapacity(const ForwardChunk& chunk) {
  return chunk.policy != nullptr && chunk.policy->capacity() > 0 && chunk.start_pos >= chunk.policy->capacity();
}

}  // namespace

void DecoderRows::Build(const ForwardBatch& batch) {
  rows = static_cast<int>(batch.tokens.size());
  decode_rows = 0;
  overwrites = false;
  for (auto* v : {&place, &source, &tokens, &seq, &pos, &len, &rope_len}) v->resize(rows);
  prefill.clear();
  prefill_source.clear();
  order_.clear();
  for (const ForwardChunk& chunk : batch.chunks) {
    if (!chunk.decode) break;
    CHECK_EQ(chunk.rows, 1);
    CHECK_EQ(chunk.first_row, decode_rows);
    order_.push_back(&chunk);
    ++decode_rows;
  }
  // Policies in the order of their first rows (never of their addresses), dense ones before all.
  const auto rank_of = [&](const AttentionPolicy* p) -> int32_t {
    if (p == nullptr) return -1;
    for (const ForwardChunk& chunk : batch.chunks) {
      if (chunk.policy == p) return chunk.first_row;
    }
    return 0;
  };
  std::sort(order_.begin(), order_.end(), [&](const ForwardChunk* a, const ForwardChunk* b) {
    if (a->policy != b->policy) return rank_of(a->policy) < rank_of(b->policy);
    if (a->start_pos != b->start_pos) return a->start_pos < b->start_pos;
    return a->first_row < b->first_row;
  });
  counted_rows = decode_rows;
  for (const ForwardChunk& chunk : batch.chunks.subspan(counted_rows)) {
    if (PastCapacity(chunk)) decode_rows += chunk.rows;
  }
  policy.resize(decode_rows);
  history.resize(decode_rows);
  slots.resize(decode_rows);
  const auto put = [&](int to, const ForwardChunk& chunk, int row) {
    const int from = chunk.first_row + row;
    place[from] = to;
    source[to] = from;
    tokens[to] = batch.tokens[from];
    seq[to] = chunk.seq;
    pos[to] = chunk.start_pos + row;
    const int64_t capacity = chunk.policy != nullptr ? chunk.policy->capacity() : 0;
    len[to] = static_cast<int32_t>(capacity > 0 ? std::min<int64_t>(capacity, pos[to] + 1) : pos[to] + 1);
    overwrites |= Overwrites(to);
    rope_len[to] = chunk.rope_length > 0 ? chunk.rope_length : chunk.start_pos + chunk.rows;
  };
  const auto put_decode = [&](int to, const ForwardChunk& chunk, int row) {
    policy[to] = chunk.policy;
    history[to] = chunk.history;
    slots[to] = chunk.slots;
    put(to, chunk, row);
  };
  for (int i = 0; i < counted_rows; ++i) put_decode(i, *order_[i], 0);
  int given = counted_rows, past = counted_rows, next = decode_rows;
  for (const ForwardChunk& chunk : batch.chunks.subspan(counted_rows)) {
    CHECK(!chunk.decode);  // all decode chunks come first
    CHECK_EQ(chunk.first_row, given);
    CHECK_LE(chunk.rows, rows - given);
    given += chunk.rows;
    if (PastCapacity(chunk)) {
      for (int row = 0; row < chunk.rows; ++row) put_decode(past++, chunk, row);
      continue;
    }
    prefill.push_back({chunk.seq, next, chunk.rows, chunk.start_pos});
    prefill_source.push_back(&chunk);
    for (int row = 0; row < chunk.rows; ++row, ++next) {
      put(next, chunk, row);
      CHECK(!Overwrites(next));  // no chunk crosses a capacity
    }
  }
  CHECK_EQ(given, rows);
  logit_places.clear();
  for (const int32_t row : batch.logit_rows) {
    CHECK(row >= 0 && row < rows);
    logit_places.push_back(place[row]);
  }
  PrefillWithLogits([](size_t) { return false; }, &prefill_with_logits);
}

int DecoderRows::FirstRowWithLogits(const PrefillChunk& chunk) const {
  int first = chunk.rows;  // of the chunk's rows
  for (const int32_t p : logit_places) {
    const int row = p - chunk.first_row;
    if (row >= 0 && row < first) first = row;
  }
  return first;
}

}  // namespace quire

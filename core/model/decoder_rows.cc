#include "core/model/decoder_rows.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <numeric>
#include <utility>

#include "core/base/check.h"

namespace quire {
namespace {

bool PastCapacity(const ForwardChunk& chunk) {
  return chunk.policy != nullptr && chunk.policy->capacity() > 0 && chunk.start_pos >= chunk.policy->capacity();
}

}  // namespace

int RowPadding::RowBucket(int rows) {
  return rows <= 8 ? static_cast<int>(std::bit_ceil(static_cast<unsigned>(rows))) : (rows + 7) / 8 * 8;
}

int32_t RowPadding::LengthBucket(int32_t length) {
  constexpr int32_t kLeast = 128;  // what decode attention does in one piece
  if (length <= kLeast) return kLeast;
  const int64_t step = static_cast<int64_t>(std::bit_floor(static_cast<uint32_t>(length - 1))) / 4;
  return static_cast<int32_t>(std::min<int64_t>((length + step - 1) / step * step, std::numeric_limits<int32_t>::max()));
}

int32_t DecoderRows::Longest(int begin, int end) const {
  const int32_t longest = *std::max_element(len.begin() + begin, len.begin() + end);
  if (!padded) return longest;
  const int32_t bucket = RowPadding::LengthBucket(longest);
  return max_length_ >= longest ? static_cast<int32_t>(std::min<int64_t>(bucket, max_length_)) : bucket;
}

int DecoderRows::PlanFill(const RowPadding& padding, int most) {
  // The policy that selects or remembers, and whether it selects.
  const auto kind = [&](const ForwardChunk& chunk) -> std::pair<const AttentionPolicy*, bool> {
    const AttentionPolicy* p = chunk.policy;
    const bool selects =
        p != nullptr && !p->IsDense(int64_t{chunk.start_pos} + 1, padding.last_layer, padding.page_size);
    return {selects || chunk.history != nullptr ? p : nullptr, selects};
  };
  const int n = static_cast<int>(order_.size());
  for (int begin = 0; begin < n;) {
    int end = begin + 1;
    while (end < n && kind(*order_[end]) == kind(*order_[begin])) ++end;
    fill_[end - 1] = RowPadding::RowBucket(end - begin) - (end - begin);
    begin = end;
  }
  const int sum = std::accumulate(fill_.begin(), fill_.end(), 0);
  if (sum <= most) return sum;
  std::fill(fill_.begin(), fill_.end(), 0);
  return 0;
}

void DecoderRows::Build(const ForwardBatch& batch, const RowPadding* padding) {
  given_rows = static_cast<int>(batch.tokens.size());
  padded = padding != nullptr;
  max_length_ = padded ? padding->max_length : 0;
  decode_rows = 0;
  overwrites = false;
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
  const int given_decodes = decode_rows;
  CHECK(!padded || given_decodes == given_rows);
  fill_.assign(order_.size(), 0);
  const int fill = padded ? PlanFill(*padding, padding->max_rows - given_rows) : 0;
  rows = given_rows + fill;
  place.resize(given_rows);
  for (auto* v : {&source, &tokens, &seq, &pos, &len, &slot, &rope_len}) v->resize(rows);
  decode_rows += fill;
  counted_rows = decode_rows;
  for (const ForwardChunk& chunk : batch.chunks.subspan(given_decodes)) {
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
    const bool takes = Overwrites(to) && !chunk.policy->Declare().slot_map;
    slot[to] = takes ? chunk.policy->Evict(pos[to], 0, nullptr) : pos[to];
    rope_len[to] = chunk.rope_length > 0 ? chunk.rope_length : chunk.start_pos + chunk.rows;
  };
  const auto put_decode = [&](int to, const ForwardChunk& chunk, int row) {
    policy[to] = chunk.policy;
    history[to] = chunk.history;
    slots[to] = chunk.slots;
    put(to, chunk, row);
  };
  const auto put_empty = [&](int to) {
    policy[to] = nullptr;
    history[to] = nullptr;
    slots[to] = nullptr;
    source[to] = seq[to] = pos[to] = slot[to] = -1;
    tokens[to] = len[to] = 0;
    rope_len[to] = 1;
  };
  for (int i = 0, to = 0; i < given_decodes; ++i) {
    put_decode(to++, *order_[i], 0);
    for (int n = 0; n < fill_[i]; ++n) put_empty(to++);
  }
  int given = given_decodes, past = counted_rows, next = decode_rows;
  for (const ForwardChunk& chunk : batch.chunks.subspan(given_decodes)) {
    CHECK(!chunk.decode);  // all decode chunks come first
    CHECK_EQ(chunk.first_row, given);
    CHECK_LE(chunk.rows, given_rows - given);
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
  CHECK_EQ(given, given_rows);
  logit_places.clear();
  for (const int32_t row : batch.logit_rows) {
    CHECK(row >= 0 && row < given_rows);
    logit_places.push_back(place[row]);
  }
  const int logits = static_cast<int>(logit_places.size());
  if (padded && logits > 0 && RowPadding::RowBucket(logits) <= padding->max_logit_rows) {
    logit_places.resize(RowPadding::RowBucket(logits), -1);
  }
  prefill_with_logits.clear();
  for (const PrefillChunk& chunk : prefill) {
    const int first = FirstRowWithLogits(chunk);
    if (first == chunk.rows) continue;
    prefill_with_logits.push_back({chunk.seq, chunk.first_row + first, chunk.rows - first, chunk.start_pos + first});
  }
}

void DecoderRows::PlanTurns(int last_layer, int page_size) {
  turns.assign(static_cast<size_t>(decode_rows), 0);
  bool any = false;
  for (int row = 0; row < decode_rows; ++row) {
    const int64_t length = int64_t{pos[row]} + 1;  // more than it sees where tokens are overwritten
    if (policy[row] == nullptr || policy[row]->IsDense(length, last_layer, page_size)) continue;
    const SinkWindow window = policy[row]->WindowAt(length);
    if (window.window == 0) continue;
    turns[row] = static_cast<int32_t>(-window.shift);
    any = true;
  }
  if (!any) turns.clear();
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

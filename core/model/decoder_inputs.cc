#include "core/model/decoder_inputs.h"

#include <algorithm>
#include <cstring>

namespace quire {
namespace {

constexpr size_t kAlign = 64;
constexpr size_t kGapCopied = size_t{64} << 10;  // copying a longer one takes longer than another call

size_t Padded(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

}  // namespace

template <typename T>
void DecoderInputs::Collect(const std::vector<T*>& of_rows, T* ForwardChunk::*of_chunk, const DecoderRows& rows, int layers,
                            std::vector<T>* all) {
  all->clear();
  const auto has = [](const T* one) { return one != nullptr; };
  bool any = std::any_of(of_rows.begin(), of_rows.end(), has);
  for (const ForwardChunk* chunk : rows.prefill_source) any |= has(chunk->*of_chunk);
  if (!any) return;
  histories_ = static_cast<int64_t>(of_rows.size() + rows.prefill_source.size());
  for (int layer = 0; layer < layers; ++layer) {
    const auto add = [&](const T* of) { all->push_back(of == nullptr ? T{} : of[layer]); };
    for (const T* of : of_rows) add(of);
    for (const ForwardChunk* chunk : rows.prefill_source) add(chunk->*of_chunk);
  }
}

Status DecoderInputs::Bring(const Context& ctx, const DecoderRows& rows, std::span<const CacheView> caches) {
  items_.clear();
  tables.clear();
  for (const CacheView& cache : caches) tables.push_back(cache.table);
  const auto add = [&]<typename T>(const T* data, size_t count, const T** pointer) {
    *pointer = data;
    items_.push_back({data, count * sizeof(T), reinterpret_cast<const void**>(pointer), Padded(count * sizeof(T))});
  };
  const auto add_all = [&]<typename T>(const std::vector<T>& values, const T** pointer) {
    add(values.data(), values.size(), pointer);
  };
  add_all(rows.tokens, &tokens);
  add_all(rows.seq, &seq);
  add_all(rows.pos, &pos);
  add_all(rows.len, &len);
  if (rows.overwrites) add_all(rows.slot, &slot);
  add_all(rows.turns, &turns);
  add_all(rows.logit_places, &logit_places);
  add_all(rows.prefill, &prefill);
  add_all(rows.prefill_with_logits, &prefill_with_logits);
  int layers = 0;
  for (const CacheView& cache : caches) layers += static_cast<int>(cache.layers.size());
  Collect(rows.history, &ForwardChunk::history, rows, layers, &all_histories_);
  Collect(rows.slots, &ForwardChunk::slots, rows, layers, &all_slots_);
  history = nullptr;
  slots = nullptr;
  if (!all_histories_.empty()) add_all(all_histories_, &history);
  if (!all_slots_.empty()) add_all(all_slots_, &slots);
  // Of a table, with room for that of any filled up step of as many rows as long.
  const int64_t longest = rows.padded ? rows.Longest(0, rows.rows) : 0;
  const auto add_table = [&](const int32_t*& ids, const int32_t*& begins, int sequences, int64_t tokens_per_id) {
    const auto count = static_cast<size_t>(begins[sequences]);
    add(begins, static_cast<size_t>(sequences) + 1, &begins);
    if (rows.padded) {
      items_.back().repeated = rows.rows - sequences;
      items_.back().room = Padded(sizeof(int32_t) * (static_cast<size_t>(rows.rows) + 1));
    }
    add(ids, count, &ids);
    const int64_t most = rows.rows * ((longest + tokens_per_id - 1) / tokens_per_id);
    items_.back().room = std::max(items_.back().room, Padded(sizeof(int32_t) * static_cast<size_t>(most)));
  };
  for (PageTableView& table : tables) {
    const int page_size = table.format.page_size, sequences = table.num_seqs;
    if (rows.padded) table.num_seqs = rows.rows;
    add_table(table.page_ids, table.page_begin, sequences, page_size);
    if (table.group_ids == nullptr) continue;
    add_table(table.group_ids, table.group_begin, sequences, int64_t{page_size} * kPagesPerGroup);
  }
  if (!rows.overwrites) slot = nullptr;
  if (ctx.device.kind == DeviceKind::kCpu) return OkStatus();

  size_t bytes = 0;
  for (const Item& item : items_) bytes += item.room;
  RETURN_IF_ERROR(memory_.Reserve(bytes, ctx.device));
  if (staging_.size() < bytes) {
    ASSIGN_OR_RETURN(staging_, HostBuffer::Create(ctx.device, std::max(bytes, staging_.size() * 3 / 2)));
  }
  size_t from = 0, end = 0, at = 0;  // bytes [from, end) are still to be copied
  const auto copy = [&] {
    return CopyToDevice(ctx.device, memory_.As<std::byte>() + from, staging_.data() + from, end - from, ctx.stream);
  };
  for (const Item& item : items_) {
    std::byte* to = staging_.data() + at;
    if (item.bytes > 0) std::memcpy(to, item.data, item.bytes);
    auto* behind = reinterpret_cast<int32_t*>(to + item.bytes);
    if (item.repeated > 0) std::fill_n(behind, item.repeated, behind[-1]);
    *item.pointer = memory_.As<std::byte>() + at;
    if (at > end + kGapCopied) {
      RETURN_IF_ERROR(copy());
      from = at;
    }
    end = at + item.bytes + sizeof(int32_t) * static_cast<size_t>(item.repeated);
    at += item.room;
  }
  return copy();
}

}  // namespace quire

#include "core/model/decoder_inputs.h"

#include <algorithm>
#include <cstring>

namespace quire {
namespace {

constexpr size_t kAlign = 64;

size_t Padded(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

}  // namespace

Status DecoderInputs::Bring(const Context& ctx, const DecoderRows& rows, std::span<const CacheView> caches) {
  items_.clear();
  tables.clear();
  for (const CacheView& cache : caches) tables.push_back(cache.table);
  const auto add = [&]<typename T>(const T* data, size_t count, const T** pointer) {
    *pointer = data;
    items_.push_back({data, count * sizeof(T), reinterpret_cast<const void**>(pointer)});
  };
  const auto add_all = [&]<typename T>(const std::vector<T>& values, const T** pointer) {
    add(values.data(), values.size(), pointer);
  };
  add_all(rows.tokens, &tokens);
  add_all(rows.seq, &seq);
  add_all(rows.pos, &pos);
  add_all(rows.len, &len);
  add_all(rows.logit_places, &logit_places);
  add_all(rows.prefill, &prefill);
  add_all(rows.prefill_with_logits, &prefill_with_logits);
  for (PageTableView& table : tables) {
    const auto sequences = static_cast<size_t>(table.num_seqs);
    add(table.page_ids, static_cast<size_t>(table.page_begin[sequences]), &table.page_ids);
    add(table.page_begin, sequences + 1, &table.page_begin);
    if (table.group_ids == nullptr) continue;
    add(table.group_ids, static_cast<size_t>(table.group_begin[sequences]), &table.group_ids);
    add(table.group_begin, sequences + 1, &table.group_begin);
  }
  if (ctx.device.kind == DeviceKind::kCpu) return OkStatus();

  size_t bytes = 0;
  for (const Item& item : items_) bytes += Padded(item.bytes);
  RETURN_IF_ERROR(memory_.Reserve(bytes, ctx.device));
  if (staging_.size() < bytes) {
    ASSIGN_OR_RETURN(staging_, HostBuffer::Create(ctx.device, std::max(bytes, staging_.size() * 3 / 2)));
  }
  size_t at = 0;
  for (const Item& item : items_) {
    if (item.bytes > 0) std::memcpy(staging_.data() + at, item.data, item.bytes);
    *item.pointer = memory_.As<std::byte>() + at;
    at += Padded(item.bytes);
  }
  return CopyToDevice(ctx.device, memory_.As<std::byte>(), staging_.data(), bytes, ctx.stream);
}

}  // namespace quire

#include "core/engine/local_candidates.h"

#include <algorithm>
#include <cstring>

#include "core/base/check.h"
#include "kernels/device_session.h"

namespace quire {
namespace {

// Room that is made at the start: edits of a work (penalties count a sequence's distinct tokens), and log-probabilities of a
// row.
constexpr size_t kUsualEdits = 512;
constexpr int kUsualBest = 20;

size_t InputBytes(size_t works, size_t edits, size_t known) {
  return (works + known) * sizeof(CandidateRow) + edits * sizeof(LogitEdit) + known * sizeof(int32_t);
}

// Words of log-probabilities a row, of first candidates with their raw logits a work, and of a known token each.
size_t UsualResults(int max_rows, int max_works) {
  return static_cast<size_t>(max_rows) * (2 + 2 * kUsualBest) + static_cast<size_t>(max_works) * (2 + 3 * kFirstCandidates);
}

// Of the session's: calls share it.
size_t UsualScratch(const Context& ctx, int64_t vocab, int max_rows, int max_works) {
  if (vocab == 0) return 0;
  const auto own = [&](int k) { return static_cast<int>(std::min<int64_t>(k, vocab)); };
  return std::max(TopCandidatesScratch(ctx, max_rows, vocab, own(kUsualBest)),
                  TopCandidatesScratch(ctx, max_works, vocab, own(kFirstCandidates)));
}

Status Grow(HostBuffer& buffer, Device device, size_t bytes) {
  if (bytes <= buffer.size()) return OkStatus();
  ASSIGN_OR_RETURN(buffer, HostBuffer::Create(device, std::max(bytes, buffer.size() * 3 / 2)));
  return OkStatus();
}

}  // namespace

void CandidateWants::Clear() {
  rows = 0;
  k = work_k = 1;
  work_raw = false;
  works.clear();
  edits.clear();
  known_rows.clear();
  known_ids.clear();
}

size_t LocalCandidates::ScratchBytes(const Context& ctx, int64_t local_vocab, int max_rows, int max_works) {
  const size_t results = UsualResults(max_rows, max_works) * sizeof(float);
  const auto works = static_cast<size_t>(max_works);
  if (ctx.device.kind == DeviceKind::kCpu) return results + works * static_cast<size_t>(local_vocab) * sizeof(float);
  return results + InputBytes(works, works * kUsualEdits, works) + UsualScratch(ctx, local_vocab, max_rows, max_works);
}

Result<LocalCandidates> LocalCandidates::Create(const Context& ctx, Range slice, int max_rows, int max_works) {
  LocalCandidates c;
  c.ctx_ = c.host_ctx_ = ctx;
  c.host_ctx_.device = {};
  c.host_ctx_.stream = {};
  c.host_ctx_.session = nullptr;
  c.slice_ = slice;
  RETURN_IF_ERROR(c.ReserveResults(UsualResults(max_rows, max_works)));
  const auto works = static_cast<size_t>(max_works);
  if (!c.on_gpu()) {
    RETURN_IF_ERROR(c.work_.Reserve(works * static_cast<size_t>(slice.size()) * sizeof(float)));
    return c;
  }
  const size_t inputs = InputBytes(works, works * kUsualEdits, works);
  RETURN_IF_ERROR(c.inputs_memory_.Reserve(inputs, ctx.device));
  RETURN_IF_ERROR(Grow(c.staging_, ctx.device, inputs));
  RETURN_IF_ERROR(ctx.session->Scratch(UsualScratch(ctx, slice.size(), max_rows, max_works)).status());
  return c;
}

Status LocalCandidates::ReserveResults(size_t words) {
  if (on_gpu()) RETURN_IF_ERROR(device_results_.Reserve(words * sizeof(float), ctx_.device));
  return Grow(host_results_, ctx_.device, words * sizeof(float));
}

LocalCandidates::List LocalCandidates::At(const Block& block, int row) const {
  if (block.k == 0) return {};
  const float* lse = Results() + block.at;
  const float* values = lse + block.rows;
  const size_t skip = static_cast<size_t>(row) * static_cast<size_t>(block.k), all = block.entries();
  return {lse[row], values + skip, reinterpret_cast<const int32_t*>(values + all) + skip,
          block.with_raw ? values + 2 * all + skip : nullptr, block.k};
}

LocalCandidates::Inputs LocalCandidates::OfHost() const {
  return {wants_->works.data(), wants_->edits.data(), wants_->known_rows.data(), wants_->known_ids.data()};
}

// The step's lists to the GPU.
Result<LocalCandidates::Inputs> LocalCandidates::Bring() {
  const CandidateWants& w = *wants_;
  const size_t bytes = InputBytes(w.works.size(), w.edits.size(), w.known_ids.size());
  RETURN_IF_ERROR(inputs_memory_.Reserve(bytes, ctx_.device));
  RETURN_IF_ERROR(Grow(staging_, ctx_.device, bytes));
  size_t at = 0;
  const auto put = [&]<typename T>(const std::vector<T>& list) {
    auto* there = reinterpret_cast<const T*>(inputs_memory_.As<std::byte>() + at);
    if (!list.empty()) std::memcpy(staging_.data() + at, list.data(), list.size() * sizeof(T));
    at += list.size() * sizeof(T);
    return there;
  };
  Inputs inputs;
  inputs.works = put(w.works);  // what has 16 bytes first, for its alignment
  inputs.edits = put(w.edits);
  inputs.known_rows = put(w.known_rows);
  inputs.known_ids = put(w.known_ids);
  if (bytes > 0) {
    RETURN_IF_ERROR(CopyToDevice(ctx_.device, inputs_memory_.As<std::byte>(), staging_.data(), bytes, ctx_.stream));
  }
  return inputs;
}

void LocalCandidates::FindBlock(const Context& ctx, const float* logits, const CandidateRow* row_of,
                                const LogitEdit* edits, const Block& block, float* results) {
  if (block.entries() == 0) return;
  float* lse = results + block.at;
  float* values = lse + block.rows;
  auto* ids = reinterpret_cast<int32_t*>(values + block.entries());
  const auto begin = static_cast<int32_t>(slice_.begin);
  TopCandidates(ctx, {.logits = logits,
                      .stride = slice_.size(),
                      .rows = block.rows,
                      .vocab = slice_.size(),
                      .vocab_begin = begin,
                      .k = block.k,
                      .ids = ids,
                      .values = values,
                      .lse = lse,
                      .row_of = row_of,
                      .edits = edits,
                      .work = work_.As<float>()});
  if (!block.with_raw) return;
  GatherLogits(ctx, {logits, slice_.size(), block.rows, slice_.size(), begin, block.k, row_of, ids,
                     values + 2 * block.entries()});
}

void LocalCandidates::FindAll(const Context& ctx, const float* logits, const Inputs& inputs, float* results) {
  FindBlock(ctx, logits, nullptr, nullptr, rows_, results);
  FindBlock(ctx, logits, inputs.works, inputs.edits, works_, results);
  const auto known = static_cast<int64_t>(wants_->known_ids.size());
  if (known == 0) return;
  GatherLogits(ctx, {logits, slice_.size(), known, slice_.size(), static_cast<int32_t>(slice_.begin), 1,
                     inputs.known_rows, inputs.known_ids, results + works_.end()});
}

Status LocalCandidates::Find(const float* logits, int rows, const CandidateWants& wants) {
  logits_ = logits;
  wants_ = &wants;
  rows_ = {0, wants.rows, Own(wants.k), false};
  works_ = {rows_.end(), static_cast<int>(wants.works.size()), Own(wants.work_k), wants.work_raw};
  const size_t words = works_.end() + wants.known_ids.size();
  RETURN_IF_ERROR(ReserveResults(words));
  if (!on_gpu()) {
    inputs_ = OfHost();
    FindAll(ctx_, logits, inputs_, Results());
    return OkStatus();
  }
  whole_ = std::max(rows_.k, works_.k) > MostCandidates(ctx_);
  if (whole_) {
    const size_t bytes = static_cast<size_t>(rows) * static_cast<size_t>(slice_.size()) * sizeof(float);
    whole_rows_ += rows;
    RETURN_IF_ERROR(Grow(host_rows_, ctx_.device, bytes));
    return CopyFromDevice(ctx_.device, host_rows_.data(), logits, bytes, ctx_.stream);
  }
  if (words == 0) return OkStatus();
  ASSIGN_OR_RETURN(inputs_, Bring());
  FindAll(ctx_, logits, inputs_, device_results_.As<float>());
  return CopyFromDevice(ctx_.device, host_results_.data(), device_results_.As<float>(), words * sizeof(float), ctx_.stream);
}

Status LocalCandidates::Finish() {
  if (!whole_) return OkStatus();
  inputs_ = OfHost();
  RETURN_IF_ERROR(work_.Reserve(wants_->works.size() * static_cast<size_t>(slice_.size()) * sizeof(float)));
  FindAll(host_ctx_, reinterpret_cast<const float*>(host_rows_.data()), inputs_, Results());
  return OkStatus();
}

// The rows to host_rows_, one behind the other and named by their places there.
Status LocalCandidates::BringRows(std::span<CandidateRow> rows) {
  const size_t width = static_cast<size_t>(slice_.size()) * sizeof(float);
  RETURN_IF_ERROR(Grow(host_rows_, ctx_.device, rows.size() * width));
  for (size_t i = 0; i < rows.size(); ++i) {
    RETURN_IF_ERROR(CopyFromDevice(ctx_.device, host_rows_.data() + i * width, logits_ + rows[i].row * slice_.size(), width,
                                   ctx_.stream));
    rows[i].row = static_cast<int32_t>(i);
  }
  whole_rows_ += static_cast<int64_t>(rows.size());
  return OkStatus();
}

Status LocalCandidates::FindMore(std::span<const int> works, int k) {
  ++searches_again_;
  again_.clear();
  for (const int work : works) again_.push_back(wants_->works[static_cast<size_t>(work)]);
  works_ = {0, static_cast<int>(works.size()), Own(k), wants_->work_raw};
  RETURN_IF_ERROR(ReserveResults(works_.end()));
  if (works_.entries() == 0) return OkStatus();
  const bool here = !on_gpu() || whole_;
  if (!here && works_.k <= MostCandidates(ctx_)) {
    const size_t bytes = again_.size() * sizeof(CandidateRow);
    std::memcpy(staging_.data(), again_.data(), bytes);
    auto* rows = inputs_memory_.As<CandidateRow>();  // in the place of the step's own
    RETURN_IF_ERROR(CopyToDevice(ctx_.device, rows, staging_.data(), bytes, ctx_.stream));
    FindBlock(ctx_, logits_, rows, inputs_.edits, works_, device_results_.As<float>());
    RETURN_IF_ERROR(CopyFromDevice(ctx_.device, host_results_.data(), device_results_.As<float>(),
                                   works_.end() * sizeof(float), ctx_.stream));
    return ctx_.session->Synchronize();
  }
  if (!here) {
    RETURN_IF_ERROR(BringRows(again_));
    RETURN_IF_ERROR(ctx_.session->Synchronize());
  }
  const float* rows = on_gpu() ? reinterpret_cast<const float*>(host_rows_.data()) : logits_;
  RETURN_IF_ERROR(work_.Reserve(again_.size() * static_cast<size_t>(slice_.size()) * sizeof(float)));
  FindBlock(host_ctx_, rows, again_.data(), wants_->edits.data(), works_, Results());
  return OkStatus();
}

}  // namespace quire

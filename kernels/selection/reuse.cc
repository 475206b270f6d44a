#include "kernels/selection/reuse.h"

#include <algorithm>
#include <utility>

#include "core/base/check.h"
#include "kernels/cuda/reuse.h"
#include "kernels/dispatch/dispatch.h"

namespace quire {
namespace {

constexpr float kListed = cuda::kReuseListed, kLeftOut = cuda::kReuseLeftOut;

SelectParams RowsOf(const SelectParams& p, int begin, int end) {
  SelectParams part = p;
  part.q += begin * p.q_stride;
  part.rows = end - begin;
  part.row_seq += begin;
  part.row_len += begin;
  if (p.history != nullptr) part.history += begin;
  return part;
}

int64_t PagesOf(const SelectParams& p, int row) {
  return (int64_t{p.row_len[row]} + p.table.format.page_size - 1) / p.table.format.page_size;
}

// Of the selector's workspace, up to where a GPU's list of rows begins.
size_t Aligned(size_t bytes) { return (bytes + 15) / 16 * 16; }

}  // namespace

ReusingPolicy::ReusingPolicy(std::unique_ptr<AttentionPolicy> selector, int steps)
    : selector_(std::move(selector)), steps_(steps) {
  CHECK_GE(steps, 2);
  CHECK_EQ(selector_->Declare().history, 0);
}

PageDataNeeds ReusingPolicy::Declare() const {
  PageDataNeeds needs = selector_->Declare();
  needs.history = 1;
  needs.mass = false;
  return needs;
}

int ReusingPolicy::MaxPages(int64_t length, int page_size) const {
  const int64_t pages = (length + page_size - 1) / page_size;
  const int64_t born = (steps_ - 1 + page_size - 1) / page_size;
  return static_cast<int>(std::min(pages, selector_->MaxPages(length, page_size) + born));
}

size_t ReusingPolicy::SelectWorkspace(const SelectParams& p) const {
  return Aligned(selector_->SelectWorkspace(p)) + sizeof(int32_t) * static_cast<size_t>(p.rows);
}

// The row of token n − 1 selects where R divides n − 1, or where its first page has no entry.
bool ReusingPolicy::Selects(const SelectParams& p, int row) const {
  if ((p.row_len[row] - 1) % steps_ == 0) return true;
  const float first = p.history[row].Head(0)[0];
  return first != kListed && first != kLeftOut;
}

template <typename Bytes>
int64_t ReusingPolicy::Count(const SelectParams& p, Bytes&& bytes) const {
  int64_t sum = 0;
  for (int row = 0; row < p.rows; ++row) {
    if ((p.row_len[row] - 1) % steps_ == 0) {
      sum += bytes(RowsOf(p, row, row + 1));
    } else {
      sum += PagesOf(p, row) * p.table.format.kv_heads * static_cast<int64_t>(sizeof(float));
    }
  }
  return sum;
}

int64_t ReusingPolicy::SelectBytes(const SelectParams& p) const {
  return Count(p, [&](const SelectParams& one) { return selector_->SelectBytes(one); });
}

int64_t ReusingPolicy::SelectLineBytes(const SelectParams& p) const {
  return Count(p, [&](const SelectParams& one) { return selector_->SelectLineBytes(one); });
}

void ReusingPolicy::Select(const Context& ctx, const SelectParams& p, SelectionView selection, void* workspace) const {
  CHECK(p.history != nullptr);
  Dispatch(
      ctx, [&] { SelectOnCpu(ctx, p, selection, workspace); },
      [&](Stream) { return SelectOnGpu(ctx, p, selection, workspace); });
}

Status ReusingPolicy::SelectOnGpu(const Context& ctx, const SelectParams& p, SelectionView selection,
                                  void* workspace) const {
  cuda::ReuseParams r;
  r.steps = steps_;
  r.rows = p.rows;
  r.row_seq = p.row_seq;
  r.row_len = p.row_len;
  r.table = p.table;
  r.history = p.history;
  r.selecting = reinterpret_cast<int32_t*>(static_cast<char*>(workspace) + Aligned(selector_->SelectWorkspace(p)));
  r.selection = selection;
  RETURN_IF_ERROR(cuda::RowsThatSelect(ctx.stream, r));
  SelectParams selecting = p;
  selecting.row_seq = r.selecting;
  selector_->Select(ctx, selecting, selection, workspace);
  return cuda::KeepOrList(ctx.stream, r);
}

void ReusingPolicy::SelectOnCpu(const Context& ctx, const SelectParams& p, SelectionView selection,
                                void* workspace) const {
  const int kv_heads = p.table.format.kv_heads;
  for (int begin = 0; begin < p.rows;) {
    const bool selects = Selects(p, begin);
    int end = begin + 1;
    while (end < p.rows && Selects(p, end) == selects) ++end;
    const int64_t first = int64_t{begin} * kv_heads, lists = int64_t{end - begin} * kv_heads;
    if (selects) {
      SelectionView part = selection;
      part.pages += first * selection.max_pages;
      part.counts += first;
      selector_->Select(ctx, RowsOf(p, begin, end), part, workspace);
      ctx.pool->ParallelFor(lists, [&](int64_t i, int) { Keep(p, first + i, selection); });
    } else {
      ctx.pool->ParallelFor(lists, [&](int64_t i, int) { List(p, first + i, selection); });
    }
    begin = end;
  }
}

void ReusingPolicy::Keep(const SelectParams& p, int64_t list, const SelectionView& selection) const {
  const int row = static_cast<int>(list / p.table.format.kv_heads);
  float* entries = p.history[row].Head(static_cast<int>(list % p.table.format.kv_heads));
  std::fill_n(entries, PagesOf(p, row), kLeftOut);
  const int32_t* pages = selection.pages + list * selection.max_pages;
  for (int i = 0; i < selection.counts[list]; ++i) entries[pages[i]] = kListed;
}

void ReusingPolicy::List(const SelectParams& p, int64_t list, const SelectionView& selection) const {
  const int row = static_cast<int>(list / p.table.format.kv_heads);
  const float* entries = p.history[row].Head(static_cast<int>(list % p.table.format.kv_heads));
  const int32_t* ids = p.table.page_ids + p.table.page_begin[p.row_seq[row]];
  int32_t* out = selection.pages + list * selection.max_pages;
  int count = 0;
  for (int64_t page = 0; page < PagesOf(p, row); ++page) {
    if (entries[page] == kLeftOut || ids[page] < 0) continue;
    CHECK_LT(count, selection.max_pages);
    out[count++] = static_cast<int32_t>(page);
  }
  selection.counts[list] = count;
}

}  // namespace quire

// What writes the cache: append, and the page operations, which a GPU does many at a time.
#include <cstring>
#include <set>
#include <vector>

#include "kernels/cpu/ops.h"
#include "kernels/cuda/kv_append.h"
#include "kernels/cuda/page_fill.h"
#include "kernels/cuda/page_ops.h"
#include "kernels/dispatch/dispatch.h"
#include "kernels/kv_append.h"
#include "kernels/page_ops.h"

namespace quire {
namespace {

Status AppendOnGpu(Stream stream, const RopeParams& rope, const KvAppendParams& append) {
  cuda::KvAppendParams p;
  p.pages = append.pages;
  p.table = append.table;
  p.k = append.k;
  p.k_stride = append.k_stride;
  p.v = append.v;
  p.v_stride = append.v_stride;
  p.row_seq = append.row_seq;
  p.row_pos = append.row_pos;
  p.rows = append.rows;
  p.pos_head_stride = append.pos_head_stride;
  if (rope.rotary_dim > 0) {
    p.q = rope.x;
    p.q_stride = rope.x_stride;
    p.q_heads = rope.heads - append.table.format.kv_heads;
    p.cos_sin = rope.cos_sin;
    p.rotary_dim = rope.rotary_dim;
    p.interleaved = rope.interleaved;
    CHECK(append.k == rope.x + int64_t{p.q_heads} * rope.head_dim);
  }
  return append.rows == 0 ? OkStatus() : cuda::KvAppend(stream, DType::kF32, p);
}

// Ops that one launch can do at once: of one kind, none writing what another reads or writes.
class Batch {
 public:
  Batch(DeviceSession* session, const LayersOfPages& layers, std::span<const int32_t> listed)
      : session_(session), layers_(layers), listed_(listed) {}

  bool Takes(const PageOp& op) const {
    if (ops_.empty()) return true;
    if (ops_[0].kind != op.kind || written_.count(op.to) != 0 || read_.count(op.to) != 0) return false;
    return op.from < 0 || written_.count(op.from) == 0;
  }
  bool empty() const { return ops_.empty(); }
  void Add(const PageOp& op) {
    ops_.push_back(op);
    written_.insert(op.to);
    if (op.from >= 0) read_.insert(op.from);
  }

  Status Run() {
    if (ops_.empty()) return OkStatus();
    const Status status = ops_[0].kind == PageOp::Kind::kRecomputeMetadata ? Recompute() : Launch();
    ops_.clear();
    written_.clear();
    read_.clear();
    return status;
  }

 private:
  Status Launch() {
    const int n = static_cast<int>(ops_.size());
    std::vector<int32_t> ids;  // to, from, columns
    for (const PageOp& op : ops_) ids.push_back(op.to);
    for (const PageOp& op : ops_) ids.push_back(op.from);
    for (const PageOp& op : ops_) ids.push_back(op.columns);
    ASSIGN_OR_RETURN(void* uploaded, session_->Upload(ids.data(), ids.size() * sizeof(int32_t)));
    const auto* to = static_cast<const int32_t*>(uploaded);
    const cuda::PageCopies copies{to + n, to, n};
    const Stream stream = session_->stream();
    switch (ops_[0].kind) {
      case PageOp::Kind::kZeroPage: return cuda::ZeroPages(stream, layers_, to, n);
      case PageOp::Kind::kCopyPage: return cuda::CopyPages(stream, layers_, copies);
      case PageOp::Kind::kResetGroup: return cuda::ResetGroups(stream, layers_, to, n);
      case PageOp::Kind::kCopyGroup: return cuda::CopyGroups(stream, layers_, copies, to + 2 * n);
      case PageOp::Kind::kRecomputeMetadata: break;
    }
    return OkStatus();
  }

  Status Recompute() {
    std::vector<cuda::MetadataRecompute> list;
    for (const PageOp& op : ops_) {
      cuda::MetadataRecompute one;
      one.group = op.to;
      one.column = op.columns - 1;
      one.slots = op.slots;
      for (int i = 0; i < op.columns; ++i) one.pages[i] = listed_[static_cast<size_t>(op.pages_begin + i)];
      list.push_back(one);
    }
    ASSIGN_OR_RETURN(void* uploaded, session_->Upload(list.data(), list.size() * sizeof(list[0])));
    return cuda::RecomputeMetadata(session_->stream(), layers_, static_cast<const cuda::MetadataRecompute*>(uploaded),
                                   static_cast<int>(list.size()));
  }

  DeviceSession* session_;
  const LayersOfPages& layers_;
  std::span<const int32_t> listed_;
  std::vector<PageOp> ops_;
  std::set<int32_t> written_, read_;
};

// Pages and metadata groups don't meet but where metadata is recomputed from pages, so each has a batch that waits.
Status RunOnGpu(const Context& ctx, const LayersOfPages& layers, std::span<const PageOp> ops,
                std::span<const int32_t> listed) {
  Batch pages(ctx.session, layers, listed), groups(ctx.session, layers, listed);
  bool recomputes = false;  // in `groups`
  for (const PageOp& op : ops) {
    const bool recompute = op.kind == PageOp::Kind::kRecomputeMetadata;
    const bool of_page = op.kind == PageOp::Kind::kZeroPage || op.kind == PageOp::Kind::kCopyPage;
    if (recompute) RETURN_IF_ERROR(pages.Run());
    if (of_page && recomputes) RETURN_IF_ERROR(groups.Run());
    Batch& batch = of_page ? pages : groups;
    if (!batch.Takes(op)) RETURN_IF_ERROR(batch.Run());
    batch.Add(op);
    if (!of_page) recomputes = recompute;
  }
  RETURN_IF_ERROR(pages.Run());
  return groups.Run();
}

}  // namespace

void KvAppend(const Context& ctx, const KvAppendParams& params) {
  Dispatch(
      ctx, [&] { cpu::KvAppend(ctx, params); }, [&](Stream stream) { return AppendOnGpu(stream, {}, params); });
}

void RopeKvAppend(const Context& ctx, const RopeParams& rope, const KvAppendParams& append) {
  Dispatch(
      ctx,
      [&] {
        if (rope.rotary_dim > 0) Rope(ctx, rope);
        cpu::KvAppend(ctx, append);
      },
      [&](Stream stream) { return AppendOnGpu(stream, rope, append); });
}

void RunPageOps(const Context& ctx, const LayersOfPages& layers, std::span<const PageOp> ops,
                std::span<const int32_t> listed) {
  Dispatch(
      ctx, [&] { cpu::RunPageOps(ctx, layers, ops, listed); },
      [&](Stream) { return RunOnGpu(ctx, layers, ops, listed); });
}

Status FillPagesOnGpu(const Context& ctx, const LayersOfPages& layers, const PageFill& fill) {
  CHECK(ctx.session != nullptr);
  // One upload: seeds, table, ids.
  const size_t table_bytes = static_cast<size_t>(ElementSize(layers.format.dtype)) << cuda::kPageFillBits;
  std::vector<std::byte> bytes(fill.seeds.size_bytes() + table_bytes + fill.pages.size_bytes());
  std::memcpy(bytes.data(), fill.seeds.data(), fill.seeds.size_bytes());
  std::memcpy(bytes.data() + fill.seeds.size_bytes(), fill.table, table_bytes);
  std::memcpy(bytes.data() + fill.seeds.size_bytes() + table_bytes, fill.pages.data(), fill.pages.size_bytes());
  ASSIGN_OR_RETURN(void* uploaded, ctx.session->Upload(bytes.data(), bytes.size()));
  const auto* there = static_cast<const std::byte*>(uploaded);
  cuda::PageFillParams p;
  p.layers = layers;
  p.seeds = reinterpret_cast<const uint64_t*>(there);
  p.table = there + fill.seeds.size_bytes();
  p.page_ids = reinterpret_cast<const int32_t*>(there + fill.seeds.size_bytes() + table_bytes);
  p.pages = static_cast<int>(fill.pages.size());
  p.length = fill.length;
  p.first_kv_head = fill.first_kv_head;
  return cuda::FillPages(ctx.session->stream(), p);
}

}  // namespace quire

// A thread a row says who selects. Then a block a list: that of a row that has selected writes its entries, in two rounds with
// a barrier between; any other's is an ordered compaction of the pages that aren't left out.
#include "kernels/cuda/reuse.h"

#include "kernels/cuda/radix_select.cuh"
#include "kernels/cuda/simt.h"

namespace quire::cuda {
namespace {

struct RowsThatSelectKernel {
  using Params = ReuseParams;
  static constexpr const char* kName = "rows_that_select";
  static constexpr int kMaxThreads = 128;
  static constexpr int kMinBlocks = 1;

  QUIRE_DEVICE static void Run(const Params& p) {
    const int row = simt::BlockX() * kMaxThreads + simt::ThreadIndex();
    if (row >= p.rows) return;
    const int seq = p.row_seq[row];
    bool selects = false;
    if (seq >= 0) {
      const float first = p.history[row].Head(0)[0];
      selects = (p.row_len[row] - 1) % p.steps == 0 || (first != kReuseListed && first != kReuseLeftOut);
    }
    p.selecting[row] = selects ? seq : -1;
  }
};

struct KeepOrListKernel {
  using Params = ReuseParams;
  static constexpr const char* kName = "keep_or_list";
  static constexpr int kMaxThreads = 256;
  static constexpr int kMinBlocks = 4;

  QUIRE_DEVICE static void Run(const Params& p) {
    const int head = simt::BlockX(), row = simt::BlockY(), seq = p.row_seq[row];
    const int64_t list = int64_t{row} * p.table.format.kv_heads + head;
    if (seq < 0) {
      if (simt::ThreadIndex() == 0) p.selection.counts[list] = 0;
      return;
    }
    const int pages = (p.row_len[row] + p.table.format.page_size - 1) / p.table.format.page_size;
    float* entries = p.history[row].Head(head);
    int32_t* out = p.selection.pages + list * p.selection.max_pages;
    if (p.selecting[row] >= 0) {
      for (int page = simt::ThreadIndex(); page < pages; page += kMaxThreads) entries[page] = kReuseLeftOut;
      simt::SyncThreads();
      const int count = p.selection.counts[list];
      for (int i = simt::ThreadIndex(); i < count; i += kMaxThreads) entries[out[i]] = kReuseListed;
      return;
    }
    const int32_t* ids = p.table.page_ids + p.table.page_begin[seq];
    OrderedCompaction compaction(0);
    for (int base = 0; base < pages; base += kMaxThreads) {
      const int page = base + simt::ThreadIndex();
      const bool listed = page < pages && entries[page] != kReuseLeftOut && ids[page] >= 0;
      const int place = compaction.Place(listed, false, simt::Shared<CompactionShared>());
      if (place >= 0) out[place] = page;
    }
    if (simt::ThreadIndex() == 0) p.selection.counts[list] = compaction.count();
  }
};

}  // namespace

Status RowsThatSelect(Stream stream, const ReuseParams& p) {
  simt::LaunchShape shape;
  shape.grid_x = (p.rows + RowsThatSelectKernel::kMaxThreads - 1) / RowsThatSelectKernel::kMaxThreads;
  shape.threads = RowsThatSelectKernel::kMaxThreads;
  return simt::Launch<RowsThatSelectKernel>(shape, stream, p);
}

Status KeepOrList(Stream stream, const ReuseParams& p) {
  simt::LaunchShape shape;
  shape.grid_x = p.table.format.kv_heads;
  shape.grid_y = p.rows;
  shape.threads = KeepOrListKernel::kMaxThreads;
  shape.shared_bytes = sizeof(CompactionShared);
  return simt::Launch<KeepOrListKernel>(shape, stream, p);
}

}  // namespace quire::cuda

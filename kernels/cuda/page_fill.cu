// A block a (page, KV head, layer); a thread an element at a time, in the order in which elements draw: that of the page's
// memory without the slots past the end.
#include "kernels/cuda/page_fill.h"

#include "kernels/cuda/simt.h"

namespace quire::cuda {
namespace {

template <typename T>
struct PageFillKernel {
  using Params = PageFillParams;
  static constexpr const char* kName = "page_fill";
  static constexpr int kMaxThreads = 256;
  static constexpr int kMinBlocks = 4;

  // Number e of the stream that starts at `state`.
  QUIRE_DEVICE static T Number(const Params& p, uint64_t state, int64_t e) {
    constexpr int kPerDraw = 64 / kPageFillBits;
    const uint64_t bits = MixBits(state + static_cast<uint64_t>(e / kPerDraw + 1) * 0x9e3779b97f4a7c15u);
    const auto index = static_cast<uint32_t>(bits >> (kPageFillBits * (e % kPerDraw))) & ((1u << kPageFillBits) - 1);
    return static_cast<const T*>(p.table)[index];
  }

  QUIRE_DEVICE static void Run(const Params& p) {
    const PageFormat& f = p.layers.format;
    const int head = simt::BlockX(), page = simt::BlockY();
    const int64_t layer = simt::BlockZ(), id = p.page_ids[page];
    if (id < 0) return;
    const int64_t rest = p.length - int64_t{page} * f.page_size;
    const int slots = rest < f.page_size ? static_cast<int>(rest) : f.page_size;
    const uint64_t stream = MixBits(p.seeds[layer] + static_cast<uint64_t>(page)) +
                            static_cast<uint64_t>(p.first_kv_head + head) * 2;
    T* k = static_cast<T*>(p.layers.first.k) + layer * p.layers.k_layer_stride + id * f.k_page_stride + head * f.k_head_stride;
    const uint64_t k_state = MixBits(stream), v_state = MixBits(stream + 1);
    for (int at = simt::ThreadIndex(); at < f.k_dim * f.page_size; at += simt::BlockThreads()) {
      const int i = at % f.word, slot = at / f.word % f.page_size, row = at / f.word / f.page_size;
      k[at] = slot < slots ? Number(p, k_state, (int64_t{row} * slots + slot) * f.word + i) : T{};
    }
    T* v = static_cast<T*>(p.layers.first.v) + layer * p.layers.v_layer_stride + id * f.v_page_stride + head * f.v_head_stride;
    const int row_elements = f.v_dim * f.word;
    for (int at = simt::ThreadIndex(); at < static_cast<int>(f.v_head_stride); at += simt::BlockThreads()) {
      const int row = at / row_elements, c = at % row_elements / f.word, i = at % f.word;
      const int there = slots - row * f.word < f.word ? slots - row * f.word : f.word;  // slots of this row of words
      v[at] = i < there ? Number(p, v_state, int64_t{row} * row_elements + c * there + i) : T{};
    }
  }
};

}  // namespace

Status FillPages(Stream stream, const PageFillParams& p) {
  simt::LaunchShape shape;
  shape.grid_x = p.layers.format.kv_heads;
  shape.grid_y = p.pages;
  shape.grid_z = p.layers.layers;
  shape.threads = 256;
  return VisitFloatDType(p.layers.format.dtype,
                         [&](auto t) { return simt::Launch<PageFillKernel<decltype(t)>>(shape, stream, p); });
}

}  // namespace quire::cuda

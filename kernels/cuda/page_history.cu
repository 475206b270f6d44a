// A thread a page of one (row, KV head); of one sequence's rows it takes all, one after the other.
#include "kernels/cuda/page_history.h"

#include "kernels/cuda/attention_math.cuh"
#include "kernels/cuda/simt.h"

namespace quire::cuda {
namespace {

constexpr int kPageThreads = 128;
constexpr float kDropped = -1;  // of kLast: masses are ≥ 0

// Whether `page` is in the ascending list.
QUIRE_DEVICE bool Lists(const int32_t* pages, int n, int page) {
  int low = 0, end = n;
  while (low < end) {
    const int middle = (low + end) / 2;
    if (pages[middle] < page) {
      low = middle + 1;
    } else {
      end = middle;
    }
  }
  return low < n && pages[low] == page;
}

struct RememberMassKernel {
  struct Params {
    RememberParams p;  // p.selection is not for the device
    HistoryRule rule;
    bool selected;
    SelectionView selection;
  };
  static constexpr const char* kName = "remember_mass";
  static constexpr int kMaxThreads = kPageThreads;
  static constexpr int kMinBlocks = 8;

  QUIRE_DEVICE static void Run(const Params& params) {
    const RememberParams& p = params.p;
    const SelectionView& s = params.selection;
    const int page = simt::BlockX() * kMaxThreads + simt::ThreadIndex(), head = simt::BlockY();
    const int first = simt::BlockZ(), end = p.one_sequence ? p.rows : first + 1;
    const int last = p.row_pos[end - 1];  // the latest position
    if (page >= p.mass_pages || last < 0 || page > last / p.page_size) return;
    const PageHistory history = p.history[first];
    float* entry = history.Head(head) + int64_t{page} * history.width;
    const auto mass_of = [&](int row) { return p.mass[(int64_t{row} * p.kv_heads + head) * p.mass_pages + page]; };
    if (params.rule == HistoryRule::kSum) {
      float sum = *entry;
#pragma unroll 8
      for (int row = first; row < end; ++row) sum += mass_of(row);  // 0 where it wasn't read
      *entry = sum;
      return;
    }
    for (int row = first; row < end; ++row) {
      const int position = p.row_pos[row];
      if (page > position / p.page_size) continue;  // not there yet
      const int64_t list = int64_t{row} * p.kv_heads + head;
      const float mass = mass_of(row);
      const bool read = !params.selected || Lists(s.pages + list * s.max_pages, s.counts[list], page);
      if (params.rule == HistoryRule::kLast) {
        *entry = read ? mass : kDropped;
      } else {
        const int now = position % history.width, before = now == 0 ? history.width - 1 : now - 1;
        entry[now] = read ? mass : entry[before];
      }
    }
  }
};

struct HistoryScoresKernel {
  struct Params {
    HistoryScoresParams p;
    HistoryRule rule;
  };
  static constexpr const char* kName = "history_scores";
  static constexpr int kMaxThreads = kPageThreads;
  static constexpr int kMinBlocks = 8;

  QUIRE_DEVICE static void Run(const Params& params) {
    const HistoryScoresParams& p = params.p;
    const int page = simt::BlockX() * kMaxThreads + simt::ThreadIndex(), head = simt::BlockY(), row = simt::BlockZ();
    if (p.row_seq[row] < 0 || page > (p.row_len[row] - 1) / p.page_size) return;
    const PageHistory history = p.history[row];
    const float* entry = history.Head(head) + int64_t{page} * history.width;
    float score = *entry;
    if (params.rule == HistoryRule::kLast && score == kDropped) score = QuietNan();
    if (params.rule == HistoryRule::kRing) {
      score = 0;
      for (int i = 0; i < history.width; ++i) score += entry[i];
    }
    p.scores[(int64_t{row} * p.kv_heads + head) * p.score_stride + page] = score;
  }
};

simt::LaunchShape PageShape(int64_t pages, int kv_heads, int rows) {
  simt::LaunchShape shape;
  shape.grid_x = (pages + kPageThreads - 1) / kPageThreads;
  shape.grid_y = kv_heads;
  shape.grid_z = rows;
  shape.threads = kPageThreads;
  return shape;
}

}  // namespace

Status RememberMass(Stream stream, HistoryRule rule, const RememberParams& p) {
  const simt::LaunchShape shape = PageShape(p.mass_pages, p.kv_heads, p.one_sequence ? 1 : p.rows);
  RememberMassKernel::Params params{p, rule, p.selection != nullptr, {}};
  if (params.selected) params.selection = *p.selection;
  params.p.selection = nullptr;
  return simt::Launch<RememberMassKernel>(shape, stream, params);
}

Status HistoryScores(Stream stream, HistoryRule rule, const HistoryScoresParams& p) {
  const simt::LaunchShape shape = PageShape((p.longest + p.page_size - 1) / p.page_size, p.kv_heads, p.rows);
  return simt::Launch<HistoryScoresKernel>(shape, stream, {p, rule});
}

}  // namespace quire::cuda

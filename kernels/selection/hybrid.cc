// Hybrid (the second stage of RocketKV, Behnam et al., arXiv 2502.14051): quest over the channels that matter. Of a KV
// head's query group the r channels with the largest Σ|q| are taken; each page stands for its max in a channel where
// the group's Σq ≥ 0, for its min elsewhere, and is scored by q over these channels alone. Not a bound: a head whose
// sign differs from its group's sum, and the channels left out, are what it gives up for reading an eighth of quest's
// metadata.
//
// Reads per step and KV head: r elements a page, from r runs of 16 pages in each metadata group (half a 64-byte line in
// 16 bits), then the budget's K and V.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/cpu/hybrid_scores.h"
#include "kernels/cpu/top_k.h"
#include "kernels/cuda/hybrid.h"
#include "kernels/dispatch/dispatch.h"
#include "kernels/selection/page_policy.h"
#include "kernels/selection/policies.h"

namespace quire {
namespace {

constexpr int kGroupsPerTask = 32;  // 512 pages

class HybridPolicy : public PagePolicy {
 public:
  // channels: 0 takes a quarter of them.
  HybridPolicy(const PageOptions& options, int page_size, int64_t channels)
      : PagePolicy(options, page_size), channels_(channels) {}

  std::string_view name() const override { return "hybrid"; }

  size_t SelectWorkspace(const SelectParams& p) const override {
    const PageFormat& f = p.table.format;
    const size_t lists = static_cast<size_t>(p.rows) * f.kv_heads;
    const size_t heads = static_cast<size_t>(p.q_heads / f.kv_heads), r = static_cast<size_t>(Channels(f));
    return lists * (sizeof(float) * (static_cast<size_t>(Groups(p)) * kPagesPerGroup + heads * r + 2 * f.k_dim) +
                    sizeof(int32_t) * (r + 1));
  }

  int64_t SelectBytes(const SelectParams& p) const override {
    return VisitRows(p, [&](int row) {
      const PageFormat& f = p.table.format;
      return int64_t{f.kv_heads} * ((p.row_len[row] + f.page_size - 1) / f.page_size) * Channels(f) *
             ElementSize(f.dtype);
    });
  }

  int64_t SelectLineBytes(const SelectParams& p) const override {
    const PageFormat& f = p.table.format;
    std::vector<int32_t> runs(static_cast<size_t>(f.k_dim));
    std::vector<float> sums(2 * runs.size());
    const int64_t run_bytes = int64_t{kPagesPerGroup} * ElementSize(f.dtype);
    return VisitRows(p, [&](int row) {
      int64_t lines = 0;
      for (int head = 0; head < f.kv_heads; ++head) {
        const int count = TakeRuns(p, row, head, sums.data(), runs.data());
        std::sort(runs.begin(), runs.begin() + count);
        lines += LinesOf(runs.data(), count, 0, run_bytes);  // a KV head's metadata begins a line
      }
      return lines * 64 * GroupsOf(f, p.row_len[row]);
    });
  }

  bool RunsOnGpu() const override { return true; }

  void Select(const Context& ctx, const SelectParams& p, SelectionView selection, void* workspace) const override {
    CheckParams(p);
    Dispatch(
        ctx, [&] { SelectOnCpu(ctx, p, selection, workspace); },
        [&](Stream stream) {
          cuda::QuestParams q = OnGpu(p);
          q.scores = static_cast<float*>(workspace);
          return cuda::HybridSelect(stream, q, Channels(p.table.format), selection);
        });
  }

 private:
  void SelectOnCpu(const Context& ctx, const SelectParams& p, SelectionView selection, void* workspace) const {
    const PageFormat& f = p.table.format;
    const int groups = Groups(p), heads = p.q_heads / f.kv_heads, r = Channels(f);
    const int64_t lists = int64_t{p.rows} * f.kv_heads;
    auto* scores = static_cast<float*>(workspace);                        // [lists][groups][16]
    float* q = scores + lists * groups * kPagesPerGroup;                  // [lists][heads][r]
    float* sums = q + lists * heads * r;                                  // [lists][2][k_dim]
    auto* runs = reinterpret_cast<int32_t*>(sums + lists * 2 * f.k_dim);  // [lists][r]
    int32_t* counts = runs + lists * r;                                   // [lists]
    ctx.pool->ParallelFor(lists, [&](int64_t list, int) {
      const int row = static_cast<int>(list / f.kv_heads), head = static_cast<int>(list % f.kv_heads);
      const int count = counts[list] = TakeRuns(p, row, head, sums + list * 2 * f.k_dim, runs + list * r);
      const float* group_q = QueriesOf(p, row, head);
      for (int h = 0; h < heads; ++h) {
        for (int i = 0; i < count; ++i) {
          q[(list * heads + h) * r + i] = group_q[int64_t{h} * f.k_dim + runs[list * r + i] % f.k_dim];
        }
      }
    });
    ForFreeGroups(ctx, p, kGroupsPerTask, [&](int row, int head, int first, int last) {
      const int64_t list = int64_t{row} * f.kv_heads + head;
      HybridScoreParams s;
      s.dtype = f.dtype;
      s.q = q + list * heads * r;
      s.q_stride = r;
      s.heads = heads;
      s.runs = runs + list * r;
      s.num_runs = counts[list];
      s.meta = MetaOf(p, head);
      s.group_stride = f.meta_group_stride;
      s.group_ids = GroupIds(p, row) + first;
      s.groups = last - first;
      s.reduce = options().reduce;
      s.scores = scores + (list * groups + first) * kPagesPerGroup;
      HybridScores(s);
    });
    ctx.pool->ParallelFor(lists, [&](int64_t list, int) {
      const int row = static_cast<int>(list / f.kv_heads);
      selection.counts[list] = Choose(p, row, scores + list * groups * kPagesPerGroup,
                                      selection.pages + list * selection.max_pages, selection.max_pages);
    });
  }

  int Channels(const PageFormat& f) const {
    if (channels_ == 0) return std::max(1, f.k_dim / 4);
    return static_cast<int>(std::min<int64_t>(channels_, f.k_dim));
  }

  template <typename F>
  static int64_t VisitRows(const SelectParams& p, F&& f) {
    int64_t sum = 0;
    for (int row = 0; row < p.rows; ++row) sum += f(row);
    return sum;
  }

  // The runs of the chosen channels: which · k_dim + channel, which 1 for the max; channels ascend. A channel where a
  // query is NaN is never among them. sums [2][k_dim] is scratch: Σ|q| and Σq. Returns how many.
  int TakeRuns(const SelectParams& p, int row, int head, float* sums, int32_t* runs) const {
    const PageFormat& f = p.table.format;
    const int heads = p.q_heads / f.kv_heads;
    const float* q = QueriesOf(p, row, head);
    float *size = sums, *sum = sums + f.k_dim;
    std::fill(sums, sums + 2 * f.k_dim, 0.0f);
    for (int h = 0; h < heads; ++h) {
      for (int c = 0; c < f.k_dim; ++c) {
        const float x = q[int64_t{h} * f.k_dim + c];
        size[c] += std::abs(x);
        sum[c] += x;
      }
    }
    const int count = TopPages(size, f.k_dim, Channels(f), 0, runs);
    for (int i = 0; i < count; ++i) runs[i] += sum[runs[i]] >= 0 ? f.k_dim : 0;
    return count;
  }

  int64_t channels_;
};

}  // namespace

PolicyInfo HybridPolicyInfo() {
  return {"hybrid", "Behnam et al., arXiv 2502.14051 (RocketKV's second stage)",
          "channels·n/page_size elements of page metadata, token_budget vectors of K and of V",
          std::string(kPageOptions).append(kReduceOption) +
              ", channels (1 to head_dim, more is all; default a quarter of head_dim)"};
}

Result<std::unique_ptr<AttentionPolicy>> MakeHybridPolicy(const PolicyOptions& options, int page_size) {
  OptionReader reader("hybrid", options);
  ASSIGN_OR_RETURN(PageOptions page_options, PageOptions::Read("hybrid", &reader, page_size));
  RETURN_IF_ERROR(PageOptions::ReadReduce(&reader, &page_options.reduce));
  int64_t channels = 0;
  RETURN_IF_ERROR(reader.Integer("channels", 1, int64_t{1} << 30, &channels));
  RETURN_IF_ERROR(reader.Finish());
  return std::unique_ptr<AttentionPolicy>(std::make_unique<HybridPolicy>(page_options, page_size, channels));
}

}  // namespace quire
